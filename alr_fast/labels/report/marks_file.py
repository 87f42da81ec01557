"""The marks of a report in a file, written as they are made.

The file has the columns that the page exports (``marks.js``), and is read by
`alr_fast.data.label_files.label_table`. Marks are texts, as the page stores them: ``keep``,
``unsure``, or ``fix 7`` (to class 7).
"""

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from alr_fast.data.index import PathTable, SampleIndex
from alr_fast.data.label_files.label_table import read_marks
from alr_fast.data.label_files.mark_table import FIX, KEEP, UNSURE
from alr_fast.data.tables.cells import CsvWriter
from alr_fast.errors import UserError
from alr_fast.labels.scored import ScoredLabels
from alr_fast.utils.files import replacing
from alr_fast.utils.text import is_utf8, printable

_COLUMNS = ("id", "path", "given", "refined", "score", "mark", "label")
_NAMES = ("given_name", "refined_name", "label_name")
_MARK = re.compile(rf"{KEEP}|{UNSURE}|{FIX} ([0-9]{{1,9}})")


class MarksFile:
    """The marks of the samples of a run; several threads may read and change them.

    A mark counts once it is in the file. If another program has changed the file, its content
    replaces what is known here.

    Args:
        path: The CSV file, written with the first mark; an existing one is read.
        labels: The samples, with paths and ascending ids.

    Raises:
        UserError: The existing file cannot be read, or has marks of other samples.
    """

    def __init__(self, path: Path, labels: ScoredLabels) -> None:
        assert labels.paths is not None
        self.path = path
        self._labels = labels
        paths = labels.paths
        if not isinstance(paths, PathTable):
            paths = PathTable.of(paths)
        self._index = SampleIndex(labels.sample_ids, paths, labels.labels, None, labels.class_names)
        self._lock = threading.Lock()
        self._marks: dict[int, str] = {}
        self._seen: tuple[int, ...] | None = None
        self._closed = False
        self._read_if_changed()

    def __len__(self) -> int:
        return len(self._marks)

    def marks(self) -> dict[int, str]:
        """The mark of each marked sample, by id.

        Raises:
            UserError: Another program has changed the file, and it cannot be read.
        """
        with self._lock:
            self._read_if_changed()
            return dict(self._marks)

    def take_over(self, path: Path) -> None:
        """Takes the marks of another file, which are written with the first change.

        Raises:
            UserError: As for the file itself.
        """
        with self._lock:
            self._marks = self._read(path) | self._marks

    def update(self, changes: Mapping[int, str | None]) -> int:
        """Sets marks, or removes those that are None, and writes the file.

        Args:
            changes: Marks by sample id.

        Returns:
            Number of marked samples.

        Raises:
            ValueError: A change is no mark of a sample of the run; nothing is changed.
            UserError: The file cannot be written, or not be read after another program has changed
                it; nothing is changed.
        """
        self._check(changes)
        with self._lock:
            if self._closed:
                raise UserError(f"{self.path}: the review has ended; start it again")
            self._read_if_changed()
            marks = {**self._marks, **changes}
            kept = {id: mark for id, mark in marks.items() if mark is not None}
            self._write(kept)
            self._marks, self._seen = kept, _signature(self.path)
            return len(kept)

    def close(self) -> None:
        """Waits for a change that is being written; later ones are refused."""
        with self._lock:
            self._closed = True

    def _check(self, changes: Mapping[int, str | None]) -> None:
        ids = list(changes)
        if not ids:
            return
        rows = self._index.find_rows(ids)
        for id, row, mark in zip(ids, rows.tolist(), changes.values(), strict=True):
            if row < 0:
                raise ValueError(f"there is no sample {id}")
            if mark is None:
                continue
            match = _MARK.fullmatch(mark)
            if match is None:
                raise ValueError(f"sample {id}: no mark")
            if match[1] is None:
                continue
            if int(match[1]) >= self._labels.num_classes:
                raise ValueError(f"sample {id}: there is no class {match[1]}")
            if int(match[1]) == self._labels.labels[row]:
                raise ValueError(f"sample {id}: class {match[1]} is the given one, to be kept")

    def _read_if_changed(self) -> None:
        """Reads the file if it is another than that last read or written; a missing one is none."""
        found = _signature(self.path)
        if found is not None and found != self._seen:
            self._marks = self._read(self.path)
            self._seen = found

    def _read(self, path: Path) -> dict[int, str]:
        try:
            read = read_marks(path, self._index)
        except UserError as error:  # about its argument, which is not that of the user
            raise UserError(f"{error.value}: {error.args[0]}") from error
        remedy = "move the file away to start without it"
        marks: dict[int, str] = {}
        for row, mark, label, line in zip(
            read.rows.tolist(), read.marks, read.labels.tolist(), read.lines.tolist(), strict=True
        ):
            where = f"{path}, line {line}"
            if row < 0:
                raise UserError(f"{where}: is a sample that the run does not have; {remedy}")
            if mark not in ("", KEEP, FIX, UNSURE):
                raise UserError(
                    f"{where}: the mark {printable(mark)} is none of {KEEP}, {FIX} and {UNSURE}; "
                    f"correct it, or {remedy}"
                )
            if mark in (KEEP, FIX) and label >= 0:  # the given label may have been another then
                mark = KEEP if label == self._labels.labels[row] else f"{FIX} {label}"
            elif mark == FIX:
                raise UserError(f"{where}: has no label; fill it in, or {remedy}")
            if mark:
                marks[int(self._index.sample_ids[row])] = mark
        return marks

    def _write(self, marks: Mapping[int, str]) -> None:
        labels, names = self._labels, self._labels.class_names
        ids = list(marks)
        rows = self._index.find_rows(ids).tolist()
        order = sorted(range(len(ids)), key=lambda k: (-labels.scores[rows[k]], ids[k]))
        lines = []
        for k in order:
            row, (mark, _, label) = rows[k], marks[ids[k]].partition(" ")
            given, refined = int(labels.labels[row]), int(labels.refined[row])
            chosen = {KEEP: given, FIX: int(label or -1)}.get(mark)
            numbers = (given, refined, chosen)
            texts = [self._index.paths[row], *("" if n is None else names[n] for n in numbers)]
            score = str(labels.scores[row])
            lines.append((ids[k], texts[0], given, refined, score, mark, chosen, *texts[1:]))
        all_utf8 = all(is_utf8(text) for line in lines for text in line if isinstance(text, str))
        with (
            replacing(self.path) as fresh,
            fresh.open("wb") as file,
            CsvWriter(file, all_utf8=all_utf8) as writer,
        ):
            writer.write_row((*_COLUMNS, *_NAMES))
            for line in lines:
                writer.write_row(line)


def _signature(path: Path) -> tuple[int, ...] | None:
    """What changes with a file; None without one."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
