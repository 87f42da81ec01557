"""The refined labels as a table: CSV, or Parquet with pyarrow."""

import contextlib
import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alr_fast.errors import UserError
from alr_fast.utils.files import replacing

if TYPE_CHECKING:
    from alr_fast.labels.refined import RefinedLabels


_PATH_CHUNK = 1 << 16  # paths that are looked at together
_GROUP_ROWS = 1 << 16  # of a Parquet file, in which pieces are gathered


def export(labels: "RefinedLabels", path: Path, *, soft: bool = False) -> None:
    """Writes the table; the file is there whole or as it was.

    Args:
        labels: Of a run.
        path: File with one of `SUFFIXES`; one that exists is replaced.
        soft: With all probabilities.

    Raises:
        UserError: The file cannot be written.
    """
    writer = _csv_writer if path.suffix == ".csv" else _parquet_writer
    with replacing(path) as fresh, writer(fresh, labels, soft) as write:
        for rows in labels.slices():
            write(labels.columns(rows, soft=soft))


@contextlib.contextmanager
def _csv_writer(
    path: Path, labels: "RefinedLabels", soft: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    # Bytes of a path that are no UTF-8 are written as they are.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        begun = False

        def write(columns: dict[str, Any]) -> None:
            nonlocal begun
            rows = columns.pop("probabilities", None)
            if rows is not None:
                columns |= {f"p{k}": rows[:, k] for k in range(rows.shape[1])}
            if not begun:
                writer.writerow(columns)
                begun = True
            writer.writerows(zip(*map(_plain, columns.values()), strict=True))

        yield write


def _plain(column: Any) -> Iterable[Any]:
    """A column for CSV; a number of single precision in the fewest digits that give it back."""
    if isinstance(column, list):
        return column
    return map(str, column) if column.dtype == np.float32 else column.tolist()


@contextlib.contextmanager
def _parquet_writer(
    path: Path, labels: "RefinedLabels", soft: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    index = labels.index
    texts = {
        "path": index.paths,
        "given_name": index.class_names,
        "refined_name": index.class_names,
    }
    as_bytes = {name for name, column in texts.items() if not _are_text(column)}
    # The trainer compares the names of the classes; the method is for people.
    facts = {"method": labels.method, "class_names": json.dumps(index.class_names)}
    with contextlib.ExitStack() as stack:
        writer = None
        waiting: list[pa.Table] = []

        def array(name: str, column: Any) -> pa.Array:
            if name == "probabilities":
                flat = pa.array(column.reshape(-1))
                return pa.FixedSizeListArray.from_arrays(flat, column.shape[1])
            if name in as_bytes:
                return pa.array([os.fsencode(text) for text in column], pa.binary())
            return pa.array(column)

        def flush() -> None:
            nonlocal writer
            if not waiting:
                return
            if writer is None:
                schema = waiting[0].schema.with_metadata(facts)
                writer = stack.enter_context(ParquetWriter(path, schema, compression="zstd"))
            writer.write_table(pa.concat_tables(waiting))
            waiting.clear()

        def write(columns: dict[str, Any]) -> None:
            waiting.append(pa.table({name: array(name, c) for name, c in columns.items()}))
            if soft or sum(table.num_rows for table in waiting) >= _GROUP_ROWS:
                flush()

        yield write
        flush()


def save_transition(labels: "RefinedLabels", path: Path) -> None:
    """Writes the transition matrix that the refined labels stand for, K rows of K probabilities.

    Raises:
        UserError: There are too many classes, or the file cannot be written.
    """
    if labels.transition is None:
        raise UserError(
            f"--transition {path}: no matrix is estimated of {labels.index.num_classes:,} classes; "
            "leave it out"
        )
    with replacing(path) as fresh:
        np.savetxt(fresh, labels.transition, delimiter=",", fmt="%.9g")


def _are_text(texts: Sequence[str]) -> bool:
    """Whether all are UTF-8, as a column of text must be."""
    try:
        for first in range(0, len(texts), _PATH_CHUNK):
            "".join(texts[first : first + _PATH_CHUNK]).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def summary_lines(labels: "RefinedLabels") -> list[str]:
    """What the bank says of the labels as a whole, and how far that is from the truth."""
    index = labels.index
    lines = [
        f"{labels.method}: {labels.noise.rate:.1%} of {len(index):,} labels refined to another "
        f"class{'' if labels.complete else ', in a run that was not finished'}"
    ]
    if index.clean_labels is not None:
        lines.append(f"wrong are {(index.labels != index.clean_labels).mean():.1%}")
        if labels.transition_error is not None:
            lines[-1] += (
                f"; error of the estimated transition matrix {labels.transition_error:.3f} (0 to 2)"
            )
    return lines
