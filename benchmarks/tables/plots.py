"""Panels that several plots share."""

from collections.abc import Callable, Collection
from pathlib import Path


def _draw_panels(path: Path, panels: list[tuple[str, Collection]], draw: Callable) -> bool:
    """Draws (title, content) pairs side by side, none for what is empty; see `_plot`.

    Args:
        path: The picture.
        panels: Titles, and what ``draw(axes, content)`` takes.
        draw: Draws one panel.
    """
    panels = [(title, content) for title, content in panels if content]
    if not panels:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is missing")
        return False
    figure = Figure(figsize=(6.4 * len(panels), 4.2), layout="constrained")
    every_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, content) in zip(every_axes, panels, strict=True):
        draw(axes, content)
        axes.set_title(title)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True
