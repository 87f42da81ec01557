"""Tables of labels to train on, hard or soft, or of samples to leave out, as
`alr-fast export` and the report write them, or as people keep them.

CSV or Parquet, with a column ``path`` (`matching.py`: how samples are found) and for each use:

    labels to train on   ``label``, set by a person (empty: unchanged), else ``refined_label``; or
                         the column that --data.label_key names
    soft labels          ``probabilities``, in CSV ``p0``, ``p1``, ...
    samples to leave out ``mark``: all marked samples except keep; else ``score``: those above a
                         limit

A label is the name of a class. Tables of a run write numbers, with the names in a column beside
them or, in Parquet, in the metadata: then the name counts. Other numbers are class numbers of the
data set only where no name is meant, see `ClassMap.resolve`.

Samples that a table does not list are left unchanged.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.index import SampleIndex
from alr_fast.data.label_files.mark_table import FIX, KEEP, MARK
from alr_fast.data.label_files.table_samples import LABELS, PROBABILITIES, open_samples
from alr_fast.data.tables import as_text, is_parquet, is_table


@dataclass(frozen=True)
class LabelsRead:
    """Labels in a table.

    Attributes:
        labels: The label of each sample of the index, int64 [N]; that of the data set if the table
            has none.
        listed: Number of samples with a label in the table.
        remarks: Lines for the user: what was not used, or read in a way that may surprise.
    """

    labels: NDArray[np.int64]
    listed: int
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class MarksRead:
    """Marks in a table.

    Attributes:
        rows: Row of the index for each row of the table, int64 [M]; -1 for an unknown sample.
        marks: keep, fix or unsure, or any other text, in lower case; empty for none, [M].
        labels: The class that a person chose, int64 [M]; -1 for none.
        lines: Number of each row in the file, int64 [M].
    """

    rows: NDArray[np.int64]
    marks: list[str]
    labels: NDArray[np.int64]
    lines: NDArray[np.int64]


def is_label_table(path: str) -> bool:
    """Whether a file is a table, see `is_table`."""
    return is_table(Path(path))


def read_labels(
    table: str | Path, index: SampleIndex, key: str | None, *, part: bool = False
) -> LabelsRead:
    """Labels of all samples of an index.

    Args:
        table: The file.
        index: The whole split, with the labels of the data set; with ``part`` some of its samples.
        key: Column; ``probabilities`` for the most probable class of each row, None for the first
            of ``label`` and ``refined_label`` that is in the table.
        part: Whether the table may list other samples of the split.

    Raises:
        UserError: The table cannot be read, lacks a column, or does not fit the samples or classes;
            or a sample is marked fix with its given label.
    """
    with open_samples(table, index, part=part) as samples:
        if key == PROBABILITIES:
            codes = np.full(len(samples.rows), -1)
            for position, p in samples.probabilities():
                codes[position] = p.argmax(1)
        else:
            name = key or samples.column_of_labels()
            if name == LABELS[0]:
                samples.check_marks()
            codes = samples.labels(name)
        samples.check_twice(codes, "label")
        told = (samples.rows >= 0) & (codes >= 0)
        labels = index.labels.copy()
        labels[samples.rows[told]] = codes[told]
        listed = len(np.unique(samples.rows[told]))
        return LabelsRead(labels, listed, samples.remarks)


def read_marks(table: Path, index: SampleIndex) -> MarksRead:
    """The marks of people in a table, as the report and `alr_fast.review` write them.

    A row without a mark, of a table that lists only the labels that were chosen, is a fix, or keep
    where its label is the given one.

    Args:
        table: The file.
        index: The samples, with the labels that were given when they were marked.

    Raises:
        UserError: As for `read_labels`; or no sample is in the index.
    """
    with open_samples(table, index, part=True) as samples:
        labels = samples.labels("label")
        samples.check_twice(labels, "label")
        known = samples.rows >= 0
        kept = np.full(len(labels), False)
        kept[known] = labels[known] == index.labels[samples.rows[known]]
        marks = [
            "" if label < 0 else KEEP if same else FIX
            for label, same in zip(labels.tolist(), kept.tolist(), strict=True)
        ]
        if MARK in samples.columns:
            for position, columns in samples.batches([MARK]):
                marks[position] = [
                    text.strip().lower() or mark
                    for text, mark in zip(as_text(columns[MARK]), marks[position], strict=True)
                ]
        return MarksRead(samples.rows, marks, labels, samples.lines)


def read_probabilities(
    table: str | Path, index: SampleIndex, log: Callable[[str], None] = lambda text: None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Soft labels in batches: rows of the index, int64 [M], and probabilities, float32 [M, K].

    Args:
        table: The file.
        index: All or some of the samples; other samples in the table are ignored.
        log: Takes a line about samples that are not listed.

    Raises:
        UserError: As for `read_labels`; or a row is not a distribution, a sample is listed twice,
            or no sample is in the index.
    """
    with open_samples(table, index, part=True) as samples:
        samples.check_twice(np.arange(len(samples.rows)), "distribution")
        for remark in samples.remarks:
            log(remark)
        for position, p in samples.probabilities():
            rows = samples.rows[position]
            if (rows >= 0).any():
                yield rows[rows >= 0], p[rows >= 0]


def read_left_out(
    table: Path,
    index: SampleIndex,
    above: float,
    log: Callable[[str], None] = lambda text: None,
    *,
    keep_labelled: bool = False,
) -> NDArray[np.int64] | None:
    """Rows to leave out, int64 ascending; None for a list without marks and scores.

    Args:
        table: The file.
        index: The whole split.
        above: Score above which a sample is left out, in a table without marks.
        log: Takes a line about samples that are unknown.
        keep_labelled: Whether marked samples with a label are not left out: it is trained on.

    Raises:
        UserError: As for `read_labels`.
    """
    with open_samples(table, index, match=False) as samples:
        name = next((name for name in (MARK, "score") if name in samples.columns), None)
        if name is None:
            if not is_parquet(table):
                return None
            samples.fail("has neither a column score nor a column mark to leave samples out by")
        samples.match()
        out = np.empty(len(samples.rows), dtype=np.int64)
        more = ["label"] if name == MARK and keep_labelled else []
        for position, columns in samples.batches([name, *more]):
            if name == MARK:
                marks = [text.strip().lower() for text in as_text(columns[name])]
                out[position] = [mark not in (KEEP, "") for mark in marks]
                if keep_labelled:
                    out[position] &= [not text.strip() for text in as_text(columns["label"])]
            else:
                try:
                    out[position] = columns[name].astype(np.float64) > above
                except ValueError as error:
                    samples.fail(f"column score does not contain numbers ({error})")
        samples.check_twice(out, name)
        for remark in samples.remarks:
            log(remark)
        return np.unique(samples.rows[(samples.rows >= 0) & (out == 1)])
