"""Files of noisy labels and of transition matrices.

Noisy labels are a numpy archive (.npz) without pickles. It has one entry for each sample in
``ids``, ``labels`` (noisy) and ``original`` (before), all int64 [N], and ``class_names`` [K],
``kind``, ``requested_rate``, ``realised_rate``, ``seed``, ``sample_fingerprint`` and ``format``.

Labels are found by id, so that the file of a whole data set serves every subset of it. Reading
checks that it is the same data set: the class names and the original label of each sample must
agree, and, if the index has as many samples as the file, the sample fingerprint (ids and paths).
The fingerprint of a subset cannot be compared with that of the whole.
"""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.index import SampleIndex
from alr_fast.data.npz import NPY_MAGIC, ArraysError, open_npz
from alr_fast.errors import UserError
from alr_fast.noise.injection import InjectedNoise, describe
from alr_fast.utils.files import replacing
from alr_fast.utils.text import error_text

FORMAT = "alr_fast noisy labels 1"
FIELDS = {  # name: (kinds of dtype, number of dimensions)
    "format": ("U", 0),
    "ids": ("i", 1),
    "labels": ("i", 1),
    "original": ("i", 1),
    "class_names": ("U", 1),
    "kind": ("U", 0),
    "requested_rate": ("f", 0),
    "realised_rate": ("f", 0),
    "seed": ("i", 0),
    "sample_fingerprint": ("U", 0),
}
# More than any array of the file needs; the file of the whole data set also serves small parts.
_BYTES_PER_SAMPLE = 16
_SAMPLES = 1 << 24
_LARGEST_MATRIX = 1 << 31  # bytes: of 16,384 classes
_LARGEST_LINE = 1 << 20


def save_labels(
    path: str | os.PathLike,
    noise: InjectedNoise,
    index: SampleIndex,
    *,
    overwrite: bool = False,
) -> None:
    """Writes noisy labels for `load_labels`, atomically.

    Args:
        path: File to write, under exactly this name.
        noise: Result of `inject` for the labels of ``index``.
        index: The samples, row by row.
        overwrite: Whether to replace an existing file.

    Raises:
        UserError: The file exists already or cannot be written.
        ValueError: Noise and index differ in their samples or classes.
    """
    if len(noise.labels) != len(index) or len(noise.counts) != index.num_classes:
        raise ValueError(
            f"noise has {len(noise.labels)} samples of {len(noise.counts)} classes, the index "
            f"{len(index)} of {index.num_classes}"
        )
    check_output(path, overwrite=overwrite)
    values = {
        "format": FORMAT,
        "ids": index.sample_ids.astype(np.int64),
        "labels": noise.labels,
        "original": noise.original,
        "class_names": np.array(index.class_names, dtype=np.str_),
        "kind": noise.kind,
        "requested_rate": float(noise.requested_rate),
        "realised_rate": float(noise.realised_rate),
        "seed": np.int64(noise.seed),
        "sample_fingerprint": index.sample_fingerprint(),
    }
    with replacing(Path(path)) as fresh, fresh.open("wb") as file:
        np.savez_compressed(file, **values)  # no objects, so no pickles


