"""Augmentation policies, one file each, and the image operations that they share."""
