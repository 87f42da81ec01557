"""Files of noisy labels and of transition matrices.

Noisy labels are a numpy archive (.npz) without pickles. It has one entry for each sample in
``ids``, ``labels`` (noisy) and ``original`` (before), all int64 [N], its ``paths``, uint8, each
followed by a zero byte, and ``class_names`` [K], ``kind``, ``requested_rate``, ``realised_rate``,
``seed``, ``sample_fingerprint`` and ``format``.

Labels are found by path, the id breaks ties, and classes by name, so that the file of a whole data
set serves every subset of it, and the data set after images or classes were added. Reading checks
that the original label of each sample is that of the data set. Files of format 1 have no paths:
their labels are found by id, and if the index has as many samples as the file, the fingerprints of
ids and paths must agree; that of a subset cannot be compared with that of the whole.
"""

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.classes import ClassMap
from alr_fast.data.index import PathTable, SampleIndex
from alr_fast.data.tables.npz import NPY_MAGIC, ArraysError, open_npz
from alr_fast.errors import UserError
from alr_fast.noise.injection import InjectedNoise, describe
from alr_fast.utils.files import open_regular, replacing
from alr_fast.utils.shell import python_command
from alr_fast.utils.text import error_text, printable

FORMAT = "alr_fast noisy labels 2"
_WITHOUT_PATHS = "alr_fast noisy labels 1"
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
_BYTES_PER_PATH = 1 << 10
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
        "paths": np.frombuffer(b"".join(index.paths.chunks()), dtype=np.uint8),
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


def load_labels(
    path: str | os.PathLike, index: SampleIndex, log: Callable[[str], None] = lambda text: None
) -> NDArray[np.int64]:
    """Noisy labels, int64 [N], of the rows of ``index``; see `load_noise`."""
    return load_noise(path, index, log).labels


def load_noise(
    path: str | os.PathLike, index: SampleIndex, log: Callable[[str], None] = lambda text: None
) -> InjectedNoise:
    """Reads noisy labels for the samples of an index.

    Args:
        path: File from `save_labels`.
        index: The data set of the file or a part of it, with the labels of the data set. It may
            have some samples more, which keep these labels.
        log: Takes a line about samples that are not in the file.

    Returns:
        Labels row by row. Realised rate and counts are those of these samples alone, the other
        values those of the file.

    Raises:
        UserError: The file is missing, is not from `save_labels`, or has other samples or classes.
    """
    saved = _read(path, len(index))
    rows = _rows_in_file(path, saved, index)
    known = rows >= 0
    missing = len(index) - np.count_nonzero(known)
    if missing:
        row = int(np.flatnonzero(~known)[0])
        if 2 * missing > len(index) or "paths" not in saved:
            raise UserError(
                f"{path}: has no label for {missing:,} of {len(index):,} samples (first: id "
                f"{index.sample_ids[row]}, {printable(index.paths[row])}); make the file from the "
                "whole data set"
            )
        log(
            f"{len(index) - missing:,} of {len(index):,} samples; {missing:,} of the data set are "
            f"not in the file and keep their label (first: {printable(index.paths[row])})"
        )
    names = saved["class_names"].tolist()
    classes = ClassMap(index.class_names)
    numbers = [classes.find(name) for name in names]
    here = np.array([-1 if number is None else number for number in numbers], dtype=np.int64)
    original, labels = (saved[name][rows[known]] for name in ("original", "labels"))
    gone = np.flatnonzero(here[np.concatenate([labels, original])] < 0)
    if len(gone):
        name = names[np.concatenate([labels, original])[gone[0]]]
        raise UserError(
            f"{path}: has labels of the class {name}, which the data set has not; pass the data "
            "set of the file, or make the file again"
        )
    changed = np.flatnonzero(here[original] != index.labels[known])
    if len(changed):
        row = int(np.flatnonzero(known)[changed[0]])
        raise UserError(
            f"{path}: made from other labels (first: {printable(index.paths[row])} was "
            f"{names[original[changed[0]]]}, in the data set "
            f"{index.class_names[index.labels[row]]}); pass the data set of the file, or make the "
            "file again"
        )
    noisy = index.labels.copy()
    noisy[known] = here[labels]
    return describe(
        noisy,
        index.labels.copy(),
        num_classes=index.num_classes,
        kind=saved["kind"].item(),
        requested_rate=saved["requested_rate"].item(),
        seed=saved["seed"].item(),
    )


