"""A section of benchmarks/README.md."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Plot:
    """The plot of a section.

    Attributes:
        file: Name of the picture.
        description: Alternative text.
        draw: ``draw(path, [(device, rows), ...])`` draws it; returns whether there was anything to
            draw.
    """

    file: str
    description: str
    draw: Callable[[Path, list[tuple[str, list[dict]]]], bool]


@dataclass(frozen=True)
class Section:
    """The section of one suite.

    Attributes:
        title: Heading.
        note: Text above the tables.
        command: Command that measures the suite, without ``python -m benchmarks.``.
        text: Makes Markdown from the rows of one device.
        gpu_only: Whether the section shows rows of GPUs only.
        plot: The plot; None if there is none.
    """

    title: str
    note: str
    command: str
    text: Callable[[list[dict]], str]
    gpu_only: bool = False
    plot: Plot | None = None
