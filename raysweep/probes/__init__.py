"""Evaluation of a frozen encoder: features, linear probe, kNN, k-means, and measures of collapse."""
