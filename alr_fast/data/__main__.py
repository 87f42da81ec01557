"""Looks after data sets: finds broken files, and packs many small files into few large ones.

    python -m alr_fast.data verify ROOT
    python -m alr_fast.data pack ROOT OUT

Both recognise the layout of ROOT, and both can be interrupted: the next call goes on.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from alr_fast.errors import UserError, naming_options
from alr_fast.utils.command import CommandParser, exit_status

PROG = "python -m alr_fast.data"
_SECONDS_PER_LINE = 30  # where there is no terminal to draw a bar on


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        Exit status: 0; 1 if `verify` excluded something, 2 for a wrong input, 130 when interrupted.
    """

    def action() -> int:
        from alr_fast.utils.machine import usable_cores

        options = _parser().parse_args(argv)
        if options.workers is None:
            options.workers = usable_cores()
        if options.workers < 1:
            raise UserError(f"--workers {options.workers}: must be 1 or more")
        with naming_options(name="data", exclude="exclude", table="exclude"):
            return options.run(options)

    return exit_status(action, interrupted="interrupted; the next call goes on from here")


def run_verify(options: argparse.Namespace) -> int:
    """Scans splits and writes the lists of their broken files; returns the exit status.

    Raises:
        UserError: Something that the user can put right; no list is written.
    """
    from alr_fast.data.datasets import open_dataset
    from alr_fast.data.layouts import packed
    from alr_fast.data.verify import (
        Known,
        chosen_splits,
        exclusion_files,
        verify_split,
        write_report,
    )

    show = _Show()
    dataset = open_dataset(options.data, options.root)
    show.log(f"{dataset.layout.name}: {dataset.found.what}")
    if dataset.layout.name == packed.LAYOUT.name:
        # Before anything else: of a changed shard every finding would be wrong.
        packed.check_shards(
            dataset.found, options.split, partial(show.track_all, "Comparing checksums")
        )
    splits = chosen_splits(dataset, options.split, show.log)
    for name in [name for name, split in splits.items() if split.images.array is not None]:
        show.log(f"{name}: its images come as arrays, there is nothing to verify")
        del splits[name]
    if not splits:
        return 0
    output = None if options.output is None else Path(options.output)
    files = exclusion_files(splits, output)
    known = Known() if len(splits) > 1 else None
    excluded = 0
    for name, split in splits.items():
        began = time.monotonic()
        report = verify_split(
            split,
            dataset.found.root,
            workers=options.workers,
            again=options.again,
            known=known,
            progress=partial(show.track, description=f"Verifying {name}", total=len(split)),
        )
        write_report(files[name], report)
        seconds = time.monotonic() - began
        show.report(name, report, seconds, most=None if options.all else 3)
        if report.broken:
            show.log(
                f"{name}: list written to {files[name]}; training on this split leaves these files "
                + ("out by itself" if output is None else f"out with --data.exclude {output}")
            )
        excluded += len(report.broken)
    return 1 if excluded else 0


def run_pack(options: argparse.Namespace) -> int:
    """Packs splits into shards; returns the exit status.

    Raises:
        UserError: Something that the user can put right.
    """
    from alr_fast.data.datasets import open_dataset
    from alr_fast.data.pack import Packer
    from alr_fast.data.verify import chosen_splits

    show = _Show()
    out = Path(options.out)
    packer = Packer(out, shard_mb=options.shard_mb, workers=options.workers, track=show.track)
    dataset = open_dataset(options.data, options.root)
    show.log(f"{dataset.layout.name}: {dataset.found.what}")
    splits = chosen_splits(dataset, options.split, show.log)
    for name, plan in packer.check(dataset, splits, options.exclude).items():
        packed = packer.pack(plan)
        remark = f", {packed.left_out:,} left out" if packed.left_out else ""
        show.log(
            f"{name}: {len(plan.split):,} samples{remark}, in {packed.shards:,} shards of "
            f"{packed.size / 2**20:,.0f} MiB; {packed.written:,} of them written now"
        )
    show.log(f"train on them with --data-root {out}")
    return 0


