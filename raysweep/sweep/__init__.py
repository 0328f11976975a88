"""Trials on Ray: the only part of raysweep that imports it."""
