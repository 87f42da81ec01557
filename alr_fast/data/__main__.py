"""Verifies data sets, and packs many small files into few large files.

    alr-fast data verify ROOT
    alr-fast data pack ROOT OUT

Both detect the layout of ROOT. Both can be interrupted: the next call resumes.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from alr_fast.data.broken import default_exclusion_file, verify_command, write_exclusions
from alr_fast.data.checks.duplicates import Duplicates, duplicates_file, find_duplicates
from alr_fast.data.checks.examine import KINDS
from alr_fast.data.checks.verify import KnownFiles, VerifyReport, verify_split
from alr_fast.data.datasets import Dataset, DatasetName, Split, open_dataset
from alr_fast.data.images.sources import FeatureRows
from alr_fast.data.layouts import features, packed
from alr_fast.data.layouts.base import NoSplit
from alr_fast.data.layouts.splits import SPLITS
from alr_fast.data.packing.pack import Packer
from alr_fast.data.paths import path_option, text_option
from alr_fast.errors import UserError, naming_options
from alr_fast.utils.command import CommandParser, Offer, exit_status, offer
from alr_fast.utils.files import reading
from alr_fast.utils.machine import usable_cores
from alr_fast.utils.shell import python_command
from alr_fast.utils.text import printable

if TYPE_CHECKING:
    from alr_fast.utils.console import Console  # needs rich, which --help does not

_SECONDS_PER_LINE = 30  # of progress without a terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        Exit status: 0; 1 if `verify` excluded something, 2 for a wrong input, 130 when interrupted.
    """

    def action() -> int:
        options = parser().parse_args(argv)
        if options.workers is None:
            options.workers = usable_cores()
        if options.workers < 1:
            raise UserError(f"--workers {options.workers}: must be 1 or more")
        with naming_options(
            name="data", exclude="exclude", table="exclude", columns="columns", images="images"
        ):
            return options.run(options)

    return exit_status(action, interrupted="interrupted; the next call resumes")


def run_verify(options: argparse.Namespace) -> int:
    """Scans splits and writes the lists of their broken files; returns the exit status.

    Raises:
        UserError: A wrong input; no list is written.
    """
    from alr_fast.utils.console import Console

    console = Console()
    track = partial(console.track, every=_SECONDS_PER_LINE)
    dataset = open_dataset(
        options.data, options.root, columns=options.columns, images=options.images
    )
    console.log(f"{dataset.layout.name}: {dataset.found.what}")
    if dataset.layout.name == packed.LAYOUT.name:
        # Before anything else: in a changed shard every result would be wrong.
        with reading(dataset.found.root):
            packed.check_shards(
                dataset.found,
                options.split,
                lambda shards: track(shards, description="Comparing checksums", total=len(shards)),
            )
    splits = _chosen_splits(dataset, options.split, console.log)
    for name in [name for name, split in splits.items() if split.values is not None]:
        console.log(f"{name}: {_in_memory(splits[name])}, there is nothing to verify")
        del splits[name]
    if not splits:
        return 0
    output = options.output
    lists = _exclusion_lists(splits, output)
    known = KnownFiles() if len(splits) > 1 else None
    most = None if options.all else 3
    reports = {}
    for name, split in splits.items():
        began = time.monotonic()
        report = verify_split(
            split,
            dataset.found.root,
            workers=options.workers,
            again=options.again,
            known=known,
            progress=partial(track, description=f"Verifying {name}", total=len(split)),
        )
        reports[name] = report
        _print_report(console, name, report, time.monotonic() - began, most)
        if report.broken and len(report.broken) == len(report.index):
            # Training on the rest is impossible; a list would only keep it from files that return.
            console.log(
                f"{name}: no file can be read, so no list is written; mount the disk or restore "
                f"the files, and call `{verify_command(split)}` again"
            )
            continue
        write_exclusions(lists[name], report.exclusions())
        if report.broken:
            console.log(
                f"{name}: list written to {lists[name]}; training on this split leaves out these "
                + ("files by default" if output is None else f"files with --data.exclude {output}")
            )
    _report_duplicates(console, find_duplicates(reports), splits, most)
    return 1 if any(report.broken for report in reports.values()) else 0


