"""Plots with one panel for each device."""

from collections.abc import Callable, Collection
from pathlib import Path

from alr_fast.utils.files import replacing


def draw_panels(
    path: Path,
    panels: list[tuple[str, Collection]],
    draw: Callable,
    *,
    size: tuple[float, float] = (6.4, 4.2),
    dpi: int = 120,
    stacked: bool = False,
) -> bool:
    """Draws panels side by side, or one above the other.

    Args:
        path: The picture.
        panels: Title and content of each; empty ones are left out.
        draw: ``draw(axes, content)`` draws one panel.
        size: Width and height of a panel in inches.
        dpi: Resolution.
        stacked: Whether the panels are one above the other.

    Returns:
        Whether there was anything to draw, and matplotlib to draw it.
    """
    panels = [(title, content) for title, content in panels if content]
    if not panels:
        return False
    try:
        from matplotlib.figure import Figure  # without pyplot: no display and no global state
    except ImportError:
        print("no plot: matplotlib is missing")
        return False
    rows, columns = (len(panels), 1) if stacked else (1, len(panels))
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    every_axes = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (title, content) in zip(every_axes, panels, strict=True):
        draw(axes, content)
        axes.set_title(title)
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=dpi, format="png", metadata={"Software": None})
    return True
