"""A section of benchmarks/README.md."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Plot:
    """The plot of a section."""

    file: str  # name of the picture
    description: str  # alternative text
    # draw(path, [(device, rows), ...]) returns whether there was anything to draw.
    draw: Callable[[Path, list[tuple[str, list[dict]]]], bool]


@dataclass(frozen=True)
class Section:
    """The section of one suite."""

    title: str
    note: str  # text above the tables
    command: str  # that measures the suite, without python -m benchmarks.
    text: Callable[[list[dict]], str]  # makes Markdown from the rows of one device
    gpu_only: bool = False  # whether it shows rows of GPUs only
    plot: Plot | None = None
