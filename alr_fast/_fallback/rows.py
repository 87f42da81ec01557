"""Which target row belongs to each row of a batch, and which rows have none."""

from typing import NamedTuple

import torch
from torch import Tensor

from alr_fast._fallback import checks


class Rows(NamedTuple):
    """Which target row belongs to each row of the batch."""

    target: Tensor  # [B] int64; 0 for rows that have none
    counted: Tensor  # [B] bool: not ignored
    beyond: Tensor  # [B] bool: target row or sample out of range
    wrong: Tensor  # [B] bool: another label than the given one


def rows_of(
    index: Tensor,  # [B] target rows: indices in a table, or labels
    other: Tensor | None,  # [B] labels with a table, samples without
    size: int,
    given_labels: Tensor | None,
    *,
    of_table: bool,
) -> Rows:
    index = index.long()
    counted = index >= 0 if other is None else (index >= 0) & (other >= 0)
    beyond = counted & (index >= size)
    wrong = torch.zeros_like(counted)
    if given_labels is not None and other is not None:
        sample, label = (index, other) if of_table else (other.long(), index)
        beyond = beyond | (counted & (sample >= len(given_labels)))
        if len(given_labels) > 0:
            given = given_labels[sample.clamp(0, len(given_labels) - 1)]
            wrong = counted & ~beyond & (given != label)
    return Rows(index.masked_fill(~counted | beyond, 0), counted, beyond, wrong)


def raise_if_wrong(
    rows: Rows,
    index: Tensor,
    other: Tensor | None,
    size: int,
    given_labels: Tensor | None,
    *,
    of_table: bool,
) -> None:
    """Raises for the first row that is out of range or has a wrong label."""
    bad = rows.beyond | rows.wrong
    if not bad.any():
        return
    b = int(bad.int().argmax())
    i = int(index[b])
    if i >= size:
        checks.raise_beyond_targets(b, i, size, has_table=of_table)
    assert other is not None and given_labels is not None  # or the index would be out of range
    sample, label = (i, int(other[b])) if of_table else (int(other[b]), i)
    checks.raise_for_label(b, sample, label, given_labels)


def gathered(table: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
    """The target row of each row of the batch, on its device."""
    if len(table) == 0:  # all rows are ignored or out of range
        return rows.target.new_zeros((len(rows.target), table.shape[1]), dtype=dtype)
    device = rows.target.device
    return table[rows.target.to(table.device)].to(device, dtype)


def groups(index: Tensor) -> Tensor:
    """A number in [0, B) for each row [B], equal for rows with the same index."""
    ordered, order = index.sort(stable=True)
    starts = torch.cat([ordered.new_zeros(1), (ordered[1:] != ordered[:-1]).long()])
    return starts.cumsum(0)[order.argsort()]
