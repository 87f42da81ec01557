"""What a report shows of a sample: its image, its text, the row of a table."""

import numbers
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.images.sources import BrokenImage
from alr_fast.errors import UserError
from alr_fast.labels.report.thumbnails import SIZES, thumbnail
from alr_fast.labels.scored import ScoredLabels
from alr_fast.labels.sources import by_row
from alr_fast.utils.text import error_text, printable

NO_ROOM = "left out, the page would be too large"
_LONGEST_TEXT, _LONGEST_CELL, _MOST_COLUMNS = 10_000, 300, 100


@dataclass(frozen=True)
class Views:
    """Functions of a row; None for what is not shown.

    Attributes:
        image: An image, in any form that `thumbnail` takes.
        text: A text.
        cells: Name and value of each column.
        address: Address of the whole image, see `alr_fast.labels.report.model.Suspect`.
    """

    image: Callable[[int], Any] | None = None
    text: Callable[[int], str] | None = None
    cells: Callable[[int], list[tuple[str, str]]] | None = None
    address: Callable[[int], str] | None = None

    @classmethod
    def of(cls, labels: ScoredLabels, *, images: object, text: object, table: object) -> "Views":
        """The views of these sources, see `alr_fast.labels.LabelIssues.report`.

        Raises:
            UserError: A source has another number of samples, or is none.
        """
        image = labels.images if images is None else by_row(images, labels, "images")
        files = labels.files if images is None else None
        if image is not None and isinstance(images, (list, tuple)):  # not a data set: cheap to read
            files = image
        read = None if text is None else by_row(text, labels, "text")
        return cls(
            image=image,
            text=None if read is None else lambda row: str(read(row)),
            cells=None if table is None else _cells(table, labels),
            address=None if files is None else lambda row: _address(files(row)),
        )

    @property
    def noun(self) -> str:
        """Plural of what is listed."""
        if self.image is not None:
            return "images"
        return "texts" if self.text is not None else "samples"

    def short_text(self, row: int, longest: int) -> str | None:
        """The text of a sample, cut off after ``longest`` characters; None without texts."""
        if self.text is None:
            return None
        text = self.text(row)
        longest = min(longest, _LONGEST_TEXT)
        if len(text) <= longest:
            return text
        return f"{text[:longest]}\N{HORIZONTAL ELLIPSIS} ({longest:,} of {len(text):,} characters)"

    def thumbnails(
        self, rows: NDArray[np.int64], room: int
    ) -> tuple[list[bytes | None], list[str]]:
        """Thumbnails, as small as necessary, or None; and for each None the reason, otherwise "".

        Args:
            rows: Rows of the samples.
            room: Largest number of bytes of all thumbnails.
        """
        if self.image is None:
            return [None] * len(rows), [""] * len(rows)
        for side, quality in SIZES:
            images: list[bytes | None] = []
            problems, total = [], 0
            for found, problem in self._thumbnails(rows, side, quality):
                images.append(found)
                problems.append(problem)
                total += len(found or b"")
                if total > room:
                    break
            else:
                return images, problems
        # Even the smallest thumbnails are too large together: the remaining samples have none.
        left = len(rows) - len(images)
        return images + [None] * left, problems + [NO_ROOM] * left

    def _thumbnails(
        self, rows: NDArray[np.int64], side: int, quality: int
    ) -> Iterator[tuple[bytes | None, str]]:
        for row in rows.tolist():
            yield self.picture(row, side, quality)

    def picture(self, row: int, side: int, quality: int) -> tuple[bytes | None, str]:
        """The image of a sample, see `thumbnail`, or None and the reason."""
        if self.image is None:
            return None, "there are no images"
        try:
            return thumbnail(self.image(row), side, quality), ""
        except BrokenImage as error:
            return None, printable(str(error))
        except Exception as error:  # of a user's data set: one image must not stop the report
            return None, printable(f"{type(error).__name__}: {error_text(error)}")


def _address(file: Any) -> str:
    """The address of a file on this machine; empty if it is none."""
    if not isinstance(file, (str, os.PathLike)) or not os.path.isfile(file):
        return ""
    return Path(os.fsdecode(file)).absolute().as_uri()


def _cells(table: Any, labels: ScoredLabels) -> Callable[[int], list[tuple[str, str]]]:
    """A function of a row that returns the cells of a table.

    Raises:
        UserError: No table, or another number of rows.
    """
    if hasattr(table, "iloc"):  # pandas
        columns = [(str(name), table.iloc[:, k].tolist()) for k, name in enumerate(table.columns)]
    elif isinstance(table, Mapping):
        # The index of a pandas.Series does not count the rows.
        columns = [
            (str(name), column.tolist() if hasattr(column, "iloc") else column)
            for name, column in table.items()
        ]
    elif getattr(table, "ndim", 0) == 2:
        columns = [(str(k), table[:, k]) for k in range(table.shape[1])]
    else:
        raise UserError(
            f"is a {type(table).__name__}; pass a pandas.DataFrame, a dictionary of columns or an "
            "array with a row for each sample",
            argument="table",
        )
    for name, column in columns:
        if len(column) != len(labels):
            raise UserError(
                f"column {name} has {len(column):,} entries for {len(labels):,} samples; pass one "
                "for each sample in the order of the labels",
                argument="table",
            )
    shown = columns[:_MOST_COLUMNS]
    left = len(columns) - len(shown)

    def cells(row: int) -> list[tuple[str, str]]:
        found = [(name[:_LONGEST_CELL], _cell(column[row])) for name, column in shown]
        return [*found, ("\N{HORIZONTAL ELLIPSIS}", f"{left:,} more columns")] if left else found

    return cells


def _cell(value: Any) -> str:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, numbers.Real) and not isinstance(value, (bool, numbers.Integral)):
        return f"{float(value):.6g}"
    text = str(value)
    if len(text) <= _LONGEST_CELL:
        return text
    return f"{text[: _LONGEST_CELL - 1]}\N{HORIZONTAL ELLIPSIS}"
