"""The label bank: a table of class probabilities with one row per training sample."""

from alr_fast.bank.label_bank import LabelBank

__all__ = ["LabelBank"]
