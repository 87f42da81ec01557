"""Predicts the classes of images, or of rows of features, with a trained model.

    alr-fast predict runs/latest photo.jpg            # prints class and probability
    alr-fast predict RUN FOLDER LIST.csv --output FILE.csv
    alr-fast predict alr.safetensors features.npz --output FILE.parquet --soft

RUN is the folder of a run, of which the last method is taken, or the file METHOD.safetensors alone.
Samples are image files, folders of images at any depth, lists (tables with a column of paths), or,
for a model of features, .npz and Parquet files. They are prepared as the test samples of the run.

One row for each sample that can be read:

    path                 as named, from the current folder; of features as in their file
    class, probability   the most probable class by its name, and its probability
    class_2, probability_2, ...
                         the next ones, with --top
    probabilities        of all classes, with --soft (in CSV a column for each class, p0, p1, ...)

`alr-fast train --labels FILE` trains on these classes, see docs/training.md. A table of a
million images is written piece by piece.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alr_fast.data.paths import path_option
from alr_fast.data.tables.writing import SUFFIXES
from alr_fast.errors import UserError, naming_options
from alr_fast.utils.command import DEVICES, CommandParser, Offer, exit_status, need, offer, show
from alr_fast.utils.text import shortened

if TYPE_CHECKING:
    from alr_fast.training.prediction import Prediction

NEEDED = ("pyarrow", "yaml", "PIL", "simplejpeg", "torchvision", "timm", "safetensors", "rich")
SHOWN = 20  # rows without a file
_NO_MEMORY = "can't allocate memory|not enough memory|out of memory"  # as torch says it


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a wrong input."""
    return exit_status(lambda: run(parser().parse_args(argv)))


@naming_options(
    **{name: name for name in ("column", "device", "method", "top", "workers")},
    root="data-root",
    batch_size="batch-size",
)
def run(options: argparse.Namespace) -> None:
    """Writes or prints the predictions.

    Raises:
        UserError: A wrong input; nothing is written.
    """
    need(NEEDED, "train", what="prediction")
    from alr_fast.training.prediction import Prediction
    from alr_fast.utils.console import Console

    output: Path | None = options.output
    if output is not None and output.suffix not in SUFFIXES:
        raise UserError(f"--output {output}: name a file that ends with .csv or .parquet")
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: no folder {output.parent}; make it first")
    if options.soft and output is None:
        raise UserError("--soft: the probabilities of all classes need a file; pass --output")
    console = Console()
    prediction = Prediction.of(
        options.run,
        options.images,
        method=options.method,
        root=options.data_root,
        column=options.column,
        top=options.top,
        soft=options.soft,
        device=options.device,
        batch_size=options.batch_size,
        workers=options.workers,
        most=None if output is not None else SHOWN,
        log=console.log,
        warn=console.warn,
    )
    batches = prediction.pieces()
    if prediction.steps > 1:
        batches = console.track(
            batches, description="Batches to predict", total=prediction.steps, every=10.0
        )
    counts: Counter[str] = Counter()
    with _enough_memory(options.run, prediction.description.transform.size):
        if output is None:
            _print(console, prediction, list(batches))
            return
        prediction.write(output, _counted(batches, counts))
    most = counts.most_common(5)
    common = ", ".join(f"{number:,} {shortened(name, 100)}" for name, number in most)
    more = f" and {len(counts) - 5} more classes" if len(counts) > 5 else ""
    show(f"{counts.total():,} of {prediction.found:,} samples: {common}{more}")
    show(str(output))


@contextmanager
def _enough_memory(run: Path, size: int) -> Iterator[None]:
    """Names the size of the images, which a file of weights chooses, if there is no memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        lines = str(error).splitlines()
        if not isinstance(error, MemoryError) and not re.search(_NO_MEMORY, str(error)):
            raise
        raise UserError(
            f"{run}: not enough memory for samples of {size:,} x {size:,} pixels "
            f"({lines[0] if lines else 'out of memory'}); pass a smaller --batch-size or another "
            "model"
        ) from error


def _counted(pieces: Iterator[dict[str, Any]], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for piece in pieces:
        counts.update(piece["class"])
        yield piece


def _print(console: Any, prediction: "Prediction", pieces: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from alr_fast.utils.text import percent, printable

    names = [name for name in pieces[0] if name != "probabilities"]
    table = Table()
    for name in names:
        right = name.startswith("probability")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for piece in pieces:
        for row in zip(*(piece[name] for name in names), strict=True):
            table.add_row(
                *(Text(printable(cell) if isinstance(cell, str) else percent(cell)) for cell in row)
            )
    console.terminal.print(table)
    if len(prediction) < prediction.found:
        show(
            f"{prediction.found:,} samples, the first {len(prediction)} are shown; --output "
            "FILE.csv or FILE.parquet predicts all"
        )


def parser() -> CommandParser:
    """The arguments of the command."""
    parser = CommandParser(module="alr_fast.predict", description=__doc__.splitlines()[0])
    parser.add_argument(
        "run",
        metavar="RUN",
        type=path_option,
        help="folder of a run, for example runs/latest, or a file METHOD.safetensors",
    )
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        type=path_option,
        help="images, folders, lists of images; files of features for a model of features",
    )
    parser.add_argument("--method", metavar="METHOD", help="default: the last one of the run")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=path_option,
        help=f"table to write, .csv or .parquet (default: the first {SHOWN} rows are printed)",
    )
    parser.add_argument(
        "--top", metavar="N", type=int, default=1, help="classes of each sample (default 1)"
    )
    parser.add_argument("--soft", action="store_true", help="add the probability of each class")
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        type=path_option,
        help="folder that paths in lists are relative to (default: that of the list)",
    )
    parser.add_argument(
        "--column", metavar="NAME", help="array or column of a file of features (default X)"
    )
    device = parser.add_argument(
        "--device", default="auto", help="auto (CUDA if available), cpu, cuda, ... (default auto)"
    )
    offer(device, Offer(DEVICES))
    parser.add_argument(
        "--batch-size", metavar="N", type=int, help="samples at a time (default: as in the test)"
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="processes that read and decode (default: one for each core, at most 16)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
