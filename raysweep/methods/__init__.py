"""Losses, and the objective of every method."""