def check_output(path: str | os.PathLike, *, overwrite: bool) -> None:
    """Raises the `UserError` of `save_labels` before a command starts to work.

    Args:
        path: File to be written.
        overwrite: Whether it may replace an existing file.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file, {path / 'labels.npz'} for instance")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already; choose another name, or overwrite it")
    if not path.parent.is_dir():
        raise UserError(f"{path}: no folder {path.parent}; make it first")


def load_labels(path: str | os.PathLike, index: SampleIndex) -> NDArray[np.int64]:
    """Noisy labels, int64 [N], of the rows of ``index``; see `load_noise`."""
    return load_noise(path, index).labels


def load_noise(path: str | os.PathLike, index: SampleIndex) -> InjectedNoise:
    """Reads noisy labels for the samples of an index.

    Args:
        path: File from `save_labels`.
        index: The data set of the file or a part of it, with the labels of the data set.

    Returns:
        Labels row by row. Realised rate and counts are those of these samples alone, the other
        values those of the file.

    Raises:
        UserError: The file is missing, is not from `save_labels`, or has other samples or classes.
    """
    saved = _read(path, len(index))
    names = tuple(saved["class_names"].tolist())
    if len(names) != index.num_classes:
        raise UserError(
            f"{path}: made for {len(names)} classes, the data set has {index.num_classes}; "
            "pass the data set of the file"
        )
    for k, (there, here) in enumerate(zip(names, index.class_names, strict=True)):
        if there != here:
            raise UserError(
                f"{path}: made for other classes (class {k} is {there}, in the data set {here}); "
                "pass the data set of the file"
            )

    ids, wanted = saved["ids"], np.asarray(index.sample_ids)
    rows = np.searchsorted(ids, wanted)
    found = rows < len(ids)
    found[found] = ids[rows[found]] == wanted[found]
    if not found.all():
        raise UserError(
            f"{path}: has no label for {np.count_nonzero(~found)} of {len(wanted)} samples (first: "
            f"id {wanted[~found][0]}); make the file from the whole data set"
        )
    if len(wanted) == len(ids) and saved["sample_fingerprint"].item() != index.sample_fingerprint():
        raise UserError(
            f"{path}: made for other samples (their paths differ); pass the data set of the file, "
            "or make the file again"
        )
    original = saved["original"][rows]
    changed = np.flatnonzero(original != index.labels)
    if len(changed):
        row = changed[0]
        raise UserError(
            f"{path}: made from other labels (first: id {wanted[row]} was {names[original[row]]}, "
            f"in the data set {names[index.labels[row]]}); pass the data set of the file, or make "
            "the file again"
        )
    return describe(
        saved["labels"][rows],
        original,
        num_classes=len(names),
        kind=saved["kind"].item(),
        requested_rate=saved["requested_rate"].item(),
        seed=saved["seed"].item(),
    )


def _read(path: str | os.PathLike, num_samples: int) -> dict[str, NDArray[Any]]:
    """Arrays of a file of noisy labels, checked against `FIELDS` and for consistency.

    The file may be that of a data set of which ``num_samples`` are a part.
    """
    most = _BYTES_PER_SAMPLE * max(num_samples, _SAMPLES)
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file; make it with python -m alr_fast.noise")
    try:
        with open_npz(Path(path)) as archive:
            missing = [name for name in FIELDS if name not in archive.headers]
            if missing:
                raise _wrong_file(path, f"it lacks {', '.join(missing)}")
            saved = {name: archive.read(name, most) for name in FIELDS}
    except ArraysError as error:
        raise _wrong_file(path, error.problem) from error
    for name, (kinds, dimensions) in FIELDS.items():
        if saved[name].dtype.kind not in kinds or saved[name].ndim != dimensions:
            raise _wrong_file(path, f"{name} is {saved[name].dtype} of shape {saved[name].shape}")
    if saved["format"].item() != FORMAT:
        raise _wrong_file(path, f"format {saved['format'].item()}, this version reads {FORMAT}")
    ids, names = saved["ids"], saved["class_names"]
    for name in ("labels", "original"):
        column = saved[name]
        if len(column) != len(ids):
            raise _wrong_file(path, f"{name} has {len(column)} entries, ids has {len(ids)}")
        if len(column) and not (column.min() >= 0 and column.max() < len(names)):
            raise _wrong_file(path, f"{name} holds labels of more than {len(names)} classes")
    if (np.diff(ids) <= 0).any():
        raise _wrong_file(path, "ids do not ascend")
    return saved


def _wrong_file(path: str | os.PathLike, reason: str) -> UserError:
    return UserError(
        f"{path}: not a file of noisy labels ({reason}); make one with python -m alr_fast.noise"
    )


def read_matrix(path: str | os.PathLike) -> NDArray[np.float64]:
    """Reads a transition matrix, float64 [K, K], from an .npy file or a text of K lines.

    The values of a line are divided by commas, semicolons or tabs. `inject` checks signs and sums.

    Raises:
        UserError: The file is missing, or is not a square table of numbers.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            is_npy = file.read(len(NPY_MAGIC)) == NPY_MAGIC
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; pass a transition matrix") from error
    except OSError as error:
        raise _wrong_matrix(path, error_text(error)) from error
    return _read_npy_matrix(path) if is_npy else _read_text_matrix(path)


def _read_npy_matrix(path: Path) -> NDArray[np.float64]:
    with open_npz(path) as arrays:
        header = arrays.headers[""]
        if len(header.shape) != 2:
            raise UserError(
                f"{path}: has {len(header.shape)} dimensions; write K rows of K probabilities"
            )
        if header.dtype.kind not in "iuf":
            raise _wrong_matrix(path, f"values of type {header.dtype}")
        return arrays.read("", _LARGEST_MATRIX).astype(np.float64)


def _read_text_matrix(path: Path) -> NDArray[np.float64]:
    rows: list[NDArray[np.float64]] = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            while line := file.readline(_LARGEST_LINE + 1):
                if len(line) > _LARGEST_LINE:
                    raise _wrong_matrix(path, f"line {len(rows) + 1} is too long")
                if not line.strip():
                    continue
                rows.append(np.array(re.split("[,;\t]", line.strip()), dtype=np.float64))
                if len(rows[-1]) != len(rows[0]):
                    raise _wrong_matrix(
                        path, f"{len(rows[0])} values in row 1, {len(rows[-1])} in row {len(rows)}"
                    )
                if len(rows) > len(rows[0]):
                    raise _wrong_matrix(path, f"more than {len(rows[0])} rows of so many values")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise _wrong_matrix(path, error_text(error)) from error
    if not rows:
        raise _wrong_matrix(path, "it is empty")
    return np.array(rows)


def _wrong_matrix(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: cannot be read as a table of numbers ({reason}); write K rows of K probabilities"
    )
