"""Finds the samples that a table lists: by path, the id breaks ties."""

import unicodedata
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.index import PathTable, SampleIndex
from alr_fast.data.tables import Table, TableError, as_text
from alr_fast.data.tables.encoding import from_windows
from alr_fast.utils.text import printable, shown

_ROWS = 1 << 16  # of a table that are read at once
_PROBES = 20  # paths from which another root is guessed


@dataclass(frozen=True)
class Matched:
    """The samples of a table.

    Attributes:
        rows: Row of the index for each row of the table, int64 [M]; -1 for an unknown sample.
        lines: Number of each row in the file, int64 [M].
        remarks: Lines for the user.
    """

    rows: NDArray[np.int64]
    lines: NDArray[np.int64]
    remarks: tuple[str, ...]


def match_table(table: Table, index: SampleIndex, *, part: bool = False) -> Matched:
    """Finds the samples that the rows of a table stand for.

    A sample is its path. Paths that are not found as they are written may differ in Unicode form,
    backslashes, an apostrophe before a formula and U+FFFD for non-UTF-8 bytes, as a browser writes
    them; and if most are not, in a folder before them.

    A table without paths is accepted only if its ids are exactly those of the index: then it can
    have been made from another data set only if that has as many samples.

    Args:
        table: A table with a column of paths, of ids or both.
        index: The whole split, or with ``part`` some samples of it.
        part: Whether the table may list many other samples.

    Raises:
        TableError: Most of the samples are unknown, or a row has no path.
    """
    columns = {role: name for role in ("path", "id") if (name := table.find(role)) is not None}
    if table.in_order:
        return _in_order(table, index, part=part)
    if "path" not in columns and "id" in columns and not _are_integers(table, columns["id"]):
        columns["path"] = columns.pop("id")
    if not columns:
        raise TableError(
            table.path,
            f"has no column path; it has {', '.join(table.columns[:20]) or 'no columns'}; name a "
            "column of paths, relative to the folder of the data, path",
        )
    paths, ids, lines, empty = _read(table, columns)
    if len(empty) == len(lines):
        rows = _rows_of_ids(table, index, ids) if len(lines) else lines
        return Matched(rows, lines, ("samples are found by id alone",) if len(lines) else ())
    if len(empty):
        raise TableError(
            f"{table.path}, {table.unit} {empty[0]}",
            "has no path; fill it in or remove the row (find_issues takes paths=)",
        )
    rows = index.match(paths, ids)
    rows, remark = _match_others(rows, paths, index, part=part)
    remarks = [] if remark is None else [remark]
    unknown, known = np.flatnonzero(rows < 0), np.unique(rows[rows >= 0])
    if len(unknown):
        few = 2 * len(unknown) > len(rows) and 2 * len(known) < len(index)
        if not len(known) if part else few:
            raise TableError(table.path, _strangers(paths, unknown, index))
        if not part:
            are = "is" if len(unknown) == 1 else "are"
            remarks.append(
                f"{len(known):,} of {len(index):,} samples; {len(unknown):,} in the table {are} "
                f"unknown (first: {table.unit} {lines[unknown[0]]}, "
                f"{printable(paths[unknown[0]])}), {len(index) - len(known):,} of the data set are "
                "not listed"
            )
    if part and len(known) < len(index):
        remarks.append(
            f"{len(known):,} of {len(index):,} samples are listed; the others keep their given "
            "label"
        )
    return Matched(rows, lines, tuple(remarks))


def _in_order(table: Table, index: SampleIndex, *, part: bool) -> Matched:
    """The samples of a table of labels alone: the ids are the rows, from 0."""
    batches = table.batches([table.find("label") or ""], _ROWS)
    lines = np.concatenate([np.empty(0, dtype=np.int64), *(batch.numbers for batch in batches)])
    size = int(index.sample_ids.max(initial=-1)) + 1
    if len(lines) < size or (len(lines) > size and not part):
        raise TableError(
            table.path,
            f"has {len(lines):,} labels without paths, and the data set {size:,} samples; store a "
            "label for each sample, in the order of the data set, or a table with a column path",
        )
    return Matched(
        index.find_rows(np.arange(len(lines))),
        lines,
        ("samples are those of the data set in its order, as there are no paths",),
    )


