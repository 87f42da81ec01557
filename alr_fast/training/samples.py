"""The samples of a run in files: ids, paths, labels and names of classes.

A run writes them once, when it starts, and into the file of each label bank. So its labels can be
exported, and a checkpoint can be matched with a data set that has changed, without the data of that
time.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.bank.file import write_tensors
from alr_fast.bank.read_file import Columns, read_columns, strings
from alr_fast.data.datasets import Split
from alr_fast.data.images.sources import FeatureRows
from alr_fast.data.index import PathTable, SampleIndex
from alr_fast.errors import UserError
from alr_fast.utils.text import error_text

_LONGEST_PATH = 1 << 16  # bytes, on average


def samples_file(run: Path, fingerprint: str) -> Path:
    """The file of the samples with a fingerprint in the folder of a run.

    After the data set of a run has changed, older checkpoints refer to the samples before.
    """
    return run / f"samples-{fingerprint[:12]}.safetensors"


def save_samples(run: Path, split: Split) -> None:
    """Writes the samples of a run into its folder.

    Args:
        run: The folder.
        split: Training samples, with the labels to train on.

    Raises:
        UserError: They cannot be written.
    """
    path = samples_file(run, split.index.sample_fingerprint())
    write_tensors(path, sample_columns(split.index), sample_facts(split))


def load_samples(run: Path, fingerprint: str) -> tuple[SampleIndex, str] | None:
    """The samples with a fingerprint, and "images" or "features"; None if the run has no such file,
    as those of earlier versions.

    Raises:
        UserError: The file is damaged.
    """
    path = samples_file(run, fingerprint)
    if not path.exists():
        return None
    try:
        columns = read_columns(path)
        index = read_index(columns, strings(columns.metadata, "class_names"))
        if not columns.has_checksum or index.sample_fingerprint() != fingerprint:
            raise ValueError("it lists other samples than its name says")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as the samples of a run ({error_text(error)}); restore it, or "
            "train again"
        ) from error
    return index, columns.metadata.get("samples", "images")


def sample_columns(index: SampleIndex) -> dict[str, NDArray[Any]]:
    """The samples as arrays, the paths as bytes; inverse: `read_index`."""
    paths = index.paths
    lengths = np.asarray(paths.ends) - np.asarray(paths.starts)
    if (paths.starts[1:] == paths.ends[:-1]).all():  # of a whole split: not copied
        blob = np.asarray(paths.blob[paths.starts[0] : paths.ends[-1]])
    else:
        blob = np.frombuffer(bytearray().join(paths.chunks()), dtype=np.uint8)
    columns: dict[str, NDArray[Any]] = {
        "ids": index.sample_ids,
        "given_labels": index.labels,
        "paths": blob,
        "path_offsets": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
    }
    if index.clean_labels is not None:
        columns["clean_labels"] = index.clean_labels
    return columns


def sample_facts(split: Split) -> dict[str, str]:
    """What a file says about its samples."""
    index = split.index
    return {
        "sample_fingerprint": index.sample_fingerprint(),
        "label_fingerprint": index.label_fingerprint(),
        "class_names": json.dumps(index.class_names),
        "samples": "features" if isinstance(split.images, FeatureRows) else "images",
    }


def read_index(columns: Columns, class_names: tuple[str, ...]) -> SampleIndex:
    """The samples in a file.

    Args:
        columns: Of the file.
        class_names: Names of the K classes.

    Raises:
        ValueError: They are incomplete, or contradict each other.
    """
    ids = checked_ids(columns)
    n, k = len(ids), len(class_names)
    labels = {name: columns.array(name, np.int64, n) for name in ("given_labels", "clean_labels")
              if name != "clean_labels" or name in columns.arrays}  # fmt: skip
    for name, column in labels.items():
        if column.min() < 0 or column.max() >= k:
            raise ValueError(f"{name} are not all in [0, {k})")
    return SampleIndex(
        sample_ids=ids,
        paths=_read_paths(columns, n),
        labels=labels["given_labels"],
        clean_labels=labels.get("clean_labels"),
        class_names=class_names,
    )


def checked_ids(columns: Columns) -> NDArray[np.int64]:
    """The ids of the samples, int64 [N].

    Raises:
        ValueError: They are not ascending from 0 or more, or there are none.
    """
    found = columns.arrays.get("ids")
    ids = columns.array("ids", np.int64, 0 if found is None or found.ndim != 1 else len(found))
    if not len(ids) or ids[0] < 0 or (ids[1:] <= ids[:-1]).any():
        raise ValueError("ids are not ascending numbers")
    return ids


def _read_paths(columns: Columns, count: int) -> PathTable:
    blob = columns.arrays.get("paths")
    blob = columns.array("paths", np.uint8, 0 if blob is None else blob.size)
    offsets = columns.array("path_offsets", np.int64, count + 1)
    # A path is at least one byte and the zero byte at its end, the only one.
    good = (
        len(blob) <= _LONGEST_PATH * count
        and offsets[0] == 0
        and offsets[-1] == len(blob)
        and offsets.max() == len(blob)  # so that no difference overflows
        and offsets.min() == 0
        and bool((np.diff(offsets) >= 2).all())
        and np.count_nonzero(blob == 0) == count
        and bool((blob[offsets[1:] - 1] == 0).all())
    )
    if not good:
        raise ValueError(f"paths are not those of {count} samples")
    return PathTable(blob, offsets[:-1], offsets[1:])
