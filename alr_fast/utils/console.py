"""Messages of a command: lines, warnings, progress bars, or JSON objects for programs."""

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeVar

from rich.console import Console as RichConsole
from rich.progress import Progress

from alr_fast.utils.text import printable_lines

WIDTH = 100  # columns if the output is not a terminal

T = TypeVar("T")


class Console:
    """Prints the messages of a command.

    Args:
        show: auto (a progress bar on a terminal, lines elsewhere), lines, quiet (warnings and the
            final tables), json (only JSON objects on standard output, one per line; their key
            ``event`` is message, warning, progress, epoch, profile, summary, suspects or seeds).
        main: Whether this is process 0; the others never print.
    """

    def __init__(
        self, show: Literal["auto", "lines", "quiet", "json"] = "auto", *, main: bool = True
    ) -> None:
        # Texts are printed unchanged: ":100:" in a path is not an emoji.
        self.terminal = RichConsole(highlight=False, soft_wrap=True, emoji=False)
        if not self.terminal.is_terminal:
            self.terminal.width = WIDTH
        self.bars = main and show == "auto" and self.terminal.is_terminal
        self.lines = main and show in ("auto", "lines") and not self.bars
        self.json = main and show == "json"
        self.main = main

    def log(self, text: str) -> None:
        """Prints one line."""
        if self.json:
            self.event("message", text=text)
        elif self.bars or self.lines:
            self.terminal.print(printable_lines(text), markup=False)

    def warn(self, text: str) -> None:
        """Prints a warning, in quiet, too; on standard error except in json."""
        if self.json:
            self.event("warning", text=text)
        elif self.main:
            print(f"warning: {printable_lines(text)}", file=sys.stderr, flush=True)

    def track(
        self, items: Iterable[T], *, description: str, total: int, every: float = math.inf
    ) -> Iterator[T]:
        """Yields the items while a bar shows progress; without a terminal, lines do.

        Args:
            items: Any iterable.
            description: Name of the work.
            total: Number of items.
            every: Seconds between two lines; by default there is only a line at the start.
        """
        if not self.bars:
            self.log(f"{description}: {total:,}")
            began = shown = time.monotonic()
            for done, item in enumerate(items, 1):
                yield item
                now = time.monotonic()
                if now - shown > every:
                    shown = now
                    speed = done / (now - began)
                    self.log(f"{description}: {done:,} of {total:,}, {speed:,.0f} a second")
            return
        with Progress(
            console=self.terminal, transient=True, redirect_stderr=sys.stderr.isatty()
        ) as progress:
            yield from progress.track(items, total=total, description=description)

    def event(self, event: str, **values: Any) -> None:
        """Prints one JSON object; the caller checks that ``json`` is set."""
        line = json.dumps({"event": event, **_without_nan(values)}, allow_nan=False)
        print(line, flush=True)


def _without_nan(value: Any) -> Any:
    """The value with None for infinity and NaN, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