def _read(
    table: Table, columns: dict[str, str]
) -> tuple[PathTable, NDArray[np.int64] | None, NDArray[np.int64], list[int]]:
    """Paths, ids, numbers of the rows, and the numbers of those without a path."""
    ids, lines = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    empty: list[int] = []

    def paths() -> Iterator[str]:  # holds the texts of one batch in memory at a time
        for batch in table.batches(list(columns.values()), _ROWS):
            lines.append(batch.numbers)
            if "id" in columns:
                ids.append(_ids(as_text(batch.columns[columns["id"]]).tolist()))
            if "path" not in columns:
                empty.extend(batch.numbers.tolist())
                continue
            texts = as_text(batch.columns[columns["path"]]).tolist()
            if "" in texts:
                empty.extend(batch.numbers[[text == "" for text in texts]].tolist())
            # No path of an index is "/" or contains a zero byte.
            yield from (text.replace("\0", "/") or "/" for text in texts)

    listed = PathTable.of(paths())
    return listed, np.concatenate(ids) if "id" in columns else None, np.concatenate(lines), empty


def _are_integers(table: Table, column: str) -> bool:
    """Whether the first rows of a column of ids are integers, not names of files."""
    for batch in table.batches([column], _ROWS):
        return bool((_ids(as_text(batch.columns[column]).tolist()) >= 0).all())
    return True


def _ids(texts: list[str]) -> NDArray[np.int64]:
    """Ids as integers; -1 for any other text."""

    def number(text: str) -> int:
        try:
            value = float(text)  # a column with empty cells often contains 1.0
        except ValueError:
            return -1
        return int(value) if value.is_integer() and 0 <= value < 2**53 else -1

    return np.fromiter(map(number, texts), dtype=np.int64, count=len(texts))