def _report_duplicates(
    console: "Console", found: Duplicates, splits: dict[str, Split], most: int | None
) -> None:
    """Prints the images that occur several times, and writes a list of those of each split."""
    rows = []
    for kind, count in found.counts().items():
        examples = found.examples(kind, None if most is None else most + 1)
        rows.append((kind, count, "kept", examples))
    _print_table(console, rows, most)
    for name, split in splits.items():
        path = duplicates_file(split)
        count = found.write(path, name)
        if count:
            console.log(
                f"{name}: the {count:,} images that occur several times are listed in {path}; "
                "training keeps them; those of a list that you make of it are left out with "
                "--data.exclude"
            )


def run_pack(options: argparse.Namespace) -> int:
    """Packs splits into shards; returns the exit status.

    Raises:
        UserError: A wrong input.
    """
    from alr_fast.utils.console import Console

    console = Console()
    out = options.out
    with naming_options(shard_mb="shard-mb", split="split"):
        packer = Packer(
            out,
            shard_mb=options.shard_mb,
            workers=options.workers,
            track=partial(console.track, every=_SECONDS_PER_LINE),
        )
        dataset = open_dataset(
            options.data, options.root, columns=options.columns, images=options.images
        )
        console.log(f"{dataset.layout.name}: {dataset.found.what}")
        if dataset.layout.name == features.LAYOUT.name:
            raise UserError(
                f"{options.root}: is one file of features already; only images are packed"
            )
        splits = _chosen_splits(dataset, options.split, console.log)
        plans = packer.check(dataset, splits, options.exclude, console.log)
    for name, plan in plans.items():
        result = packer.pack(plan)
        remark = f", {result.left_out:,} left out" if result.left_out else ""
        console.log(
            f"{name}: {len(plan.split):,} samples{remark}, in {result.shards:,} shards of "
            f"{result.size / 2**20:,.0f} MiB; {result.written:,} of them written now"
        )
    console.log(f"train on them: {python_command('alr_fast.train', '--data-root', out)}")
    return 0


def _chosen_splits(
    dataset: Dataset, names: Iterable[str], log: Callable[[str], None]
) -> dict[str, Split]:
    """The named splits; without names all readable ones, and always ``train``.

    Raises:
        UserError: A named split, or ``train``, cannot be read.
    """
    chosen = list(dict.fromkeys(names))
    if not chosen and dataset.layout.name == packed.LAYOUT.name:
        chosen = list(packed.read_manifest(dataset.found.root)["splits"])
    splits = {}
    for name in chosen or dataset.layout.splits:
        try:
            splits[name] = dataset.split(name)
        except UserError as error:
            if chosen or name == "train":
                raise
            if name != "val" or not isinstance(error, NoSplit):  # few data sets have it
                log(f"{name}: skipped ({error})")
            continue
        if not chosen and name == "val" and _same(splits.get("test"), splits["val"]):
            del splits["val"]  # of a data set without a test split
    for remark in dict.fromkeys(remark for split in splits.values() for remark in split.remarks):
        log(remark)
    return splits


def _same(split: Split | None, other: Split) -> bool:
    """Whether two splits are the same samples."""
    return split is not None and (
        split.index.sample_fingerprint() == other.index.sample_fingerprint()
    )


def _in_memory(split: Split) -> str:
    if isinstance(split.images, FeatureRows):
        return "its features are read and checked whenever they are used"
    return "its images are arrays"


def _exclusion_lists(splits: dict[str, Split], output: Path | None) -> dict[str, Path]:
    """The file for the exclusion list of each split.

    Raises:
        UserError: One file for several splits, or a folder that does not exist.
    """
    if output is None:
        return {name: default_exclusion_file(split) for name, split in splits.items()}
    if len(splits) != 1:
        raise UserError(
            f"--output {output}: one file cannot hold the lists of {', '.join(splits)}; name one "
            "with --split, or leave --output out"
        )
    if not output.parent.is_dir() or output.is_dir():
        raise UserError(f"--output {output}: no file can be written there; name another")
    return {name: output for name in splits}


