"""Tables of labels by sample id, as `python -m alr_fast.export` and the report write them: labels
to train on, hard or soft, or samples to leave out.

CSV or Parquet, with the columns ``id`` and ``path`` to find the sample by and, for each use:

    labels to train on   ``label``, a person's (empty to leave it as it is), else ``refined_label``;
                         or the column that --data.label_key names
    soft labels          ``probabilities``, in CSV ``p0``, ``p1``, ...
    samples to leave out ``mark``: all but those marked keep; else ``score``: those above a limit

Samples that a table does not list are left as they are.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.index import SampleIndex
from alr_fast.errors import UserError
from alr_fast.utils.command import need

SUFFIXES = (".csv", ".parquet")
PROBABILITIES = "probabilities"
KEEP = "keep"  # a mark of the report
_LABELS = ("label", "refined_label")  # the first of them that there is
_PAIRS = (("given", "given_name"), ("refined", "refined_name"), ("given_label", "given_name"),
          ("refined_label", "refined_name"))  # fmt: skip
_SURROGATES = re.compile("[\ud800-\udfff]")  # bytes that are no UTF-8, see os.fsdecode
_BATCH = 1 << 16  # rows read at once, fewer where they are long


def is_label_table(path: str) -> bool:
    """Whether a file is a table by its name."""
    return path.lower().endswith(SUFFIXES)


def read_labels(
    path: str, index: SampleIndex, key: str | None, *, option: str
) -> tuple[NDArray[np.int64], int]:
    """Labels of all samples of an index, and how many of them the table lists.

    Args:
        path: The table.
        index: The whole split, with the labels as the data set gives them.
        key: Column, None for the first of ``label`` and ``refined_label`` that there is;
            ``probabilities`` for the most probable class of each row.
        option: The option that names the table, for messages.

    Raises:
        UserError: It cannot be read, lacks a column, or does not fit the samples or classes.
    """
    labels = index.labels.copy()
    listed = 0
    with _open(path, option) as table:
        if key == PROBABILITIES:
            for rows, p in _probabilities(table, index):
                labels[rows] = p.argmax(1)
                listed += len(rows)
            return labels, listed
        column = key or next((name for name in _LABELS if name in table.names), _LABELS[-1])
        table.need(column)
        for rows, columns in table.samples(index, [column]):
            given = [str(value).strip() if value is not None else "" for value in columns[column]]
            chosen = np.array([value != "" for value in given])
            try:
                values = np.array([_whole(value) for value in given if value], dtype=np.int64)
            except (ValueError, OverflowError) as error:
                table.fail(f"column {column} holds no whole numbers ({error})")
            outside = (values < 0) | (values >= index.num_classes)
            if outside.any():
                table.fail(
                    f"column {column} has the label {values[outside][0]}; the data set has "
                    f"{index.num_classes} classes, 0 to {index.num_classes - 1}"
                )
            labels[rows[chosen]] = values
            listed += len(values)
    return labels, listed


def read_probabilities(
    path: str, index: SampleIndex, *, option: str
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Soft labels, in pieces: rows of the index, int64 [M], and probabilities, float32 [M, K].

    Args:
        path: The table.
        index: Some or all of the samples; what the table lists beside them is passed over.
        option: The option that names the table, for messages.

    Raises:
        UserError: As `read_labels` does; or a row is no distribution.
    """
    with _open(path, option) as table:
        yield from _probabilities(table, index)


