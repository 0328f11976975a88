"""Datasets as NumPy arrays: the Dataset type, the named datasets, image folders, and the splits."""

from raysweep.data.dataset import Dataset, Images
from raysweep.data.folders import check_exists, ignoring, warn_of_ignored
from raysweep.data.loading import load, native_size
from raysweep.data.pixels import decode
from raysweep.data.selection import Datasets, TrialData, select_data
from raysweep.data.splits import SplitPart, draw_labels, fit_and_val

__all__ = [
    "Dataset",
    "Datasets",
    "Images",
    "SplitPart",
    "TrialData",
    "check_exists",
    "decode",
    "draw_labels",
    "fit_and_val",
    "ignoring",
    "load",
    "native_size",
    "select_data",
    "warn_of_ignored",
]
