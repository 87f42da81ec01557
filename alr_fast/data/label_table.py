"""Tables of labels by sample id, as `python -m alr_fast.export` and the report write them: labels
to train on, hard or soft, or samples to leave out.

CSV or Parquet, with the columns ``id`` and ``path``, which identify the sample, and for each use:

    labels to train on   ``label``, set by a person (empty: unchanged), else ``refined_label``; or
                         the column that --data.label_key names
    soft labels          ``probabilities``, in CSV ``p0``, ``p1``, ...
    samples to leave out ``mark``: all marked samples except keep; else ``score``: those above a
                         limit

Samples that a table does not list are left unchanged.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.index import SampleIndex
from alr_fast.data.tables import Table, TableError, as_text, open_table
from alr_fast.errors import UserError

SUFFIXES = (".csv", ".parquet")
PROBABILITIES = "probabilities"
KEEP = "keep"  # a mark of the report
_LABELS = ("label", "refined_label")  # the first one in the table is used
_NAMED = (
    *(("given", "given_name"), ("refined", "refined_name")),
    *(("given_label", "given_name"), ("refined_label", "refined_name")),
    ("label", "label_name"),
)
_SURROGATES = re.compile("[\ud800-\udfff]")  # non-UTF-8 bytes, see os.fsdecode
_BATCH_VALUES = 10 << 16  # probabilities in a batch of rows

Columns = dict[str, NDArray[Any]]


def is_label_table(path: str) -> bool:
    """Whether the name of a file is that of a table."""
    return path.lower().endswith(SUFFIXES)


def read_labels(
    table: str | Path, index: SampleIndex, key: str | None
) -> tuple[NDArray[np.int64], int]:
    """Labels of all samples of an index, and the number of samples with a label in the table.

    Args:
        table: The file.
        index: The whole split, with the labels of the data set.
        key: Column; ``probabilities`` for the most probable class of each row, None for the first
            of ``label`` and ``refined_label`` that is in the table.

    Raises:
        UserError: The table cannot be read, lacks a column, or does not fit the samples or classes.
    """
    labels = index.labels.copy()
    listed = 0
    if key == PROBABILITIES:
        for rows, p in read_probabilities(table, index):
            labels[rows] = p.argmax(1)
            listed += len(rows)
        return labels, listed
    with _open(table, index) as samples:
        name = key or next((name for name in _LABELS if name in samples.columns), _LABELS[-1])
        for rows, columns in samples.batches([name]):
            filled, values = samples.labels(name, columns)
            outside = values[(values < 0) | (values >= index.num_classes)]
            if len(outside):
                samples.fail(
                    f"column {name} has the label {outside[0]}; the data set has "
                    f"{index.num_classes} classes, 0 to {index.num_classes - 1}"
                )
            labels[rows[filled]] = values
            listed += len(values)
    return labels, listed


def read_probabilities(
    table: str | Path, index: SampleIndex
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Soft labels in batches: rows of the index, int64 [M], and probabilities, float32 [M, K].

    Args:
        table: The file.
        index: All or some of the samples; other samples in the table are ignored.

    Raises:
        UserError: As for `read_labels`; or a row is not a distribution.
    """
    k = index.num_classes
    with _open(table, index) as samples:
        names = [PROBABILITIES]
        if PROBABILITIES not in samples.columns:
            names = [f"p{label}" for label in range(k)]
        if names[0] not in samples.columns or f"p{k}" in samples.columns:
            samples.fail(
                f"has no probabilities of {k} classes; export it with --soft from a run on this "
                "data"
            )
        for rows, columns in samples.batches(names, ignore_unknown=True):
            p = _probabilities(samples, [columns[name] for name in names])
            if p.shape[1] != k:
                samples.fail(f"has {p.shape[1]} probabilities a row, the data set {k} classes")
            sums = p.sum(1, keepdims=True)
            wrong = ~(np.isfinite(p).all(1) & (p >= 0).all(1) & (np.abs(sums[:, 0] - 1) < 0.02))
            if wrong.any():
                sample_id = index.sample_ids[rows[wrong][0]]
                samples.fail(f"the probabilities of sample {sample_id} are not a distribution")
            yield rows, p / sums


def _probabilities(samples: "_Samples", columns: list[NDArray[Any]]) -> NDArray[np.float32]:
    """Probabilities, float32 [M, L], from a column of lists or from L columns."""
    if len(columns) == 1 and columns[0].ndim == 1:
        samples.fail(f"column {PROBABILITIES} does not contain lists of one length")
    try:
        if len(columns) == 1:
            return columns[0].astype(np.float32)
        return np.stack([column.astype(np.float32) for column in columns], axis=1)
    except ValueError as error:
        samples.fail(f"its probabilities are not numbers ({error})")


def read_left_out(table: Path, index: SampleIndex, above: float) -> NDArray[np.int64] | None:
    """Rows to leave out, int64 ascending; None for a CSV file without marks and scores.

    Args:
        table: The file.
        index: The whole split.
        above: Score above which a sample is left out, in a table without marks.

    Raises:
        UserError: As for `read_labels`.
    """
    found = [np.empty(0, dtype=np.int64)]
    with _open(table, index) as samples:
        name = next((name for name in ("mark", "score") if name in samples.columns), None)
        if name is None:
            if table.suffix.lower() == ".csv":
                return None
            samples.fail("has neither a column score nor a column mark to leave samples out by")
        for rows, columns in samples.batches([name]):
            if name == "mark":
                marks = [text.strip() for text in as_text(columns[name])]
                out = np.array([mark not in (KEEP, "") for mark in marks], dtype=bool)
            else:
                try:
                    out = columns[name].astype(np.float64) > above
                except ValueError as error:
                    samples.fail(f"column score does not contain numbers ({error})")
            found.append(rows[out])
    return np.unique(np.concatenate(found))


