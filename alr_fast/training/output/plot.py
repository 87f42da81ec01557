"""Plots of curves over epochs, legible at half their size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alr_fast.labels.report.model import Panel
from alr_fast.utils.files import replacing

_SIZE, _DPI, _FONT = (10, 4.8), 120, 15  # inches, pixels an inch, points
_FEW = 12  # points of a curve that get markers: a line of one or two is hard to see
# Points of the last curve, and by how much an earlier one is wider: it shows on both sides of a
# later one with the same values.
_WIDTH, _WIDER, _WIDEST = 2.2, 2.4, 9.0


Bands = Mapping[str, Sequence[float]]


def draw_panels(
    panels: Sequence[Panel], path: Path, *, bands: Sequence[Bands] | None = None
) -> None:
    """Draws panels side by side as a PNG.

    Args:
        panels: The panels; a curve has the same colour in all of them.
        path: File to write.
        bands: For each panel, name of a curve -> half the height of the band around each of its
            values, none of which is None.

    Raises:
        UserError: It cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # pyplot would need a display and keep state

    with rc_context({"font.size": _FONT, "axes.titlesize": _FONT, "legend.fontsize": _FONT}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        places = figure.subplots(1, len(panels))
        for axes, panel, band in zip(places, panels, bands or [{}] * len(panels), strict=True):
            _draw(axes, panel, band)
        # Below the plots, where it hides no curve.
        lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
        figure.legend(handles=lines.values(), loc="outside lower center", ncols=4)
        with replacing(path) as fresh:
            figure.savefig(fresh, dpi=_DPI, format="png")


def _draw(axes: Any, panel: Panel, bands: Bands) -> None:
    from matplotlib.ticker import MaxNLocator

    later = len(panel.series)
    for name, (epochs, values) in panel.series.items():
        later -= 1
        width = min(_WIDTH + _WIDER * later, _WIDEST)
        marker = {"marker": "o", "markersize": width + 4} if len(epochs) <= _FEW else {}
        (line,) = axes.plot(epochs, values, label=name, linewidth=width, **marker)
        if name in bands:
            band = np.array(values) + np.array([[-1.0], [1.0]]) * np.array(bands[name])
            axes.fill_between(epochs, *band, color=line.get_color(), alpha=0.2, linewidth=0)
    for epoch, text in panel.warmup_ends():
        # Between the last epoch of the warm-up and the next one.
        axes.axvline(epoch + 0.5, label=text, color="0.35", linestyle=":", linewidth=2)
    axes.set(title=panel.title, xlabel="epoch", ylabel=panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(alpha=0.3)
