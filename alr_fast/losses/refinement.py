"""Whether a training is long enough to change a label, known before it starts."""

from collections.abc import Callable

from alr_fast.losses.base import Loss

_MOST_EPOCHS = 1 << 20


def refinement_problem(
    make: Callable[[int, float | None], Loss], epochs: int, *, names: tuple[str, str]
) -> str | None:
    """Why a training cannot change the most probable class of any row of its label bank.

    Args:
        make: ``make(epochs, momentum)`` returns the loss of a training of so many epochs, with
            another momentum unless it is None; one with a bank of a single row is enough.
        epochs: Epochs of the training.
        names: What to change, by the names that the caller knows: epochs and momentum.

    Returns:
        The reason and what would do, a clause; None if labels can change, or nothing is known.
    """
    share = make(epochs, None).given_share(epochs)
    if share is None or share < 0.5:
        return None

    def enough(number: int) -> bool:
        return (make(number, None).given_share(number) or 0.0) < 0.5

    def low_enough(hundredths: int) -> bool:
        return (make(epochs, hundredths / 100).given_share(epochs) or 0.0) < 0.5

    remedies = []
    if enough(_MOST_EPOCHS):
        remedies.append(f"{names[0]} {_first(epochs, _MOST_EPOCHS, enough)} or more")
    if low_enough(0):
        largest = _first(0, 100, lambda hundredths: not low_enough(hundredths)) - 1
        remedies.append(f"{names[1]} {largest / 100:g} or less")
    length, them = ("1 epoch", "it") if epochs == 1 else (f"{epochs} epochs", "them")
    return (
        f"{length} cannot change a label: after {them}, each row of the label bank still is "
        f"{100 * share:.0f}% the given label (a label can change below 50%)"
        + (f"; pass {', or '.join(remedies)}" if remedies else "")
    )


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first number above ``low``, up to ``high``, from which on a condition holds."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
