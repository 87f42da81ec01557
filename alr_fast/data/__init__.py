"""Data sets by name, and the batches that are made of them."""

from alr_fast.data.datasets import LAYOUTS, Dataset, Split, open_dataset
from alr_fast.data.index import SampleIndex, balanced_rows

__all__ = ["LAYOUTS", "Dataset", "SampleIndex", "Split", "balanced_rows", "open_dataset"]
