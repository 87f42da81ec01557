"""The samples that a table lists, and their labels, marks and probabilities; see `label_table`."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.classes import ClassMap, distinct
from alr_fast.data.index import SampleIndex
from alr_fast.data.label_files.mark_table import COLUMNS, MARK, wrong_fix
from alr_fast.data.label_files.matching import check_twice, match_table
from alr_fast.data.label_files.numbering import Numbering
from alr_fast.data.tables import Table, TableError, as_text, open_table
from alr_fast.errors import UserError
from alr_fast.utils.shell import python_command

PROBABILITIES = "probabilities"
LABELS = ("label", "refined_label")  # the first one in the table is used
# Columns of class numbers, and those with the names of these classes.
NAME_COLUMNS = {
    "label": "label_name",
    "given_label": "given_name",
    "refined_label": "refined_name",
    "given": "given_name",
    "refined": "refined_name",
}
_NUMBERED = ("given_label", "refined_label", "clean_label")  # never edited by people
_BATCH_VALUES = 10 << 16  # probabilities in a batch of rows
_ROWS = 1 << 16  # of labels that are read at once

Columns = dict[str, NDArray[Any]]


class TableSamples:
    """The samples that a table lists.

    Attributes:
        columns: Names of the columns of the table.
        rows: Row of the index for each row of the table, int64 [M]; -1 for an unknown sample.
        lines: Number of each row in the file, int64 [M].
    """

    def __init__(self, table: Table, index: SampleIndex, *, part: bool) -> None:
        self.columns = table.columns
        self._remarks: list[str] = []
        self._table = table
        self._index = index
        self._part = part
        self._classes = ClassMap(index.class_names)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Lines for the user, so far."""
        return (*self._table.remarks, *self._remarks)

    def match(self) -> None:
        """Finds the samples."""
        self._matched = match_table(self._table, self._index, part=self._part)
        self.rows = self._matched.rows
        self.lines = self._matched.lines
        self._remarks += self._matched.remarks

    def fail(self, message: str) -> NoReturn:
        """Raises a `UserError` about the table."""
        raise UserError(message, argument="table", value=self._table.path)

    def where(self, line: int | None) -> str:
        """A place of the table, for messages; for None the table."""
        return f"{self._table.path}" + (f", {self._table.unit} {line}" if line else "")

    def check_twice(self, values: NDArray[np.int64], what: str) -> None:
        """Checks that rows about the same sample agree, see `matching.check_twice`."""
        check_twice(self._table.path, self._table.unit, self._matched, values, what)

    def check_marks(self) -> None:
        """Checks that what is marked fix has another label, see `mark_table.wrong_fix`."""
        if MARK not in self.columns:
            return
        for position, columns in self.batches([name for name in COLUMNS if name in self.columns]):
            found = wrong_fix({name: as_text(column).tolist() for name, column in columns.items()})
            if found is not None:
                line = int(self._matched.lines[position][found[0]])
                raise UserError(found[1], argument="table", value=self.where(line))

    def batches(self, columns: Sequence[str], size: int = _ROWS) -> Iterator[tuple[slice, Columns]]:
        """Positions in ``rows``, and these columns of the table for them."""
        self._check_columns(columns)
        first = 0
        for batch in self._table.batches(columns, size):
            yield slice(first, first + len(batch.numbers)), batch.columns
            first += len(batch.numbers)

    def column_of_labels(self) -> str:
        """The column of labels to train on."""
        for name in LABELS:
            if name in self.columns:
                return name
        return self._table.find("label") or LABELS[0]

    def labels(self, name: str) -> NDArray[np.int64]:
        """Classes of the labels in this column, int64 [M].

        They are -1 for an empty cell, NaN in a column of numbers, and for unknown samples, whose
        classes may be unknown, too.
        """
        self._check_columns([name])
        numbering = self._numbering(other_than=name)
        beside = NAME_COLUMNS.get(name)
        pairs = _Pairs()
        known = self.rows >= 0
        for position, columns in self.batches(
            [name, beside] if beside and beside in self.columns else [name]
        ):
            if any(column.ndim > 1 for column in columns.values()):
                self.fail(f"column {name} contains lists; name a column with one label a row")
            own = {key: column[known[position]] for key, column in columns.items()}
            pairs.add(own[name], own.get(beside or ""))
        filled = [pair != ("", "") for pair in pairs.texts]
        lines = self._matched.lines[known][pairs.first].tolist()
        classes = np.full(len(filled), -1)
        classes[filled], positions = numbering.resolve(
            [pair for pair in pairs.texts if pair != ("", "")],
            [line for line, here in zip(lines, filled, strict=True) if here],
            numbered=name in _NUMBERED and numbering.known,
        )
        if numbering.known and numbering.differs:
            self._remarks.append("its classes have other numbers in the data set; the names count")
        if positions and not numbering.known:
            names = self._classes.names
            few = ", ".join(f"{k} is {name}" for k, name in enumerate(names[:2]))
            self._remarks.append(f"its labels are read as class numbers: {few}, ...")
        result = np.full(len(known), -1)
        result[known] = classes[pairs.codes]
        return result

    def _numbering(self, other_than: str | None = None) -> Numbering:
        """What the numbers of the table stand for, by the metadata, or else all pairs of columns
        but that of one label."""
        stored = self._names_in_metadata()
        numbering = Numbering(self._classes, where=self.where, argument="table", names=stored)
        for name, beside in NAME_COLUMNS.items() if stored is None else ():
            if name == other_than or not {name, beside} <= set(self.columns):
                continue
            pairs = _Pairs()
            for _, columns in self.batches([name, beside]):
                pairs.add(columns[name], columns[beside])
            lines = self._matched.lines[pairs.first].tolist()
            for (label, text), line in zip(pairs.texts, lines, strict=True):
                numbering.add(label, text, line)
        return numbering

    def _names_in_metadata(self) -> list[str] | None:
        stored = self._table.metadata.get(b"class_names")
        if stored is None:
            return None
        try:
            names = json.loads(stored)
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self.fail("its metadata class_names are no list of names; export it again")
        return names

    def probabilities(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Positions in ``rows``, and probabilities of the classes of the data set, [M, K]."""
        names = [PROBABILITIES]
        if PROBABILITIES not in self.columns:
            names = []
            while f"p{len(names)}" in self.columns:
                names.append(f"p{len(names)}")
        if not names:
            self.fail("has no probabilities; export it with --soft from a run on this data")
        numbering = self._numbering()
        order: NDArray[np.int64] | None = None
        k = self._index.num_classes
        for position, columns in self.batches(names, max(_BATCH_VALUES // k, 1)):
            p = self._distributions([columns[name] for name in names], position)
            if order is None:
                order = self._order(numbering, p.shape[1])
            mapped = np.zeros((len(p), k), dtype=np.float32)
            mapped[:, order] = p
            yield position, mapped

    def _order(self, numbering: Numbering, width: int) -> NDArray[np.int64]:
        """The class of each column of probabilities, int64 [width]."""
        own = self._classes.names
        if not (numbering.known and (numbering.differs or width != len(own))):
            if width != len(own):
                self.fail(
                    f"has {width} probabilities a row, the data set {len(own)} classes; export it "
                    "with --soft from a run on this data"
                )
            return np.arange(width)
        numbering.check()
        order = [numbering.find(number) for number in range(width)]
        for number, place in enumerate(order):
            if place is None or place in order[:number]:
                name = numbering.name(number)
                self.fail(
                    f"column {number} of its probabilities has no class name, and other classes "
                    "have other numbers in the data set; export it as Parquet, with all names"
                    if name is None
                    else f"has probabilities of the class {name}, which the data set has not; "
                    "export it again from a run on this data"
                )
        return np.array(order, dtype=np.int64)

    def _distributions(self, columns: list[NDArray[Any]], position: slice) -> NDArray[np.float32]:
        """Probabilities, float32 [M, L], from a column of lists or from L columns."""
        if len(columns) == 1 and columns[0].ndim == 1:
            self.fail(f"column {PROBABILITIES} does not contain lists of one length")
        try:
            if len(columns) == 1:
                p = columns[0].astype(np.float32)
            else:
                p = np.stack([column.astype(np.float32) for column in columns], axis=1)
        except ValueError as error:
            self.fail(f"its probabilities are not numbers ({error})")
        sums = p.sum(1, keepdims=True)
        right = np.isfinite(p).all(1) & (p >= 0).all(1) & (np.abs(sums[:, 0] - 1) < 0.02)
        right |= self.rows[position] < 0
        if not right.all():
            line = self._matched.lines[position][~right][0]
            self.fail(f"the probabilities of {self._table.unit} {line} are not a distribution")
        return p / np.where(sums > 0, sums, np.float32(1))

    def _check_columns(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.columns:
                self.fail(
                    f"has no column {name}; it has {', '.join(self.columns[:20])}; pass a table "
                    f"of `{python_command('alr_fast.export', 'RUN')}`, or the name of another "
                    "column of labels"
                )


class _Pairs:
    """The different pairs of label and name in two columns, which are read in batches.

    Attributes:
        texts: Label and name of each, blanks around them removed; empty for none.
        first: Position of its first row.
    """

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []
        self.first: list[int] = []
        self._known: dict[tuple[str, str], int] = {}
        self._codes: list[NDArray[np.int64]] = []
        self._rows = 0

    @property
    def codes(self) -> NDArray[np.int64]:
        """Position in ``texts`` for each row, int64 [M]."""
        return np.concatenate([np.empty(0, dtype=np.int64), *self._codes])

    def add(self, labels: NDArray[Any], names: NDArray[Any] | None) -> None:
        """Adds the cells of some rows, [M] each."""
        texts, _, codes = distinct(labels)
        if labels.dtype.kind == "f":  # an empty cell in a column of numbers
            texts = ["" if text == "nan" else text for text in texts]
        named, _, codes_of_names = distinct(np.full(len(codes), "") if names is None else names)
        both, first, inverse = np.unique(
            codes * max(len(named), 1) + codes_of_names, return_index=True, return_inverse=True
        )
        numbers = np.empty(len(both), dtype=np.int64)
        for k, (code, row) in enumerate(zip(both.tolist(), first.tolist(), strict=True)):
            label, name = divmod(code, len(named))
            pair = texts[label].strip(), named[name].strip()
            numbers[k] = self._known.setdefault(pair, len(self.texts))
            if numbers[k] == len(self.texts):
                self.texts.append(pair)
                self.first.append(self._rows + row)
        self._codes.append(numbers[inverse.reshape(-1)])
        self._rows += len(codes)


@contextmanager
def open_samples(
    table: str | Path, index: SampleIndex, *, part: bool = False, match: bool = True
) -> Iterator[TableSamples]:
    """Opens a table.

    Args:
        table: The file.
        index: The samples of a split.
        part: Whether the table may list other samples of the split.
        match: Whether to find the samples now; else `TableSamples.match` does.

    Raises:
        UserError: It cannot be read, or does not fit the samples.
    """
    try:
        with open_table(Path(table)) as opened:
            samples = TableSamples(opened, index, part=part)
            if match:
                samples.match()
            yield samples
    except TableError as error:
        raise UserError(str(error), argument="table", value=error.where) from error
