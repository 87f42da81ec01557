"""Class numbers in tables with names beside them, or with the list of names that they count in.

A table of a run numbers its classes as the data set did then. The names say which classes these
are, if the data set now has its classes in another order, or more of them.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from alr_fast.data.classes import ClassMap, is_missing
from alr_fast.errors import UserError
from alr_fast.utils.text import shown

_NUMBER = re.compile(r"([0-9]{1,18})(\.0*)?")  # a column with empty cells holds 3.0 for 3


class Numbering:
    """The classes that the numbers of a table stand for.

    Args:
        classes: The classes of the data set.
        where: ``where(line)`` names a place of the table in messages, or for None the table.
        argument: Name of the argument that the table is, for messages.
        names: Names by number, if the table lists them; else `add` learns them.
    """

    def __init__(
        self,
        classes: ClassMap,
        *,
        where: Callable[[int | None], str],
        argument: str,
        names: Sequence[str] | None = None,
    ) -> None:
        self._classes = classes
        self._where = where
        self._argument = argument
        self._listed = names is not None
        self._names = dict(enumerate(names or ()))
        self._lines: dict[int | str, int] = {}  # of the first pair with a number or name
        self._numbers: dict[str, int] = {}

    @property
    def known(self) -> bool:
        """Whether the table names any of its numbers."""
        return bool(self._names)

    @property
    def differs(self) -> bool:
        """Whether a number stands for another class than in the data set."""
        return any(self.find(number) != number for number in self._names)

    def check(self) -> None:
        """Checks that the names are names.

        Raises:
            UserError: All of them are their own numbers, as in a table that was made without class
                names, and the data set calls another class so.
        """
        by_name = {number: self.find(number) for number in self._names}
        wrong = [k for k, found in by_name.items() if found not in (None, k)]
        if wrong and all(name == str(number) for number, name in self._names.items()):
            k = wrong[0]
            number = shown(self._classes.names[k]) if k < len(self._classes.names) else "none"
            raise self._error(
                None,
                f"calls its classes by their numbers: {k} is class {shown(str(k))} of the data set "
                f"by name and class {number} by number; write the names of the classes "
                "(find_issues takes class_names=)",
            )

    def name(self, number: int) -> str | None:
        """The name of a number in the table; None without one."""
        return self._names.get(number)

    def find(self, number: int) -> int | None:
        """The class of a number; None if the data set lacks it, or the table does not name it."""
        name = self._names.get(number)
        if name is None or self._is_named(number, name):  # several classes may have this name
            return None if name is None else number
        return self._classes.find(name)

    def add(self, label: str, name: str, line: int) -> None:
        """Adds a label and the name beside it; ignored unless there are a number and a name.

        Raises:
            UserError: The number has another name elsewhere in the table, or the name another
                number: one of the two was changed without the other.
        """
        number = number_of(label)
        if number is None or is_missing(name):
            return
        known = self._names.setdefault(number, name)
        first = self._numbers.setdefault(name, number)
        for key in (number, name):
            self._lines.setdefault(key, line)
        remedy = "write the same class in both columns, or empty one of them"
        if known != name:
            there = self._where(self._lines[number]) if not self._listed else "the list of classes"
            raise self._error(
                line, f"calls class {number} {shown(name)}, {there} {shown(known)}; {remedy}"
            )
        if first != number and self._classes.names.count(name) < 2:
            raise self._error(
                line,
                f"gives {shown(name)} the number {number}, {self._where(self._lines[name])} the "
                f"number {first}; {remedy}",
            )

    def resolve(
        self, pairs: Sequence[tuple[str, str]], lines: Sequence[int], *, numbered: bool = False
    ) -> tuple[NDArray[np.int64], bool]:
        """Classes of the different labels of a column.

        Args:
            pairs: Label, a number or a name, and the name in the column beside it, empty without
                one; L pairs, of which at least one text is not empty.
            lines: The first line or row of each.
            numbered: Whether all labels are numbers, never names that look like numbers.

        Returns:
            Class numbers, int64 [L], and whether some were read as positions among the classes.

        Raises:
            UserError: A label stands for no class, or not for the one of its name.
        """
        for (label, name), line in zip(pairs, lines, strict=True):
            self.add(label, name, line)
        classes = np.full(len(pairs), -1)
        alone = []
        for k, (label, name) in enumerate(pairs):
            if name:
                classes[k] = self._class_of_pair(label, name, lines[k])
            elif number_of(label) in self._names:
                classes[k] = self._class_of_number(label, lines[k], numbered=numbered)
            else:
                alone.append(k)
        if not alone:
            return classes, False
        if self.known and self.differs:
            for k in alone:
                if number_of(pairs[k][0]) is not None and self._classes.find(pairs[k][0]) is None:
                    raise self._error(
                        lines[k],
                        f"class {pairs[k][0]} has no name in the table, whose other classes have "
                        "other numbers in the data set; write class names",
                    )
        classes[alone], positions = self._classes.resolve(
            [pairs[k][0] for k in alone],
            where=lambda k: self._where(lines[alone[k]]),
            argument=self._argument,
        )
        return classes, positions

    def _class_of_pair(self, label: str, name: str, line: int) -> int:
        number = number_of(label)
        if number is not None and self._is_named(number, name):
            return number
        if number is not None:
            self.check()
        named = self._class_named(name, line)
        if label and number is None and self._classes.find(label) != named:
            raise self._error(
                line,
                f"has the label {shown(label)} with the name {shown(name)}; write the same class "
                "in both columns, or empty one of them",
            )
        return named

    def _class_of_number(self, label: str, line: int, *, numbered: bool) -> int:
        self.check()
        number = number_of(label) or 0
        name = self._names[number]
        found = self.find(number)
        by_name = None if numbered or self._listed else self._classes.find(label)
        if by_name is not None and by_name != found:
            raise self._error(
                line,
                f"label {shown(label)} is a class by name, and the table calls class {number} "
                f"{shown(name)}; write the name of the class in the column of names",
            )
        return self._class_named(name, line) if found is None else found

    def _class_named(self, name: str, line: int) -> int:
        (found,), _ = self._classes.resolve(
            [name], where=lambda _: self._where(line), argument=self._argument, positions=False
        )
        return int(found)

    def _is_named(self, number: int, name: str) -> bool:
        return number < len(self._classes.names) and self._classes.names[number] == name

    def _error(self, line: int | None, message: str) -> UserError:
        return UserError(message, argument=self._argument, value=self._where(line))


def number_of(label: str) -> int | None:
    """The class number that a text is; None if it is none."""
    found = _NUMBER.fullmatch(label)
    return None if found is None else int(found[1])
