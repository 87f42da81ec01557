"""Reads and writes the generated part of csrc/cuda/launch_table.h."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HEADER = Path(__file__).parents[2] / "csrc" / "cuda" / "launch_table.h"

_PART = re.compile(r"(?<=// begin: winners\n).*?(?=// end: winners\n)", re.DOTALL)
_ENTRY = re.compile(r"\{(\d+), Regime::k(\w+?)(?:, (\d+))?\}")
# Table -> dtype that it is measured with: without and with elements of 16 bits.
_TABLES = {"kTableOfWords": "float32", "kTableOfHalves": "bfloat16"}
_FIRST, _SECOND = _TABLES


@dataclass(frozen=True)
class Choice:
    """A kernel: its regime as an enumerator without the k, and the size of its cluster."""

    regime: str
    blocks_per_row: int = 1


@dataclass(frozen=True)
class Segment:
    """Rows up to ``high`` classes that the one before has not; the first choice that is allowed."""

    high: int
    choices: tuple[Choice, ...]


def enumerator(regime: str) -> str:
    """The name of a regime in C++: half_warp_16 is HalfWarp16."""
    return "".join(word.capitalize() for word in regime.split("_"))


def with_winners(header: str, winners: Sequence[dict]) -> str:
    """The header with the winners in its tables.

    Args:
        header: Text of launch_table.h.
        winners: Rows of `benchmarks.tournament.winners`.
    """
    tables = _parse(header)
    for name, dtype in _TABLES.items():
        for row in winners:
            if row["logits_dtype"] == dtype:
                choice = Choice(enumerator(row["regime"]), row["blocks_per_row"])
                only_some = row["blocks_per_row"] > 1 or row["source"] == "ring"
                tables[name] = overlay(tables[name], row["low"], row["high"], choice,
                                       keeps_old=only_some)  # fmt: skip
    return _PART.sub(lambda _: _text(tables), header)


def overlay(
    table: Sequence[Segment], low: int, high: int, choice: Choice, *, keeps_old: bool
) -> list[Segment]:
    """The table with another choice for rows of more than ``low`` and up to ``high`` classes.

    Args:
        table: Segments in order.
        low: See above.
        high: See above.
        choice: The new one.
        keeps_old: Whether the old choices with fewer blocks remain, for devices that do not
            allow the new one.
    """
    result: list[Segment] = []
    before = 0
    for segment in table:
        for end in sorted({min(max(bound, before), segment.high) for bound in (low, high)}
                          | {segment.high}):  # fmt: skip
            if end == before:
                continue
            choices = segment.choices
            if low <= before and end <= high:
                others = [old for old in choices if old != choice and keeps_old
                          and old.blocks_per_row <= choice.blocks_per_row]  # fmt: skip
                choices = (choice, *others)
            if result and result[-1].choices == choices:
                result.pop()
            result.append(Segment(end, choices))
            before = end
    return result


def _parse(header: str) -> dict[str, list[Segment]]:
    part = _PART.search(header)
    if part is None:
        raise ValueError("launch_table.h has no part between the marks of its winners")
    tables = {}
    for name in _TABLES:
        text = re.search(rf"{name}\[\] = \{{\n(.*?)\n\}};", part[0], re.DOTALL)
        tables[name] = _segments(text[1]) if text else list(tables[_FIRST])
    return tables


def _segments(entries: str) -> list[Segment]:
    segments: list[Segment] = []
    for high, regime, blocks in _ENTRY.findall(entries):
        choices = (Choice(regime, int(blocks or 1)),)
        if segments and segments[-1].high == int(high):
            choices = segments.pop().choices + choices
        segments.append(Segment(int(high), choices))
    return segments


def _text(tables: dict[str, list[Segment]]) -> str:
    def table(name: str) -> str:
        lines = [
            f"    {{{segment.high}, Regime::k{choice.regime}{_blocks(choice)}}},\n"
            for segment in tables[name]
            for choice in segment.choices
        ]
        return f"constexpr TableEntry {name}[] = {{\n{''.join(lines)}}};\n"

    if tables[_FIRST] == tables[_SECOND]:
        return f"{table(_FIRST)}static constexpr const auto& {_SECOND} = {_FIRST};\n"
    return table(_FIRST) + table(_SECOND)


def _blocks(choice: Choice) -> str:
    return f", {choice.blocks_per_row}" if choice.blocks_per_row > 1 else ""
