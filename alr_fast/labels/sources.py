"""Where images, texts and features of samples come from: anything that has one for each sample."""

from collections.abc import Callable, Mapping
from typing import Any

from alr_fast.errors import UserError
from alr_fast.labels.scored import ScoredLabels


def by_row(source: Any, labels: ScoredLabels, name: str) -> Callable[[int], Any]:
    """A function of a row that returns what a source has for that sample.

    Args:
        source: Sequence, array, `pandas.Series` or data set, read by row whatever its index is, or
            a function of a sample id.
        labels: The samples.
        name: Name of the argument, for messages.

    Raises:
        UserError: It is neither, or has another length than there are samples.
    """
    if isinstance(source, Mapping):
        raise UserError(
            f"is a {type(source).__name__}, which has no order; pass its get method if its keys "
            "are sample ids",
            argument=name,
        )
    if hasattr(source, "__getitem__") and not isinstance(source, (str, bytes)):
        size = len(source) if hasattr(source, "__len__") else len(labels)
        if size != len(labels):
            raise UserError(
                f"has {size:,} entries for {len(labels):,} samples; pass one for each sample in "
                "the order of the labels, or a function that takes a sample id",
                argument=name,
            )
        values = getattr(source, "iloc", source)  # pandas would look for the row in its index
        return lambda row: values[row]
    if callable(source):
        ids = labels.sample_ids
        return lambda row: source(int(ids[row]))
    raise UserError(
        f"is a {type(source).__name__}; pass a list, an array or a data set with an entry for each "
        "sample, or a function that takes a sample id",
        argument=name,
    )
