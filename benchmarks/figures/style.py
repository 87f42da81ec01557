"""Colours, sizes and saving of figures."""

from pathlib import Path
from typing import TYPE_CHECKING

from alr_fast.utils.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 1000, 120  # of a figure in pixels: text stays readable at its own size
# Distinguishable with all kinds of colour vision: by Okabe and Ito, https://jfly.uni-koeln.de/color,
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#bbbbbb"
COLORS = {"correct": BLUE, "memorised": ORANGE, "incorrect": GREY}
# and ten for classes by Petroff, arXiv 2107.02270, with two shapes for the most similar colours.
CLASS_COLORS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
CLASS_MARKERS = "oooos" + "ssoso"


def save(figure: "Figure", path: Path) -> None:
    """Writes a figure as a PNG; on failure an existing file stays as it was.

    Raises:
        UserError: The file cannot be written.
    """
    with replacing(path) as fresh:
        # Without the name of the software, equal figures are equal files.
        figure.savefig(fresh, dpi=DPI, format="png", metadata={"Software": None})


def new_figure(height: int) -> "Figure":
    """An empty figure of a height in pixels."""
    from matplotlib.figure import Figure  # without pyplot: no display and no global state

    return Figure(figsize=(WIDTH / DPI, height / DPI), layout="constrained")


def whole_epochs(axes: "Axes") -> None:
    """Restricts the ticks to whole epochs."""
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def percent(share: float) -> str:
    """A fraction of 1 in percent."""
    return f"{100 * share:.1f} %"
