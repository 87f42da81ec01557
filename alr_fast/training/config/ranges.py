"""Types of the fields of a configuration: numbers with bounds, and paths."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

from alr_fast.data.paths import expanded
from alr_fast.errors import UserError


@dataclass(frozen=True)
class Bounds:
    """Bounds of a number, as metadata of its type.

    Attributes:
        requirement: The bounds in words, "must be 0 or more".
        accepts: Whether a number meets them; False for NaN.
    """

    requirement: str
    accepts: Callable[[float], bool]


NonNegativeInt = Annotated[int, Bounds("must be 0 or more", lambda x: x >= 0)]
PositiveInt = Annotated[int, Bounds("must be 1 or more", lambda x: x >= 1)]
NonNegativeFloat = Annotated[float, Bounds("must be 0 or more", lambda x: 0 <= x < math.inf)]
PositiveFloat = Annotated[float, Bounds("must be above 0", lambda x: 0 < x < math.inf)]
Fraction = Annotated[float, Bounds("must lie between 0 and 1", lambda x: 0 <= x <= 1)]
FractionBelowOne = Annotated[float, Bounds("must be at least 0 and below 1", lambda x: 0 <= x < 1)]
PositiveFraction = Annotated[float, Bounds("must be above 0 and at most 1", lambda x: 0 < x <= 1)]
Magnitude = Annotated[int, Bounds("must lie between 0 and 30", lambda x: 0 <= x <= 30)]
Percentile = Annotated[float, Bounds("must lie between 0 and 100", lambda x: 0 <= x <= 100)]


class NamesPath:
    """Marks the type of an option that names a file or folder, or may name one."""


# A text that does not begin with ~ and contains no $, such as auto, stays as it is.
PathText = Annotated[str, NamesPath()]


@dataclass
class Bounded:
    """Base of a dataclass that checks each field whose type has `Bounds`; None is always accepted.

    In fields that name paths, ``~`` and variables are expanded. The name of the class contains the
    group of its options: OptimConfig has --optim.NAME.

    Raises:
        UserError: A value is out of bounds.
    """

    def __post_init__(self) -> None:
        group = type(self).__name__.removesuffix("Config").lower()
        for name, marks in marks_of(type(self)).items():
            value = getattr(self, name)
            option = f"{group}.{name}" if group else name
            for mark in marks:
                if isinstance(mark, NamesPath):
                    setattr(self, name, expanded_path(value, option))
                elif value is not None and not mark.accepts(value):
                    raise UserError(f"--{option} {value}: {mark.requirement}")


def marks_of(config: type) -> dict[str, list[Any]]:
    """The `Bounds` and `NamesPath` of each field of a dataclass."""
    hints = get_type_hints(config, include_extras=True).items()
    # The marks of the type itself, and of the parts of "PositiveInt | None".
    return {
        name: [
            mark for part in (hint, *get_args(hint)) for mark in getattr(part, "__metadata__", ())
        ]
        for name, hint in hints
    }


def expanded_path(value: Any, option: str) -> Any:
    """A path, or each path of a list, with ``~`` and variables expanded.

    Raises:
        UserError: There is no such variable or user; the message names the option.
    """
    if isinstance(value, list):
        return [expanded_path(path, option) for path in value]
    if not isinstance(value, str) or not set(value) & set("~$"):
        return value
    try:
        return str(expanded(value))
    except UserError as error:
        raise UserError(f"--{option} {error}") from error