class _Show:
    """Progress bars on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        from alr_fast.utils.console import Console

        self._run = Console()

    def log(self, text: str) -> None:
        """Prints one line."""
        self._run.log(text)

    def track(self, items: Iterable, *, description: str, total: int) -> Iterator:
        """Passes the items on while a bar or lines show how many there were."""
        if self._run.terminal.is_terminal:
            yield from self._run.track(items, description=description, total=total)
            return
        self.log(f"{description}: {total:,}")
        began = shown = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if now - shown > _SECONDS_PER_LINE:
                shown = now
                speed = done / (now - began)
                self.log(f"{description}: {done:,} of {total:,}, {speed:,.0f} a second")

    def track_all(self, description: str, items: list) -> Iterator:
        """`track` for a list."""
        return self.track(items, description=description, total=len(items))

    def report(self, name: str, report, seconds: float, most: int | None) -> None:
        """Prints what was found in a split, and ``most`` paths of each kind."""
        from rich.table import Table
        from rich.text import Text

        total, broken = len(report.index), len(report.broken)
        speed = f", {report.read / seconds:,.0f} a second" if report.read > 1000 else ""
        self.log(
            f"{name}: {total:,} files, {broken:,} excluded; {report.read:,} read in "
            f"{seconds:.1f} s{speed}, the others were found fine before"
            if report.read < total
            else f"{name}: {total:,} files, {broken:,} excluded; read in {seconds:.1f} s{speed}"
        )
        lines = report.table(most)
        if not lines:
            return
        table = Table("found", "files", "", "for example", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for kind, count, rows, is_broken in lines:
            paths = [report.index.paths[row] for row in rows]
            paths += ["..."] * (count > len(rows))
            # As text: a path may hold what looks like markup, and bytes that are not UTF-8.
            shown = "\n".join(paths).encode("utf-8", "replace").decode()
            table.add_row(
                Text(kind), f"{count:,}", "excluded" if is_broken else "kept", Text(shown)
            )
        self._run.terminal.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog=PROG, allow_abbrev=False, description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=CommandParser)
    verify = commands.add_parser(
        "verify",
        allow_abbrev=False,
        help="find broken files, and list them for training to leave out",
        description="Reads every image file to its end and lists those that give no image or a "
        "damaged one, for training to leave out; of a packed data set it compares the checksums, "
        "too. Goes on where an earlier call stopped, and then reads only files that have changed "
        "since or were broken. Exit status: 0 nothing is broken, 1 something is, 2 a wrong input.",
    )
    _common(verify)
    verify.add_argument("--output", metavar="FILE", help="list to write, instead of the usual one")
    verify.add_argument(
        "--again", action="store_true", help="read also what was found fine and has not changed"
    )
    verify.add_argument(
        "--all", action="store_true", help="name every file of each kind, not three of them"
    )
    verify.set_defaults(run=run_verify)
    pack = commands.add_parser(
        "pack",
        allow_abbrev=False,
        help="write the images into tar shards (WebDataset), which training reads",
        description="Writes the images, byte for byte, into tar shards as WebDataset and DALI read "
        "them, with an index for training. Ids stay what they were. Goes on where an earlier call "
        "stopped. Run verify first: what it lists is left out.",
    )
    _common(pack)
    pack.add_argument("out", metavar="OUT", help="folder for the shards")
    pack.add_argument(
        "--shard-mb", type=int, default=256, metavar="MB", help="size of a shard in MiB (256)"
    )
    pack.add_argument(
        "--exclude",
        default="auto",
        metavar="LIST",
        help="CSV list of samples to leave out; auto: the one that verify wrote; none",
    )
    pack.set_defaults(run=run_pack)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help="folder of the data set")
    parser.add_argument(
        "--data", default="auto", metavar="NAME", help="data set; auto looks at the folder (auto)"
    )
    parser.add_argument(
        "--split", nargs="+", default=[], metavar="NAME", help="splits (all that there are)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads that read (one for each core)"
    )


if __name__ == "__main__":
    sys.exit(main())
