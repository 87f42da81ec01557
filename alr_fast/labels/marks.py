"""Labels set by people: the marks of a report, and what Label Studio exports.

sample_ids, labels = read_marks("marks.csv", class_names)
bank.correct_labels(sample_ids, labels)
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.classes import ClassMap
from alr_fast.data.label_files.mark_table import MARK, wrong_fix
from alr_fast.data.label_files.numbering import Numbering
from alr_fast.data.label_files.table_samples import NAME_COLUMNS
from alr_fast.data.tables import TableError, as_text, open_table
from alr_fast.errors import UserError
from alr_fast.labels.label_studio import CHOICE, ID
from alr_fast.utils.files import open_regular
from alr_fast.utils.text import distinct_names, some_names

_ROWS = 1 << 16  # of a table that are read at once

Marks = tuple[NDArray[np.int64], NDArray[np.int64]]


def read_marks(path: str | os.PathLike[str], class_names: Sequence[str]) -> Marks:
    """Reads the marks that a report exported.

    Args:
        path: The CSV file.
        class_names: Names of the classes, in order. A label is found by the name beside it.

    Returns:
        Sample ids, int64 [M] ascending, and the label that was chosen for each: the given one for
        keep. Samples marked unsure are left out.

    Raises:
        UserError: The file is no such table, was made with other classes, or marks a sample fix
            with its given label.
    """
    columns, lines = _read_columns(path)

    def where(line: int | None) -> str:
        return str(path) if line is None else f"{path}, line {line}"

    found = wrong_fix(columns)
    if found is not None:
        raise UserError(found[1], argument="path", value=where(lines[found[0]]))
    numbering = Numbering(ClassMap(class_names), where=where, argument="path")
    for number, name in NAME_COLUMNS.items():
        if number != "label":
            for pair in zip(columns.get(number, ()), columns.get(name, ()), lines, strict=False):
                numbering.add(*pair)
    names = columns.get("label_name", [""] * len(lines))
    pairs = list(zip(columns["label"], names, strict=True))
    marked = [k for k, pair in enumerate(pairs) if any(pair)]
    labels, _ = numbering.resolve([pairs[k] for k in marked], [lines[k] for k in marked])
    chosen: dict[int, int] = {}
    for k, label in zip(marked, labels.tolist(), strict=True):
        _set(path, chosen, _integer(path, columns["id"][k]), label)
    return _sorted(chosen)


def _read_columns(path: str | os.PathLike[str]) -> tuple[dict[str, list[str]], list[int]]:
    """The columns of a table of marks, without blanks around the texts, and its line numbers."""
    wanted = {"id", "label", MARK, *NAME_COLUMNS, *NAME_COLUMNS.values()}
    lines: list[int] = []
    try:
        with open_table(Path(path)) as table:
            missing = {"id", "label"} - set(table.columns)
            if missing:
                _fail(path, f"has no column {', '.join(sorted(missing))}; export the marks again")
            columns: dict[str, list[str]] = {n: [] for n in table.columns if n in wanted}
            for batch in table.batches(list(columns), _ROWS):
                lines += batch.numbers.tolist()
                for name, texts in columns.items():
                    texts += map(str.strip, as_text(batch.columns[name]))
    except TableError as error:
        raise UserError(str(error), argument="path", value=error.where) from error
    return columns, lines


def _integer(path: object, text: object) -> int:
    """An integer that int64 can represent."""
    with contextlib.suppress(ValueError):
        number = int(str(text).strip())
        if -(2**63) <= number < 2**63:
            return number
    _fail(path, f"has {text!r} where an integer belongs; export the marks again")


def _set(path: object, chosen: dict[int, int], sample_id: int, label: int) -> None:
    if chosen.setdefault(sample_id, label) != label:
        _fail(path, f"has two labels for sample {sample_id}; keep one of them")


def read_label_studio(
    path: str | os.PathLike[str], class_names: Sequence[str], *, from_name: str = CHOICE
) -> Marks:
    """Reads what people chose in Label Studio, for tasks of `LabelIssues.to_label_studio`.

    Args:
        path: Export of the project, JSON or JSON-MIN.
        class_names: Names of the classes, in order.
        from_name: Name of the Choices tag of the labelling interface.

    Returns:
        Sample ids, int64 [M] ascending, and the label that was chosen for each. Tasks without an
        annotation are left out, so are skipped ones; of several annotations the newest counts,
        of those of one time or without a time the last.

    Raises:
        UserError: The file is no such export, a task has no ``sample_id``, or a choice is no class.
    """
    try:
        with open_regular(path) as file:
            tasks = json.loads(file.read())
    except OSError as error:
        _fail(path, f"{error.strerror or error}; pass a readable file")
    except (ValueError, RecursionError) as error:  # the latter of brackets in brackets
        _fail(path, f"is no JSON ({error}); export the project as JSON or JSON-MIN")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        _fail(path, "is no list of tasks; export the project as JSON or JSON-MIN")
    numbers = {name: k for k, name in enumerate(distinct_names(class_names))}
    newest: dict[int, tuple[str, int]] = {}
    for task in tasks:
        number = task.get("id", "?")
        try:
            annotations = list(_annotations(task, from_name))
        except (AttributeError, KeyError, TypeError) as error:  # not the types that are written
            _fail(path, f"task {number} is no task of an export ({error!r}); export it again")
        for time, data, choices in annotations:
            if ID not in data:
                _fail(path, f"task {number} has no {ID}; import the tasks of to_label_studio")
            sample_id = _integer(path, data[ID])
            if len(choices) != 1 or choices[0] not in numbers:
                _fail(
                    path,
                    f"sample {sample_id} has the choice {', '.join(choices)}; the "
                    f"classes are {some_names(list(numbers))}, one for each sample",
                )
            if sample_id not in newest or time >= newest[sample_id][0]:
                newest[sample_id] = time, numbers[choices[0]]
    return _sorted({sample_id: label for sample_id, (_, label) in newest.items()})


def _annotations(
    task: dict[str, Any], from_name: str
) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Time, data of the task, and choices of each annotation of a task in the export.

    Raises:
        AttributeError, KeyError, TypeError: The task has other types than the export writes.
    """
    if "data" not in task:  # JSON-MIN: the data, and the choice by the name of its tag
        choices = task.get(from_name)
        if isinstance(choices, dict):
            choices = choices["choices"]
        if choices:
            yield _time(task), task, [choices] if isinstance(choices, str) else _texts(choices)
        return
    data = task["data"]
    if not isinstance(data, dict):
        raise TypeError("data is no object")
    for annotation in task.get("annotations") or ():
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            continue
        for result in annotation.get("result") or ():
            if result.get("type") == "choices" and result.get("from_name") == from_name:
                yield _time(annotation), data, _texts(result["value"]["choices"])


def _texts(choices: Any) -> list[str]:
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise TypeError("choices are no list of texts")
    return choices


def _time(annotation: dict[str, Any]) -> str:
    """ISO 8601, which sorts as text."""
    return str(annotation.get("updated_at") or annotation.get("created_at") or "")


def _sorted(chosen: dict[int, int]) -> Marks:
    ids = sorted(chosen)
    labels = [chosen[sample_id] for sample_id in ids]
    return np.array(ids, dtype=np.int64), np.array(labels, dtype=np.int64)


def _fail(path: object, message: str) -> NoReturn:
    raise UserError(message, argument="path", value=path)
