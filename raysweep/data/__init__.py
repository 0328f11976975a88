"""Datasets as NumPy arrays: the Dataset type, the named datasets, image folders and the splits."""