class _Samples:
    """The samples that a table lists.

    Attributes:
        columns: Names of the columns of the table.
    """

    def __init__(self, table: Table, index: SampleIndex) -> None:
        self.columns = table.columns
        self._table = table
        self._index = index
        self._class_names = np.array(index.class_names, dtype=object)

    def fail(self, message: str) -> NoReturn:
        """Raises a `UserError` about the table."""
        raise UserError(message, argument="table", value=self._table.path)

    def batches(
        self, columns: Sequence[str], *, ignore_unknown: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], Columns]]:
        """Rows of the index, int64 [M], and these columns of the table for them.

        Args:
            columns: Names of columns other than id and path.
            ignore_unknown: Skip samples whose id is not in the index; else they are an error.
        """
        self._check_columns([*columns, "id", "path"])
        self._check_classes()
        # A Parquet file of a run lists the class names once, other tables in columns.
        named = [pair for pair in _NAMED if set(pair) <= set(self.columns)]
        if b"class_names" in self._table.metadata:
            named = []
        wanted = dict.fromkeys(["id", "path", *columns, *(name for pair in named for name in pair)])
        seen = np.zeros(len(self._index), dtype=bool)
        size = max(_BATCH_VALUES // self._index.num_classes, 1)
        for batch in self._table.batches(list(wanted), size):
            found = batch.columns
            rows = self._index.find_rows(self._integers("id", found["id"]))
            if ignore_unknown:
                found = {name: column[rows >= 0] for name, column in found.items()}
                rows = rows[rows >= 0]
            self._check_samples(rows, found)
            for label, name in named:
                self._check_names(label, name, found)
            if seen[rows].any() or len(np.unique(rows)) < len(rows):
                self.fail("lists a sample twice; keep one line of each")
            seen[rows] = True
            if len(rows):
                yield rows, found

    def labels(self, name: str, columns: Columns) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Rows of a batch with a label in this column, bool [M], and the labels, int64 [<= M]."""
        filled = np.array([text.strip() != "" for text in as_text(columns[name])], dtype=bool)
        return filled, self._integers(name, columns[name][filled])

    def _integers(self, name: str, column: NDArray[Any]) -> NDArray[np.int64]:
        try:
            numbers = column.astype(np.float64)  # columns with empty cells often contain 1.0
        except ValueError as error:
            self.fail(f"column {name} does not contain integers ({error})")
        wrong = ~(np.abs(numbers) < 2**53) | (numbers != np.floor(numbers))
        if wrong.any() or column.ndim > 1:
            self.fail(f"column {name} does not contain integers ({column[wrong][:1].tolist()})")
        return numbers.astype(np.int64)

    def _check_columns(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.columns:
                remedy = (
                    "or of find_issues with paths"
                    if name == "path"
                    else "or the name of another column of labels"
                )
                self.fail(
                    f"has no column {name}; it has {', '.join(self.columns[:20])}; pass a table "
                    f"of python -m alr_fast.export, {remedy}"
                )

    def _check_classes(self) -> None:
        """Compares the class names in the metadata, which a run writes, with the data set."""
        stored = self._table.metadata.get(b"class_names")
        names = list(self._index.class_names)
        if stored is not None and json.loads(stored) != names:
            self.fail(
                f"was made with the classes {', '.join(json.loads(stored)[:3])}, ..., the data "
                f"set has {', '.join(names[:3])}, ...; pass the data that it was made from"
            )

    def _check_samples(self, rows: NDArray[np.int64], columns: Columns) -> None:
        wrong = np.flatnonzero(rows < 0)
        if not len(wrong):
            nameless = np.flatnonzero(as_text(columns["path"]) == "")
            if len(nameless):
                self.fail(
                    f"has no path of sample {columns['id'][nameless[0]]}, so it may be another "
                    "sample; pass the paths to find_issues (paths=)"
                )
            wrong = differing(as_text(columns["path"]), self._index.paths.take(rows))
        if len(wrong):
            sample_id, path = (as_text(columns[name])[wrong[0]] for name in ("id", "path"))
            self.fail(
                f"its sample {sample_id} ({path}) is not in this data set; pass the data that it "
                "was made from"
            )

    def _check_names(self, label: str, name: str, columns: Columns) -> None:
        """Compares the class name beside each label with the data set."""
        filled, labels = self.labels(label, columns)
        names = as_text(columns[name])[filled]
        outside = np.flatnonzero((labels < 0) | (labels >= len(self._class_names)))
        if len(outside):
            k = outside[0]
            self.fail(f"calls class {labels[k]} {names[k]}, the data set has no such class")
        known = self._class_names[labels]
        for k in differing(names, known)[:1]:
            self.fail(f"calls class {labels[k]} {names[k]}, the data set {known[k]}")


def differing(written: NDArray[np.object_], known: Iterable[str]) -> NDArray[np.int64]:
    """Positions of texts of a table, dtype object, that do not stand for the known ones.

    The report puts an apostrophe before a text that a spreadsheet would read as a formula, and a
    browser writes U+FFFD for each non-UTF-8 byte.
    """
    texts = np.array(list(known), dtype=object)
    positions = np.flatnonzero(written != texts)
    shown = [_SURROGATES.sub("\ufffd", text) for text in texts[positions]]
    unquoted = [text.removeprefix("'") for text in written[positions]]
    return positions[np.array(unquoted, dtype=object) != np.array(shown, dtype=object)]


@contextmanager
def _open(table: str | Path, index: SampleIndex) -> Iterator[_Samples]:
    try:
        with open_table(Path(table)) as opened:
            yield _Samples(opened, index)
    except TableError as error:
        raise UserError(str(error), argument="table", value=error.where) from error