def _print_report(
    console: "Console", name: str, report: VerifyReport, seconds: float, most: int | None
) -> None:
    """Prints the findings in a split, with at most ``most`` paths each."""
    total, broken = len(report.index), len(report.broken)
    speed = f", {report.read / seconds:,.0f} a second" if report.read > 1000 else ""
    before = f", {total - report.read:,} known from before" if report.read < total else ""
    console.log(
        f"{name}: {total:,} files, {total - broken:,} fine and {broken:,} excluded; "
        f"{report.read:,} read in {seconds:.1f} s{speed}{before}"
    )
    paths = report.index.paths
    rows = [
        (kind, len(found), "excluded" if kind in KINDS else "kept", [paths[row] for row in found])
        for kind, found in report.findings().items()
    ]
    _print_table(console, rows, most)


def _print_table(
    console: "Console", rows: list[tuple[str, int, str, list[str]]], most: int | None
) -> None:
    """Prints kind, number of files, what happens to them, and the first ``most`` examples."""
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table("found", "files", "", "for example", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for kind, count, fate, examples in rows:
        shown = examples[:most] + ["..."] * (most is not None and len(examples) > most)
        text = Text("\n".join(map(printable, shown)))  # as `Text`: it may contain markup
        table.add_row(Text(kind), f"{count:,}", fate, text)
    console.terminal.print(table)


def parser() -> CommandParser:
    """The arguments of the command."""
    parser = CommandParser(module="alr_fast.data", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=CommandParser)
    verify = commands.add_parser(
        "verify",
        help="find broken files and list them, for training to leave out",
        description="Reads every image file to its end and lists the unreadable and damaged ones, "
        "for training to leave out; names images that occur several times, under two labels or in "
        "train and in test; compares the checksums of a packed data set. Resumes an "
        "interrupted call; a second call reads only files that have changed or were broken. Exit "
        "status: 0 nothing is broken, 1 something is, 2 a wrong input.",
    )
    _common(verify)
    verify.add_argument(
        "--output", type=path_option, metavar="FILE", help="list to write, instead of the default"
    )
    verify.add_argument(
        "--again", action="store_true", help="also read unchanged files that were fine"
    )
    verify.add_argument("--all", action="store_true", help="name all files of each kind, not three")
    verify.set_defaults(run=run_verify)
    pack = commands.add_parser(
        "pack",
        help="write the images into tar shards (WebDataset) for training",
        description="Writes the images, byte for byte, into tar shards that WebDataset and DALI "
        "can read, with an index for training. Sample ids stay the same. Resumes an interrupted "
        "call. Run verify first: the files that it lists are left out.",
    )
    _common(pack)
    pack.add_argument("out", type=path_option, metavar="OUT", help="folder for the shards")
    pack.add_argument(
        "--shard-mb", type=int, default=256, metavar="MB", help="size of a shard in MiB (256)"
    )
    exclude = pack.add_argument(
        "--exclude",
        default="auto",
        type=text_option,
        metavar="LIST",
        help="CSV list of samples to leave out; auto: the list that verify wrote; none (auto)",
    )
    offer(exclude, Offer(("auto", "none"), "files"))
    pack.set_defaults(run=run_pack)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "root", type=path_option, metavar="ROOT", help="folder or file of the data set"
    )
    data = parser.add_argument(
        "--data", default="auto", metavar="NAME", help="data set; auto detects it (auto)"
    )
    offer(data, Offer(get_args(DatasetName)))
    parser.add_argument(
        "--columns", metavar="PATH=..,LABEL=..", help="of a list, the names of its columns"
    )
    parser.add_argument(
        "--images", type=path_option, metavar="DIR", help="of a list, the folder of its images"
    )
    split = parser.add_argument(
        "--split", nargs="+", default=[], metavar="NAME", help="splits (all)"
    )
    offer(split, Offer(SPLITS))
    parser.add_argument("--workers", type=int, metavar="N", help="threads that read (one per core)")


if __name__ == "__main__":
    sys.exit(main())
