"""Class names: their order, and the classes that written labels stand for.

A class is known by its name. Its number, the position of the name, belongs to one reading of one
data set: a label that is written as a number is looked up as a name first.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.errors import UserError
from alr_fast.utils.text import cell_text, shown, some_names

# Words that pandas reads or writes for a missing value, in lower case.
MISSING = frozenset(
    ("", "nan", "-nan", "none", "na", "n/a", "null", "nil", "nat", "<na>", "#na", "#n/a")
)
_INTEGER = re.compile(r"[+-]?[0-9]{1,300}")
_WHOLE = re.compile(r"([+-]?[0-9]{1,300})(\.0*)?")  # a column with empty cells holds 3.0 for 3
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_SURROGATES = re.compile("[\ud800-\udfff]")  # non-UTF-8 bytes, see os.fsdecode


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in their order: by value if all are integers, else as texts."""
    ordered = sorted(names)
    if all(map(_INTEGER.fullmatch, ordered)):
        ordered.sort(key=int)
    return tuple(ordered)


def is_missing(text: str) -> bool:
    """Whether a text is a word for a missing value: empty, nan, None, NA, null, ..."""
    return text.strip().lower() in MISSING


class ClassMap:
    """The classes of a data set.

    A written label is the class of this name. Other spellings count if they fit one class only:
    another Unicode form, blanks around it, another way to write the same number (``3.0`` and ``03``
    for ``3``), an apostrophe before it and U+FFFD for non-UTF-8 bytes, as the report exports them.

    Attributes:
        names: The names by class number; a name that several classes have cannot be looked up.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._known = [(form, _unique(form, self.names)) for form in _FORMS]

    def find(self, name: str) -> int | None:
        """Number of the class with this name; None without one."""
        for text in (name, name.removeprefix("'")):
            for form, known in self._known:
                number = known.get(form(text))
                if number is not None:
                    return number
        return None

    def codes(
        self,
        values: Any,
        *,
        where: Callable[[int], str] = "row {}".format,
        argument: str | None = "labels",
        positions: bool = True,
    ) -> NDArray[np.int64]:
        """Class numbers of a whole column of written labels, int64 [M].

        Args:
            values: Texts (dtype object), integers or floats, [M].
            where: ``where(row)`` names the place of a row in a message.
            argument: See `UserError`; None if ``where`` names the file, too.
            positions: Whether numbers that no class is called may be class numbers, see `resolve`.

        Raises:
            UserError: A label is missing, or stands for no class; or for one by name and another by
                number.
        """
        texts, first, inverse = distinct(values)
        numbers, _ = self.resolve(
            texts, where=lambda k: where(first[k]), argument=argument, positions=positions
        )
        return numbers[inverse]

    def resolve(
        self,
        texts: Sequence[str],
        *,
        where: Callable[[int], str],
        argument: str | None = None,
        positions: bool = True,
    ) -> tuple[NDArray[np.int64], bool]:
        """Class numbers of the different labels of a column.

        If not all of them are names, numbers may be positions: only if, for every number among
        them, no class is called so, or the class of that name stands there.

        Args:
            texts: The different labels, L texts.
            where, argument: See `codes`; ``where`` takes a position in ``texts``.
            positions: Whether numbers that no class is called may be class numbers.

        Returns:
            Class numbers, int64 [L], and whether some labels were read as positions.

        Raises:
            UserError: See `codes`.
        """
        fail = _Failures(texts, where, argument)
        numbers = [self.find(text) for text in texts]
        nameless = [k for k, number in enumerate(numbers) if number is None]
        for k in nameless:
            value = _whole(texts[k])
            if is_missing(texts[k]):
                raise fail(k, "is a missing value; fill it in or remove the row")
            if not positions or value is None or not 0 <= value < len(self.names):
                raise fail(k, self._unknown(texts[k]))
            numbers[k] = value
        if nameless:
            for text, number in zip(texts, numbers, strict=True):
                value = _whole(text)
                if value is not None and value != number:
                    there = 0 <= value < len(self.names)
                    by_number = f"class {shown(self.names[value])}" if there else "no class"
                    raise fail(
                        nameless[0],
                        f"is no class name, so labels would be numbers from 0; but {text} is class "
                        f"{shown(self.names[number or 0])} by name and {by_number} by number; "
                        "write class names",
                    )
        return np.array(numbers, dtype=np.int64), bool(nameless)

    def _unknown(self, text: str) -> str:
        if text in self.names:
            twice = [str(k) for k, name in enumerate(self.names) if name == text]
            return f"names the classes {' and '.join(twice)}; write the number"
        folded = {name.casefold(): name for name in self.names}
        near = get_close_matches(text.casefold(), folded, 1)
        meant = f"; {shown(folded[near[0]])} is one" if near else ""
        return (
            f"is not one of the {len(self.names)} classes ({some_names(self.names)}){meant}; "
            "correct or remove it"
        )


def names_of_labels(
    texts: Sequence[str], *, where: Callable[[int], str], argument: str | None = None
) -> tuple[str, ...]:
    """Names of the classes of a data set that lists labels only, in their order.

    A number that is spelled in several ways is one class.

    Args:
        texts: The different labels that occur.
        where, argument: See `ClassMap.resolve`.

    Raises:
        UserError: A label is missing. Or all are numbers, and one is a fraction or negative; -1
            with 1 alone are names.
    """
    fail = _Failures(texts, where, argument)
    for k, text in enumerate(texts):
        if is_missing(text):
            raise fail(
                k,
                "is a missing value; fill it in or remove the row, or rename the class if it is "
                "one",
            )
    values = list(map(_whole, texts))
    if all(_NUMBER.fullmatch(text.strip()) for text in texts):
        for k, value in enumerate(values):
            if value is None:
                kind = "a fraction" if "e" not in texts[k].lower() else "no integer as written"
                raise fail(k, f"is {kind}; write integers or class names")
            if value < 0 and set(values) != {-1, 1}:
                raise fail(k, "is below 0; correct or remove it, or write class names")
    spellings: dict[Hashable, set[str]] = defaultdict(set)
    for text, value in zip(texts, values, strict=True):
        spellings[text if value is None else value].add(text)
    names = []
    for key, (way, *others) in spellings.items():
        kept = isinstance(key, str) or (not others and way.lstrip("-").isdigit())
        names.append(way if kept else str(key))
    return sort_names(names)


def alike(names: Iterable[str]) -> list[str]:
    """Lines for the user about class names that are easily mistaken.

    They are the same but for case, blanks, Unicode form or the spelling of a number; or a name is
    a word for a missing value.
    """
    names = tuple(names)
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        value = _whole(name)
        folded = unicodedata.normalize("NFKC", name).casefold()
        groups["".join(folded.split()) if value is None else value].append(name)
    lines = [
        f"classes {' and '.join(map(shown, group))} differ in case, blanks or spelling only; if "
        "they are one class, give them one name"
        for group in groups.values()
        if len(group) > 1
    ]
    lines += [
        f"class {shown(name)} has a name that tables use for missing values; if its samples have "
        "no label, remove them"
        for name in names
        if is_missing(name)
    ]
    return lines


def are_numbered_otherwise(names: Iterable[str]) -> bool:
    """Whether a class has a number other than its position as its name."""
    return any(_whole(name) not in (None, k) for k, name in enumerate(names))


def mixed(names: Iterable[str]) -> list[str]:
    """A line for the user if the labels that name the classes are integers and texts."""
    names = tuple(names)
    whole = [name for name in names if _whole(name) is not None]
    texts = [name for name in names if _whole(name) is None]
    if not whole or not texts:
        return []
    return [
        f"labels are numbers ({some_names(whole)}) and texts ({some_names(texts)}); each is a "
        "class of its own"
    ]


def check_clean(given: NDArray[np.int64], clean: NDArray[np.int64], place: str) -> None:
    """Checks that labels and clean labels, class numbers, int64 [N], are of the same classes.

    Raises:
        UserError: No class has both; the message begins with ``place``.
    """
    if len(given) and not np.isin(np.unique(given), clean).any():
        raise UserError(
            f"{place}: labels and clean labels have no class in common; write both as numbers or "
            "both as the same names"
        )


def distinct(values: Any) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """The different values of a column as texts, in the order of their first rows.

    Args:
        values: Texts, numbers or None, [M].

    Returns:
        L texts, empty for None; the first row of each, int64 [L]; for each value the position of
        its text, int64 [M].
    """
    values = np.asarray(values)
    if values.dtype != object:  # sorting numbers is faster than hashing them
        values, inverse = np.unique(values, return_inverse=True)
        inverse = inverse.reshape(-1)
    else:
        inverse = np.arange(len(values))
    known: dict[str, int] = {}
    codes = np.fromiter(
        (known.setdefault(cell_text(value), len(known)) for value in values.tolist()),
        dtype=np.int64,
        count=len(values),
    )[inverse]
    first = np.full(len(known), len(codes))
    np.minimum.at(first, codes, np.arange(len(codes)))
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    texts = list(known)
    return [texts[k] for k in order], first[order], rank[codes]


@dataclass(frozen=True)
class _Failures:
    """Makes errors about labels; see `ClassMap.resolve` for the attributes."""

    texts: Sequence[str]
    where: Callable[[int], str]
    argument: str | None

    def __call__(self, k: int, message: str) -> UserError:
        """The error about the k-th label."""
        text = f"label {shown(self.texts[k])} {message}"
        if self.argument is None:
            return UserError(f"{self.where(k)}: {text}")
        return UserError(text, argument=self.argument, value=self.where(k))


def _whole(text: str) -> int | None:
    """The integer that a text spells; None if it is none."""
    found = _WHOLE.fullmatch(text.strip())
    return None if found is None else int(found[1])


def _loose(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _exported(text: str) -> str:
    """A text as a browser writes it."""
    return _SURROGATES.sub("\ufffd", _loose(text))


_FORMS: tuple[Callable[[str], Hashable], ...] = (str, _loose, _whole, _exported)


def _unique(form: Callable[[str], Hashable], names: Sequence[str]) -> dict[Hashable, int]:
    """Form of a name -> its position, for the forms that one name has."""
    forms = list(map(form, names))
    counts = Counter(forms)
    return {key: k for k, key in enumerate(forms) if key is not None and counts[key] == 1}
