"""Adapters to training frameworks: the sample's index on its way from the data set to the loss.

`IndexedDataset` works with any framework and needs torch alone. `alr_fast.integrations.lightning`
and `alr_fast.integrations.transformers` are imported by name and need their framework.
"""

from alr_fast.integrations.indexed import IndexedDataset

__all__ = ["IndexedDataset"]