def read_left_out(path: Path, index: SampleIndex, above: float) -> NDArray[np.int64] | None:
    """Rows, int64 ascending, that a table leaves out; None where it has neither marks nor scores.

    Args:
        path: The table.
        index: The whole split.
        above: Score above which a sample is left out where nobody has marked it.

    Raises:
        UserError: As `read_labels` does.
    """
    found = []
    with _open(str(path), "data.exclude") as table:
        column = next((name for name in ("mark", "score") if name in table.names), None)
        if column is None:
            if path.suffix.lower() != ".csv":  # which may be a list of `verify`
                table.fail("has neither a column score nor mark, which say what is left out")
            return None
        for rows, columns in table.samples(index, [column]):
            values = columns[column]
            if column == "mark":
                out = np.array([str(value or "").strip() not in (KEEP, "") for value in values])
            else:
                try:
                    out = np.array([float(value) for value in values]) > above
                except (TypeError, ValueError) as error:
                    table.fail(f"column score holds no numbers ({error})")
            found.append(rows[out])
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def _probabilities(table: "_Table", index: SampleIndex) -> Iterator[tuple[NDArray, NDArray]]:
    k = index.num_classes
    columns = [PROBABILITIES] if PROBABILITIES in table.names else [f"p{i}" for i in range(k)]
    if columns[0] not in table.names or f"p{k}" in table.names:
        table.fail(
            f"has no probabilities of {k} classes; export it with --soft from a run on this data"
        )
    for rows, found in table.samples(index, columns, whole=False):
        try:
            p = np.array([found[name] for name in columns], dtype=np.float32)
            p = p[0] if columns[0] == PROBABILITIES else p.T
        except (TypeError, ValueError) as error:
            table.fail(f"its probabilities are no numbers ({error})")
        if p.shape != (len(rows), k):
            table.fail(f"has {p.shape[-1]} probabilities a row, the data set {k} classes")
        sums = p.sum(1, keepdims=True)
        wrong = ~(np.isfinite(p).all(1) & (p >= 0).all(1) & (np.abs(sums[:, 0] - 1) < 0.02))
        if wrong.any():
            sample = index.sample_ids[rows[wrong][0]]
            table.fail(f"the probabilities of sample {sample} are no distribution")
        yield rows, p / sums


