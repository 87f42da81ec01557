"""Draws figures from folders of finished runs of `python -m alr_fast.train`.

    python -m benchmarks.figures memorisation RUN --method ce --output memorisation.png
    python -m benchmarks.figures shares RUN --methods ce alr --output shares.png
    python -m benchmarks.figures tsne RUN [RUN ...] --methods ce alr --output tsne.png

`memorisation` shows the accuracy on the given labels, which keeps rising while test accuracy falls;
`shares` the predictions for training samples with a right and with a wrong label; `tsne` an
embedding of the features before the last layer of a trained model, for images of the test set. The
main numbers of the figure are printed as well. Nothing is trained.

Exit status: 0 on success, 2 for a wrong input, 130 if interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alr_fast.errors import naming_options
from alr_fast.train import TRAIN_EXTRA
from alr_fast.utils.command import CommandParser, exit_status, need
from benchmarks.figures.curves import memorisation, shares
from benchmarks.figures.runs import check_output
from benchmarks.figures.style import save
from benchmarks.figures.tsne import tsne


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, see above."""

    def action() -> None:
        need(TRAIN_EXTRA, "train", what="drawing figures")
        arguments = _parser().parse_args(argv)
        with naming_options(**{name: name for name in vars(arguments)}):
            check_output(arguments.output)
            figure, text = arguments.make(arguments)
        save(figure, arguments.output)
        print(f"{text}; {arguments.output}")

    return exit_status(action)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m benchmarks.figures", allow_abbrev=False, description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(metavar="FIGURE", required=True, parser_class=CommandParser)

    def add(name: str, make, text: str, **runs: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, allow_abbrev=False, help=text, description=text)
        command.add_argument("run", type=Path, metavar="RUN", help="folder of a run", **runs)
        command.add_argument("--output", type=Path, required=True, metavar="FILE",
                             help="the PNG to write")  # fmt: skip
        command.set_defaults(make=make)
        return command

    text = "training and test accuracy of a method over the epochs"
    command = add("memorisation", memorisation, text)
    command.add_argument("--method", default="ce", help="the method (default ce)")
    command = add("shares", shares, "correct, memorised and incorrect predictions over the epochs")
    command.add_argument("--methods", nargs="+", metavar="METHOD", default=["ce", "alr"],
                         help="the methods (default ce alr)")  # fmt: skip
    command = add("tsne", tsne, "t-SNE of the penultimate features of test images", nargs="+")
    command.add_argument("--methods", nargs="+", metavar="METHOD",
                         help="the methods (default: all of a run)")  # fmt: skip
    command.add_argument("--samples", type=int, default=1000, metavar="N",
                         help="test images, drawn at random; all if there are fewer "
                         "(default 1000)")  # fmt: skip
    command.add_argument("--perplexity", type=float, default=30.0, metavar="P",
                         help="effective number of neighbours in t-SNE, below the number of "
                         "samples (default 30)")  # fmt: skip
    command.add_argument("--seed", type=int, default=0, metavar="N",
                         help="seed of the sampling and of t-SNE (default 0)")  # fmt: skip
    command.add_argument("--data-root", metavar="DIR",
                         help="folder of the data, if it was moved since the run")  # fmt: skip
    command.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
