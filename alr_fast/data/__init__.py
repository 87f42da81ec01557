"""Data sets by name, and loaders of their batches."""

from alr_fast.data.datasets import LAYOUTS, Dataset, Split, open_dataset
from alr_fast.data.index import SampleIndex, balanced_rows
from alr_fast.data.sampler import OwnedRowsSampler

__all__ = [
    "LAYOUTS",
    "Dataset",
    "OwnedRowsSampler",
    "SampleIndex",
    "Split",
    "balanced_rows",
    "open_dataset",
]
