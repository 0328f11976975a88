"""Trials on a Ray cluster. Only this folder imports Ray."""
