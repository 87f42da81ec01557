"""Checks and conversions of the arguments of `alr_fast.labels.find_issues`."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alr_fast._inputs import as_labels
from alr_fast.errors import UserError
from alr_fast.utils.text import is_encodable, printable

_CHECKED = 1 << 22  # probabilities that are checked at once
_LARGEST_DEVIATION = 0.02  # of a sum from one: 16-bit rows of many classes deviate


def as_integers(value: object, name: str) -> NDArray[np.int64]:
    """Class numbers or ids as int64 [n], a copy; see `alr_fast._inputs.as_labels`."""
    return as_labels(value, name).cpu().numpy().astype(np.int64)


def _kind(array: NDArray[Any]) -> str:
    kinds = {"f": "floating-point numbers", "b": "truth values", "O": "objects"}
    return kinds.get(array.dtype.kind, f"values of type {array.dtype}")


def _as_array(value: object, name: str) -> NDArray[Any]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    try:
        return np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise UserError(f"is no array ({error})", argument=name) from error


def class_numbers(
    value: object, name: str, num_samples: int, num_classes: int
) -> NDArray[np.int64]:
    """A class for each sample, int64 [N].

    Raises:
        UserError: Not integers, not as many as samples, or outside [0, K).
    """
    labels = as_integers(value, name)
    if len(labels) != num_samples:
        raise UserError(
            f"has {len(labels):,} entries, probabilities has {num_samples:,} rows; pass one label "
            "for each row",
            argument=name,
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"entry {wrong[0]} is {labels[wrong[0]]}, probabilities has {num_classes} columns: "
            f"labels must lie in 0 to {num_classes - 1}",
            argument=name,
        )
    return labels


def read_probabilities(
    value: object, *, scaled: bool
) -> tuple[tuple[int, int], Callable[[slice], NDArray[np.float32]]]:
    """Shape (N, K) of the probabilities, and a function that reads rows of them, see
    `alr_fast.labels.scored.ScoredLabels.read`. The whole is not copied.

    Args:
        value: [N, K]: a tensor on any device, an array, possibly memory-mapped, or lists.
        scaled: Whether rows must sum to one, or to zero (a sample without a prediction). Else they
            are those of a label bank, see `most_excess`.

    Raises:
        UserError: Another shape, or values that are not probabilities.
    """
    name = "probabilities"
    array: Any = value
    if not isinstance(value, torch.Tensor):
        array = _as_array(value, name) if not isinstance(value, np.ndarray) else value
        if array.dtype.kind not in "fiub":
            raise UserError(f"contains {_kind(array)}; pass numbers", argument=name)
    elif value.is_complex():
        raise UserError("contains complex numbers; pass probabilities", argument=name)
    if array.ndim != 2 or 0 in array.shape:
        hint = ""
        if array.ndim == 1:
            hint = "; for two classes pass both columns, np.stack([1 - p, p], axis=1)"
        raise UserError(
            f"has the shape {tuple(array.shape)}; pass one row for each sample and one column for "
            f"each class, at least one of each{hint}",
            argument=name,
        )

    def read(rows: slice) -> NDArray[np.float32]:
        if isinstance(array, torch.Tensor):
            found = array[rows].detach().to("cpu", torch.float32).numpy()
        else:
            found = np.asarray(array[rows], dtype=np.float32)
        return found

    excess = None if scaled else most_excess(array.dtype)
    for rows in _pieces(*array.shape):
        _check_probabilities(read(rows), rows.start, excess)
    return (array.shape[0], array.shape[1]), read


def most_excess(dtype: object) -> float:
    """Largest excess over one of the sum of a row of a label bank.

    Rows of 16 bits deviate, since small steps of the average are lost.
    """
    if dtype == torch.bfloat16:
        return 0.5
    return 0.25 if dtype in (torch.float16, np.float16) else _LARGEST_DEVIATION


def _pieces(num_samples: int, num_classes: int) -> Iterator[slice]:
    step = max(_CHECKED // num_classes, 1)
    for first in range(0, num_samples, step):
        yield slice(first, min(first + step, num_samples))


def _check_probabilities(p: NDArray[np.float32], first: int, excess: float | None) -> None:
    """Refuses rows that are not probabilities.

    Args:
        p: Rows, float32 [M, K].
        first: Number of the first one.
        excess: How much their sums may exceed one; they may be below it then. None if they must sum
            to one, or to zero.
    """
    sums = p.sum(1)
    finite = np.isfinite(sums)
    low, high = p.min(1), p.max(1)
    negative = low < 0
    # A bank's rows may be far below a sum of one; none is far above, as logits often are.
    off = sums > 1 + (excess or _LARGEST_DEVIATION)
    if excess is None:
        off |= (sums < 1 - _LARGEST_DEVIATION) & (sums != 0)
    for wrong, text in (
        (~finite, "has a NaN or infinite value"),
        (finite & negative, "has a negative value, {low:.4g}"),
        (finite & off, "sums to {total:.4g}, not to 1"),
    ):
        if not wrong.any():
            continue
        row = int(np.flatnonzero(wrong)[0])
        what = text.format(low=low[row], total=sums[row])
        remedy = "predict these samples again, or leave them out"
        if finite[row]:
            remedy = "pass the output of a softmax"
            if negative[row] or high[row] > 1:
                remedy = (
                    "these look like logits (scores before the softmax); pass "
                    "logits.softmax(-1), or scipy.special.softmax(logits, axis=1)"
                )
        raise UserError(f"row {first + row} {what}; {remedy}", argument="probabilities")


def read_history(history: Mapping[str, Any] | None, num_samples: int) -> dict[str, NDArray[Any]]:
    """The statistics of training for each sample; those of a run without them for None.

    Args:
        history: ``given_loss`` and ``changes``, tensors or arrays [N], see
            `alr_fast.bank.history.SampleHistory.means`.
        num_samples: Number of samples N.

    Raises:
        UserError: A column is missing, unknown, or has another length.
    """
    columns: dict[str, NDArray[Any]] = {
        "given_loss": np.full(num_samples, np.nan, np.float32),
        "changes": np.zeros(num_samples, np.int64),
    }
    if history is None:
        return columns
    if not isinstance(history, Mapping):
        raise UserError(
            f"is a {type(history).__name__}; pass SampleHistory.means(), or a dict with given_loss "
            "and changes",
            argument="history",
        )
    if set(history) != set(columns):
        raise UserError(
            f"has {', '.join(map(str, history)) or 'no columns'}; it must have given_loss and "
            "changes, as SampleHistory.means() returns them",
            argument="history",
        )
    changes = as_integers(history["changes"], "history['changes']")
    loss = _as_array(history["given_loss"], "history['given_loss']")
    if loss.dtype.kind not in "fiu":
        raise UserError(f"contains {_kind(loss)}; pass numbers", argument="history['given_loss']")
    for name, column in (("given_loss", loss), ("changes", changes)):
        if column.shape != (num_samples,):
            raise UserError(
                f"has the shape {column.shape}; pass one value for each of the {num_samples:,} "
                "samples",
                argument=f"history[{name!r}]",
            )
    return {"given_loss": loss.astype(np.float32), "changes": changes}


def checked_share(value: object | None) -> float | None:
    """A share from 0 to 1, or None.

    Raises:
        UserError: Neither of them.
    """
    if value is None:
        return None
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise UserError(
            "must be a number from 0 to 1, or None", argument="given_share", value=repr(value)
        )
    return float(value)


def ids_of_samples(value: object | None, num_samples: int) -> NDArray[np.int64]:
    """Ids, int64 [N]; positions for None.

    Raises:
        UserError: Not integers, not as many as samples, below 0, or not unique.
    """
    if value is None:
        return np.arange(num_samples)
    ids = as_integers(value, "sample_ids")
    if len(ids) != num_samples:
        raise UserError(
            f"has {len(ids):,} entries for {num_samples:,} samples", argument="sample_ids"
        )
    if len(ids) and ids.min() < 0:
        raise UserError(f"contains {ids.min()}; ids must be 0 or above", argument="sample_ids")
    if len(np.unique(ids)) < len(ids):
        raise UserError(
            "contains an id twice; give each sample its own, or leave them out",
            argument="sample_ids",
        )
    return ids


def names_of_classes(value: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """Names of the classes; their numbers for None.

    Raises:
        UserError: Not as many names as classes, a mapping, or a name that no file can contain.
    """
    if value is None:
        return tuple(map(str, range(num_classes)))
    if isinstance(value, Mapping):  # id2label or label2id: its keys would pass as names
        raise UserError(
            "is a mapping; pass a list of the names, in the order of the columns",
            argument="class_names",
        )
    names = tuple(str(name) for name in value) if not isinstance(value, str) else (value,)
    if len(names) != num_classes:
        raise UserError(
            f"has {len(names)} names, probabilities has {num_classes} columns; pass one name for "
            "each class, in the order of the columns",
            argument="class_names",
        )
    _check_texts(names, "class_names")
    return names


def paths_of_samples(value: Sequence[Any] | None, num_samples: int) -> Sequence[str] | None:
    """Paths as texts; None for None.

    Raises:
        UserError: Not as many paths as samples, or one that no file can contain.
    """
    if value is None:
        return None
    if isinstance(value, str) or len(value) != num_samples:
        raise UserError(
            f"has {len(value):,} entries for {num_samples:,} samples; pass a list of one path for "
            "each",
            argument="paths",
        )
    paths = [os.fsdecode(path) if isinstance(path, bytes) else str(path) for path in value]
    _check_texts(paths, "paths")
    return paths


def _check_texts(texts: Sequence[str], name: str) -> None:
    for number, text in enumerate(texts):
        if not is_encodable(text):
            raise UserError(
                f"entry {number} is {printable(text)}, with a lone surrogate, half of a character; "
                'replace it: text.encode("utf-8", "replace").decode()',
                argument=name,
            )
