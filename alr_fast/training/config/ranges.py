"""Types of numbers with bounds, for the fields of a configuration, and their check."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, get_args, get_type_hints

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


@dataclass
class Bounded:
    """Base of a dataclass that checks each field whose type has `Bounds`; None is always accepted.

    The name of the class contains the group of its options: OptimConfig has --optim.NAME.

    Raises:
        UserError: A value is out of bounds.
    """

    def __post_init__(self) -> None:
        group = type(self).__name__.removesuffix("Config").lower()
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for part in (hint, *get_args(hint)):  # the parts of "PositiveInt | None"
                for bounds in getattr(part, "__metadata__", ()):
                    if value is not None and not bounds.accepts(value):
                        option = f"{group}.{name}" if group else name
                        raise UserError(f"--{option} {value}: {bounds.requirement}")