class _Table:
    """A table that is read in pieces.

    Attributes:
        names: Its columns.
    """

    def __init__(self, path: str, option: str, names: Sequence[str], batches: Any, classes) -> None:
        self.names = list(names)
        self._path, self._option, self._batches, self._classes = path, option, batches, classes

    def fail(self, what: str) -> None:
        """Raises a `UserError` about the table."""
        raise UserError(f"--{self._option} {self._path}: {what}")

    def need(self, *columns: str) -> None:
        """Makes sure that the columns are there."""
        for column in columns:
            if column not in self.names:
                self.fail(
                    f"has no column {column}; it has {', '.join(self.names[:20])}. Name the file "
                    "of python -m alr_fast.export, or another column with --data.label_key"
                )

    def samples(
        self, index: SampleIndex, columns: Sequence[str], *, whole: bool = True
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
        """Rows of the index, int64 [M], and the columns of the table for them.

        Args:
            index: The samples.
            columns: Beside id and path.
            whole: Whether an id that the index does not have is an error; else it is passed over.
        """
        self.need("id", "path", *columns)
        # Where names of classes stand beside their numbers, both must be those of the data.
        pairs = [pair for pair in _PAIRS if set(pair) <= set(self.names) and self._classes is None]
        wanted = dict.fromkeys((*columns, *(name for pair in pairs for name in pair)))
        if self._classes is not None and list(index.class_names) != self._classes:
            self.fail(
                f"was made with the classes {', '.join(self._classes[:3])}, ..., the data set has "
                f"{', '.join(index.class_names[:3])}, ...; pass the data that it was made from"
            )
        seen = np.zeros(len(index), dtype=bool)
        for batch in self._batches(["id", "path", *wanted], index.num_classes):
            try:
                ids = np.array([_whole(value) for value in batch["id"]], dtype=np.int64)
            except (TypeError, ValueError, OverflowError) as error:
                self.fail(f"column id holds no whole numbers ({error})")
            places = np.searchsorted(index.sample_ids, ids)
            known = places < len(index)
            known[known] = index.sample_ids[places[known]] == ids[known]
            if not known.all():
                if whole:
                    self._unknown_sample(batch, int(np.argmin(known)))
                batch = {name: _chosen(values, known) for name, values in batch.items()}
            rows = places[known]
            for place, (row, path) in enumerate(zip(rows, batch["path"], strict=True)):
                if not _same(path, index.paths[row]):
                    self._unknown_sample(batch, place)
            for number, name in pairs:
                for label, found in zip(batch[number], batch[name], strict=True):
                    if label not in (None, ""):
                        self._compare(label, found, index)
            if seen[rows].any() or len(np.unique(rows)) < len(rows):
                self.fail("lists a sample twice; keep one line of each")
            seen[rows] = True
            if len(rows):
                yield rows, batch

    def _compare(self, label: Any, name: str, index: SampleIndex) -> None:
        try:
            number = _whole(label)
        except (ValueError, OverflowError, TypeError):
            number = -1
        there = index.class_names[number] if 0 <= number < index.num_classes else None
        if there is None or not _same(name, there):
            self.fail(
                f"calls class {label} {name}, the data set "
                + ("has no such class" if there is None else there)
            )

    def _unknown_sample(self, batch: dict[str, Any], place: int) -> None:
        self.fail(
            f"its sample {batch['id'][place]} ({batch['path'][place]}) is not in this data set; "
            "pass the data that it was made from"
        )


def _same(written: str, text: str) -> bool:
    """Whether a text of a table stands for this one.

    The report puts an apostrophe before what a spreadsheet takes for a formula, and a browser
    writes U+FFFD for each byte that is no UTF-8.
    """
    return written == text or written.removeprefix("'") == _SURROGATES.sub("\ufffd", text)


def _whole(value: Any) -> int:
    """A whole number, also as ``1.0``, which a column with empty cells often has.

    Raises:
        ValueError: It is none.
    """
    number = float(value)
    if not number.is_integer():
        raise ValueError(f"{value!r}")
    return int(number)


def _chosen(values: Any, keep: NDArray[np.bool_]) -> Any:
    if isinstance(values, np.ndarray):
        return values[keep]
    return [value for value, kept in zip(values, keep, strict=True) if kept]


@contextmanager
def _open(path: str, option: str) -> Iterator[_Table]:
    opened = _open_parquet if path.lower().endswith(".parquet") else _open_csv
    try:
        with opened(path, option) as table:
            yield table
    except OSError as error:
        also = " or python -m alr_fast.data verify" if option == "data.exclude" else ""
        raise UserError(
            f"--{option} {path}: {error.strerror or error}; name a file that python -m "
            f"alr_fast.export{also} wrote"
        ) from error


@contextmanager
def _open_csv(path: str, option: str) -> Iterator[_Table]:
    # Bytes that are no UTF-8 stand for themselves, as they do in names of files.
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)

        def batches(columns: Sequence[str], num_classes: int) -> Iterator[dict[str, list]]:
            batch: dict[str, list] = {name: [] for name in columns}
            for line in reader:
                if None in line or None in line.values():
                    raise UserError(
                        f"--{option} {path}, line {reader.line_num}: has not as many fields as the "
                        "header; correct the line"
                    )
                for name in columns:
                    batch[name].append(line[name])
                if len(batch["id"]) == max(_BATCH * 10 // num_classes, 1):
                    yield batch
                    batch = {name: [] for name in columns}
            if batch["id"]:
                yield batch

        try:
            yield _Table(path, option, reader.fieldnames or (), batches, None)
        except csv.Error as error:
            raise UserError(f"--{option} {path}: is not a CSV table: {error}") from error


@contextmanager
def _open_parquet(path: str, option: str) -> Iterator[_Table]:
    need(("pyarrow",), "train", what=f"--{option} {path}")
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:

            def batches(columns: Sequence[str], num_classes: int) -> Iterator[dict[str, Any]]:
                size = max(_BATCH * 10 // num_classes, 1)
                for batch in file.iter_batches(size, columns=list(columns)):
                    yield {
                        name: _values(name, column, table)
                        for name, column in zip(batch.schema.names, batch.columns, strict=True)
                    }

            facts = file.schema_arrow.metadata or {}
            classes = json.loads(facts[b"class_names"]) if b"class_names" in facts else None
            table = _Table(path, option, file.schema_arrow.names, batches, classes)
            yield table
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--{option} {path}: cannot be read as Parquet ({reason}); export it anew"
        ) from error


def _values(name: str, column: Any, table: _Table) -> Any:
    """A column of a Parquet file as an array [M, K], or a list of numbers or texts."""
    if name == PROBABILITIES:
        try:
            lengths = column.value_lengths().to_numpy(zero_copy_only=False)
            flat = column.flatten().to_numpy(zero_copy_only=False)
        except (AttributeError, TypeError, ValueError):
            lengths = flat = np.empty(0)
        if column.null_count or len(lengths) < len(column) or len(set(lengths.tolist())) > 1:
            table.fail(f"column {PROBABILITIES} holds no lists of one length")
        return flat.reshape(len(column), -1) if len(column) else flat
    values = column.to_pylist()
    if name == "path" or name.endswith("_name"):
        return [
            v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else str(v or "")
            for v in values
        ]
    return values