def _rows_in_file(
    path: str | os.PathLike, saved: dict[str, NDArray[Any]], index: SampleIndex
) -> NDArray[np.int64]:
    """Position in the file for each row of the index, int64 [N]; -1 for none."""
    ids = saved["ids"]
    if "paths" in saved:
        ends = np.flatnonzero(saved["paths"] == 0) + 1
        paths = PathTable(saved["paths"], np.append(0, ends)[:-1], ends)
        names = tuple(saved["class_names"].tolist())
        there = SampleIndex(ids, paths, saved["labels"], None, names)
        return there.match(index.paths, index.sample_ids)
    fingerprint = saved["sample_fingerprint"].item()
    if len(index) == len(ids) and fingerprint != index.sample_fingerprint():
        raise UserError(
            f"{path}: made for other samples (their paths differ); pass the data set of the file, "
            "or make the file again"
        )
    rows = np.searchsorted(ids, index.sample_ids)
    found = rows < len(ids)
    found[found] = ids[rows[found]] == index.sample_ids[found]
    return np.where(found, rows, -1)


def _read(path: str | os.PathLike, num_samples: int) -> dict[str, NDArray[Any]]:
    """Arrays of a file of noisy labels, checked against `FIELDS` and for consistency.

    The file may be that of a data set of which ``num_samples`` are a part.
    """
    most = _BYTES_PER_SAMPLE * max(num_samples, _SAMPLES)
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file; make it with `{noise_command(path)}`")
    try:
        with open_npz(Path(path)) as archive:
            missing = [name for name in FIELDS if name not in archive.headers]
            if missing:
                raise _wrong_file(path, f"it lacks {', '.join(missing)}")
            saved = {name: archive.read(name, most) for name in FIELDS}
            if "paths" in archive.headers:
                saved["paths"] = archive.read("paths", most // _BYTES_PER_SAMPLE * _BYTES_PER_PATH)
    except ArraysError as error:
        raise _wrong_file(path, error.problem) from error
    for name, (kinds, dimensions) in FIELDS.items():
        if saved[name].dtype.kind not in kinds or saved[name].ndim != dimensions:
            raise _wrong_file(path, f"{name} is {saved[name].dtype} of shape {saved[name].shape}")
    if saved["format"].item() != (FORMAT if "paths" in saved else _WITHOUT_PATHS):
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
    if "paths" in saved and not _are_paths(saved["paths"], len(ids)):
        raise _wrong_file(path, f"paths are not {len(ids)} texts that end with a zero byte")
    return saved


def _are_paths(blob: NDArray[Any], count: int) -> bool:
    ends = np.flatnonzero(blob == 0)
    if blob.dtype != np.uint8 or blob.ndim != 1 or len(ends) != count:
        return False
    return bool((np.diff(ends, prepend=-1) > 1).all()) and len(blob) == (
        ends[-1] + 1 if count else 0
    )


def noise_command(path: str | os.PathLike, *words: str) -> str:
    """A command that writes noisy labels to a file; its user knows DIR and the noise."""
    noise = ("--data-root", "DIR", "--kind", "symmetric", "--rate", "0.4")
    return python_command("alr_fast.noise", *noise, "--output", Path(path), *words)


def _wrong_file(path: str | os.PathLike, reason: str) -> UserError:
    return UserError(
        f"{path}: not a file of noisy labels ({reason}); make it again with "
        f"`{noise_command(path, '--overwrite')}`"
    )


def read_matrix(path: str | os.PathLike) -> NDArray[np.float64]:
    """Reads a transition matrix, float64 [K, K], from an .npy file or a text of K lines.

    The values of a line are divided by commas, semicolons or tabs. `inject` checks signs and sums.

    Args:
        path: The file.

    Raises:
        UserError: The file is missing, or is not a square table of numbers.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
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
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig") as file:
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
