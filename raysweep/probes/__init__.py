"""Evaluation of a frozen encoder: features once, then linear probe, k-means and kNN on them."""
