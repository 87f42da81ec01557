"""The check of a step against exact results."""

from collections.abc import Sequence

from torch import Tensor


def check_step(name: str, found: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Compares loss, gradient and perhaps bank rows of a step with those in float64.

    Raises:
        AssertionError: One of them is off by more than rounding in its dtype explains, or is NaN.
    """
    names = ("loss", "gradient", "bank")[: len(exact)]
    for what, a, b in zip(names, found, exact, strict=True):
        bound = 1e-2 if a.dtype.itemsize == 2 else 2e-5
        error = float((a.double() - b).norm() / b.norm())
        if not error <= bound:
            raise AssertionError(
                f"{name}: {what} is off by {error:.1e} of its norm, over {bound:.0e}"
            )
