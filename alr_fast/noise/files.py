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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.index import SampleIndex
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
    saved = _read(path)
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


def _read(path: str | os.PathLike) -> dict[str, NDArray[Any]]:
    """Arrays of a file of noisy labels, checked against `FIELDS` and for consistency."""
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            saved = {name: archive[name] for name in FIELDS}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; make it with python -m alr_fast.noise") from error
    except Exception as error:  # ValueError, OSError, EOFError, BadZipFile, zlib.error, ...
        reason = " ".join(str(error).split()).strip("'\"") or type(error).__name__
        raise _wrong_file(path, reason) from error
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
    """Reads a transition matrix, float64 [rows, columns], from a .npy or comma-separated .csv file.

    `inject` checks shape, signs and sums.

    Raises:
        UserError: The file is missing, has another suffix, or is not a table of numbers.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".csv"):
        raise UserError(f"{path}: a transition matrix must be a .npy or a .csv file")
    try:
        if suffix == ".npy":
            matrix = np.load(path, allow_pickle=False)
            if not isinstance(matrix, np.ndarray):
                raise ValueError("an archive of arrays")
            matrix = matrix.astype(np.float64)
        else:
            matrix = np.array(
                [
                    [float(value) for value in line.split(",")]
                    for line in path.read_text(encoding="utf-8-sig").splitlines()
                    if line.strip()
                ],
                dtype=np.float64,
            )
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; pass a transition matrix") from error
    except Exception as error:  # of as many types as in `_read`
        reason = error_text(error)
        raise UserError(
            f"{path}: cannot be read as a table of numbers ({reason}); write K rows of K "
            "probabilities"
        ) from error
    if matrix.ndim != 2:
        raise UserError(f"{path}: has {matrix.ndim} dimensions; write K rows of K probabilities")
    return matrix