def _rows_of_ids(
    table: Table, index: SampleIndex, ids: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    if ids is None or not np.array_equal(np.unique(ids), index.sample_ids):
        raise TableError(
            table.path,
            f"has no paths, and its ids are not exactly those of the {len(index):,} samples of the "
            "data set, so it may be of another one; add a column path (find_issues takes paths=)",
        )
    return index.find_rows(ids)


def _match_others(
    rows: NDArray[np.int64], paths: PathTable, index: SampleIndex, *, part: bool
) -> tuple[NDArray[np.int64], str | None]:
    """Finds paths that are written in another way; returns a remark about another folder."""
    unknown = np.flatnonzero(rows < 0)
    if not len(unknown):
        return rows, None
    texts = [_loose(path.removeprefix("'")) for path in paths.take(unknown)]
    # As a spreadsheet saves it, not as the name of a file.
    windows = {
        k: _loose(from_windows(paths[int(unknown[k])]))
        for k, text in enumerate(texts)
        if "\ufffd" in text
    }
    known = _by_loose_path(index, {*texts, *windows.values()})
    found = np.array([known.get(text, -1) for text in texts])
    for k, text in windows.items():
        if found[k] < 0:
            found[k] = known.get(text, -1)
    rows[unknown] = found
    lost = np.flatnonzero(found < 0)
    if (part and len(lost) < len(rows)) or 2 * len(lost) <= len(rows):
        return rows, None
    others, known = [texts[k] for k in lost.tolist()], _by_loose_path(index)
    for there, remark in (_below_other_root(others, known), _by_name(others, known)):
        if 2 * there.count(-1) <= len(rows):
            rows[unknown[lost]] = there
            return rows, remark
    return rows, None


def _by_loose_path(index: SampleIndex, wanted: Container[str] | None = None) -> dict[str, int]:
    """Loose path -> row, -1 for that of several samples; only those that are wanted: all of them
    are hundreds of bytes a sample."""
    known: dict[str, int] = {}
    for row, path in enumerate(index.paths):
        key = _loose(path)
        if wanted is None or key in wanted:
            known[key] = -1 if key in known else row
    return known


def _by_name(texts: list[str], known: dict[str, int]) -> tuple[list[int], str]:
    """Rows of samples that are listed by the name of their file alone, or without its suffix."""
    names: dict[str, int] = {}
    for path, row in known.items():
        name = path.rsplit("/", 1)[-1]
        for key in dict.fromkeys((name, name.rsplit(".", 1)[0])):
            names[key] = -1 if key in names else row  # -1: several
    return [names.get(text, -1) for text in texts], "samples are found by the names of their files"


def _below_other_root(texts: list[str], known: dict[str, int]) -> tuple[list[int], str]:
    """Rows of samples whose paths have another folder before them."""
    moved = _other_root(texts, known)
    if moved is None:
        return [-1] * len(texts), ""
    cut, put, remark = moved
    there = [
        known.get(put + text.removeprefix(cut), -1) if text.startswith(cut) else -1
        for text in texts
    ]
    return there, remark


def _other_root(lost: list[str], known: dict[str, int]) -> tuple[str, str, str] | None:
    """What to cut from the beginning of paths, and to put there, so that they are known.

    Returns:
        Both, and a line for the user; None if nothing helps.
    """
    probes = lost[:: max(len(lost) // _PROBES, 1)]
    votes: Counter[tuple[str, str]] = Counter()
    for text in probes:
        parts = text.split("/")
        for k in range(1, len(parts)):
            if known.get("/".join(parts[k:]), -1) >= 0:
                votes["/".join(parts[:k]) + "/", ""] += 1
                break
    # Sorted: all processes must find the same.
    folders = sorted({path.split("/", 1)[0] + "/" for path in known if "/" in path})
    if len(folders) <= _PROBES:
        for text in probes:
            there = [folder for folder in folders if folder + text in known]
            if len(there) == 1:  # else a name that several folders have
                votes["", there[0]] += 1
    if not votes:
        return None
    (cut, put), _ = votes.most_common(1)[0]
    if cut:
        return cut, "", f"its paths are read without {shown(cut)} before them"
    return "", put, f"its paths are read with {shown(put)} before them"


def _loose(path: str) -> str:
    if path.isascii():
        return path.replace("\\", "/").removeprefix("./")
    text = unicodedata.normalize("NFC", path).replace("\\", "/").removeprefix("./")
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


def _strangers(paths: PathTable, unknown: NDArray[np.int64], index: SampleIndex) -> str:
    return (
        f"{len(unknown):,} of its {len(paths):,} samples are not in this data set (first: "
        f"{printable(paths[unknown[0]])}; the data set has {printable(index.paths[0])}, ...); pass "
        "the data that it was made from, or write paths relative to the folder of the data"
    )


def check_twice(
    path: Path, unit: str, matched: Matched, values: NDArray[np.int64], what: str
) -> None:
    """Checks that rows of a table about the same sample agree.

    Args:
        path, unit: The table, and the unit of its rows.
        matched: Its samples.
        values: What each row says, int64 [M]; negative for nothing.
        what: What that is, for the message.

    Raises:
        TableError: Two rows about one sample say something else; the message names both.
    """
    told = np.flatnonzero((matched.rows >= 0) & (values >= 0))
    told = told[np.argsort(matched.rows[told], kind="stable")]
    rows = matched.rows[told]
    wrong = np.flatnonzero((rows[1:] == rows[:-1]) & (values[told[1:]] != values[told[:-1]]))
    if len(wrong):
        first, second = matched.lines[told[wrong[0]]], matched.lines[told[wrong[0] + 1]]
        raise TableError(
            f"{path}, {unit} {second}",
            f"has another {what} for the sample of {unit} {first}; remove one of the two",
        )
