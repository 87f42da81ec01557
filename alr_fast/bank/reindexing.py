"""A label bank for a data set that has grown, shrunk or been put into another order."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alr_fast._inputs import as_labels
from alr_fast.bank.checks import checked_labels
from alr_fast.errors import UserError


def source_rows(old: Sequence[Hashable] | None, new: Any, num_samples: int) -> Tensor:
    """For each new sample the row that it has, int64 [M] on the CPU; -1 for an unknown one.

    Args:
        old: [N] key of each row, None if ``new`` are the rows themselves.
        new: [M] keys of the samples now.
        num_samples: N.

    Raises:
        UserError: There are not N old keys, or a sample occurs twice.
    """
    if old is None:
        source: Tensor = as_labels(new, "new").detach().to("cpu", torch.int64, copy=True)
        if len(source) and (int(source.max()) >= num_samples or int(source.min()) < -1):
            raise UserError(
                f"must lie in [0, {num_samples}), or be -1 for a new sample; pass the keys of the "
                "rows as old if these are keys",
                argument="new",
            )
        known = source[source >= 0].numpy()
        if len(np.unique(known)) < len(known):
            raise UserError("has a row twice; pass each once", argument="new")
        return source
    old, new = _keys(old), _keys(new)
    if len(old) != num_samples:
        raise UserError(
            f"has {len(old):,} keys for {num_samples:,} rows; pass one for each row of the whole "
            "bank",
            argument="old",
        )
    rows = {key: row for row, key in enumerate(old)}
    for name, keys, unique in (("old", old, len(rows)), ("new", new, len(set(new)))):
        if unique < len(keys):
            raise UserError("has a key twice; pass each once, ids for instance", argument=name)
    return torch.tensor([rows.get(key, -1) for key in new], dtype=torch.int64)


def _keys(keys: Any) -> list[Hashable]:
    # Elements of tensors and arrays are not equal to the numbers that they hold, or not hashable.
    return keys.tolist() if isinstance(keys, Tensor | np.ndarray) else list(keys)


def new_labels(labels: Any, source: Tensor, given_labels: Tensor, num_classes: int) -> Tensor:
    """The given label of each new sample, int64 [M] on the CPU.

    Args:
        labels: [M] integers; None to keep those of the known samples.
        source: Of `source_rows`.
        given_labels: [N], of the old samples.
        num_classes: K.

    Raises:
        UserError: They are not such, or None although a sample is new.
    """
    if labels is None:
        if bool((source < 0).any()):
            raise UserError(
                "missing; pass the label of each sample, since some are new",
                argument="labels",
            )
        kept: Tensor = given_labels[source]
        return kept
    checked = checked_labels(labels, num_classes)
    if len(checked) != len(source):
        raise UserError(
            f"must have {len(source):,} entries, one for each sample",
            argument="labels",
            value=f"with {len(checked):,} entries",
        )
    return checked


def copy_known(target: Tensor, pieces: Iterable[Tensor], source: Tensor, *, first: int = 0) -> None:
    """Copies what known samples have in pieces of a table.

    Args:
        target: [M, ...], the table of the new samples.
        pieces: [m, ...] each, consecutive rows of the table of the old ones.
        source: [M] int64 on the CPU, row of each new sample in the old table; -1 for new ones.
        first: Number of the first row of the first piece.
    """
    for piece in pieces:
        own = torch.nonzero((source >= first) & (source < first + len(piece))).squeeze(1)
        if len(own):
            found = piece[(source[own] - first).to(piece.device)]
            target[own.to(target.device)] = found.to(target)
        first += len(piece)
