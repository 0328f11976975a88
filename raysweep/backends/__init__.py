"""Backends that run the trials of a sweep: in this process, or on Ray."""
