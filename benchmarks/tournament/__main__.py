"""Chooses among candidate kernels on a GPU, for the launch table.

    python -m benchmarks.tournament
    python -m benchmarks.tournament --resume --write-table

The candidates are all regimes of csrc/cuda/regimes.h that hold a row, with every size of a cluster,
in float32 and bfloat16; CMake compiles them into build/tournament for the GPU that is there. The
stages:

correctness
    Results of every candidate against the float64 reference. One that is wrong, fails or hangs is
    reported and left out of the others.
direct
    Rows that threads load themselves, at the bandwidth shapes, against a copy of as many bytes.
cut_down
    All candidates with the arithmetic cut down to a copy: near 100 % there and slow in full means
    that arithmetic is the cause, slow in both that memory accesses are.
sources
    Rows that go through shared memory, in full, and the fastest direct one.
exponential
    The three fastest of each shape with the plain exponential; the fastest with any index, without
    the launch for equal ones.
latency
    Small batches in a CUDA graph, also with other ways to finish a batch.

The winner of a range of K is the fastest one at the shape that stands for it, or a simpler one that
is less than 1 % slower. The rows are written to benchmarks/results after each shape; --resume
continues the newest file of this GPU and commit. The difference to csrc/cuda/launch_table.h is
printed; --write-table writes it. Losers may then be deleted.
"""

import argparse
import difflib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from alr_fast.utils.files import write_text
from benchmarks.harness.command import BenchmarkParser, new_parser, parse
from benchmarks.harness.environment import environment
from benchmarks.harness.results import FOLDER, ResultFile
from benchmarks.tables.markdown import show
from benchmarks.tables.tournament import terminal_cells, winner_cells
from benchmarks.tournament.candidates import STAGES, SUITE, Candidate, Unit, units_of
from benchmarks.tournament.contest import Referee
from benchmarks.tournament.launch_table import HEADER, with_winners
from benchmarks.tournament.library import Library, build
from benchmarks.tournament.winners import winners


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit status: 1 if a candidate was wrong or failed.
    """
    began = time.perf_counter()
    parser = _parser()
    arguments = parse(parser, argv)
    stages = arguments.stage.split(",")
    if unknown := [name for name in stages if name not in STAGES]:
        parser.error(f"unknown stage {unknown[0]!r}: choose from {', '.join(STAGES)}")
    if arguments.rows:
        rows = _read(parser, arguments.rows)
    elif not torch.cuda.is_available():
        parser.error("no GPU was found: pass --rows FILE to choose from rows of another machine")
    else:
        rows = _measure(arguments, stages, began + 60 * arguments.minutes)
    show("candidates", *terminal_cells(rows), text_columns=5)
    show("winners", *winner_cells(rows), text_columns=4)
    _change_table(arguments.header, rows, writes=arguments.write_table)
    return int(any(row.get("wrong") for row in rows))


def _parser() -> BenchmarkParser:
    parser = new_parser(__doc__, json=False,
                        seconds=(0.2, "time to measure a candidate at a shape"))  # fmt: skip
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--stage", default=",".join(STAGES),
                        help="stages, separated by commas (default %(default)s); correctness "
                        "always comes first")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=8,
                        help="time for everything, compiling included (default 8)")  # fmt: skip
    parser.add_argument("--resume", action="store_true",
                        help="continue the newest rows of this GPU and commit")  # fmt: skip
    parser.add_argument("--rows", type=Path, metavar="FILE",
                        help="measure nothing, choose from these rows")  # fmt: skip
    parser.add_argument("--write-table", action="store_true", help="write the launch table")
    parser.add_argument("--results-dir", type=Path, default=FOLDER, help="folder of the rows")
    parser.add_argument("--header", type=Path, default=HEADER, help=argparse.SUPPRESS)
    return parser


def _read(parser: BenchmarkParser, path: Path) -> list[dict]:
    try:
        rows = [row for row in json.loads(path.read_text("utf-8")) if row["suite"] == SUITE]
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"--rows {path}: {error}")
    if not rows:
        parser.error(f"--rows {path}: has no rows of the tournament")
    return rows


def _measure(arguments: argparse.Namespace, stages: Sequence[str], end: float) -> list[dict]:
    facts = environment("cuda")
    file, rows = ResultFile(arguments.results_dir), []
    if arguments.resume and (path := newest(arguments.results_dir, facts)):
        file.path, rows = path, json.loads(path.read_text("utf-8"))
    library = build(torch.cuda.get_device_capability())
    referee = Referee(library, arguments.seconds)
    try:
        return run(
            stages, Library(library).candidates(), referee.rows, rows, facts, file.write, end
        )
    finally:
        referee.stop()
        print(f"rows in {file.path}")


def newest(folder: Path, facts: dict) -> Path | None:
    """The newest file with rows of the tournament on this GPU and commit."""

    def is_of_this(path: Path) -> bool:
        rows = json.loads(path.read_text("utf-8"))
        return bool(rows) and all(
            row["suite"] == SUITE
            and all(row["environment"][name] == facts[name] for name in ("gpu", "commit"))
            for row in rows
        )

    found = [path for path in folder.glob("*.json") if is_of_this(path)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def run(
    stages: Sequence[str],
    candidates: Sequence[Candidate],
    measure: Callable[[Unit], list[dict]],
    rows: Sequence[dict],
    facts: dict,
    write: Callable[[list[dict]], object],
    end: float,
) -> list[dict]:
    """Measures what is left of the stages; returns all rows, the winners last.

    Args:
        stages: Their names; correctness comes first in any case.
        candidates: All of them.
        measure: Returns the rows of a unit.
        rows: Those measured earlier.
        facts: The environment, stored with every row.
        write: Takes all rows measured so far after each unit.
        end: When time is over, of `time.perf_counter`. Each stage has a part of what is left.
    """
    rows = [row for row in rows if row["stage"] != "winner"]
    todo = [name for name in STAGES if name in stages or name == "correctness"]
    for number, stage in enumerate(todo):
        begin = time.perf_counter()
        share = STAGES[stage] / sum(STAGES[name] for name in todo[number:])
        stage_end = begin + share * (end - begin)
        units = units_of(stage, candidates, rows)
        done = 0
        while done < len(units) and time.perf_counter() < stage_end:
            found = measure(units[done])
            rows += [{**row, "environment": facts} for row in found]
            write(rows)
            done += 1
        left = f", {len(units) - done} left for --resume" if done < len(units) else ""
        seconds = time.perf_counter() - begin
        print(f"{stage}: {done} shapes in {seconds:.0f} s{left}", file=sys.stderr)
    rows += winners(rows)
    if rows:
        write(rows)
    return rows


def _change_table(header: Path, rows: Sequence[dict], *, writes: bool) -> None:
    old = header.read_text("utf-8")
    new = with_winners(old, [row for row in rows if row["stage"] == "winner"])
    if new == old:
        print(f"{header.name} has these winners already")
        return
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), f"{header.name} now", "winners", lineterm="", n=1
    )
    print("\n".join(lines))
    if writes:
        write_text(header, new)
        print(f"wrote {header}: build, and run the tests of its plans and kernels")
    else:
        print("pass --write-table to write it")


if __name__ == "__main__":
    sys.exit(main())
