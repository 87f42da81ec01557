"""Injects noise into the training labels of a data set and writes them to a file.

    alr-fast noise --data digits --kind symmetric --rate 0.4 --output noisy.npz
    alr-fast noise --data-root DIR --kind asymmetric --rate 0.4 --output noisy.npz
    alr-fast noise --data-root DIR --kind matrix --matrix T.csv --output noisy.npz

The noise is injected into the given labels of the data set, even if true labels are known, too. The
format of the file is that of `alr_fast.noise.files`.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from alr_fast.data import open_dataset
from alr_fast.data.datasets import DatasetName
from alr_fast.data.loaders.memory import decode_all
from alr_fast.data.paths import path_option
from alr_fast.errors import UserError, naming_options
from alr_fast.noise.files import check_output, read_matrix, save_labels
from alr_fast.noise.injection import (
    NOISE_MODELS,
    check_noise,
    class_numbers_line,
    inject,
    needs_features,
)
from alr_fast.utils.command import CommandParser, Offer, exit_status, offer, show

RATELESS = ("none", "matrix")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for a wrong input, 130 when interrupted."""
    return exit_status(lambda: show(run(parser().parse_args(argv))))


@naming_options(
    name="data",
    root="data-root",
    column="column",
    columns="columns",
    images="images",
    kind="kind",
    rate="rate",
    seed="seed",
    matrix="matrix",
)
def run(options: argparse.Namespace) -> str:
    """Reads, injects and writes; returns a line about the result.

    Raises:
        UserError: A wrong input; nothing is written.
    """
    rate = options.rate or 0.0
    _check(options, rate)
    matrix = None if options.matrix is None else read_matrix(options.matrix)
    check_output(options.output, overwrite=options.overwrite)

    split = open_dataset(
        options.data,
        options.data_root,
        column=options.column,
        columns=options.columns,
        images=options.images,
    ).split("train")
    for line in split.remarks:
        show(line)
    index = split.index
    features, remark = None, ""
    if needs_features(options.kind):
        features = split.values
        if features is None:
            decoded = decode_all(split, options.image_size, reduce=False)
            features = decoded.array
            if decoded.broken:
                remark = f"; unreadable images, replaced by black: {len(decoded.broken):,}"
    noise = inject(
        index.labels,
        num_classes=index.num_classes,
        kind=options.kind,
        rate=rate,
        seed=options.seed,
        class_names=index.class_names,
        features=features,
        matrix=matrix,
    )
    numbers = class_numbers_line(options.kind, index.class_names)
    if numbers is not None:
        show(numbers)
    save_labels(options.output, noise, index, overwrite=options.overwrite)
    return (
        f"{noise.kind}: {noise.requested_rate:.2%} requested, {noise.realised_rate:.2%} of "
        f"{len(index):,} labels changed, seed {noise.seed}; written to {options.output}{remark}"
    )


def _check(options: argparse.Namespace, rate: float) -> None:
    """Checks the options that need no data."""
    if options.rate is None and options.kind not in RATELESS:
        raise UserError(f"--kind {options.kind}: needs a rate; pass --rate, 0 to 1")
    if options.rate is not None and options.kind in RATELESS:
        raise UserError(f"--rate {options.rate}: kind {options.kind} takes no rate; leave it out")
    if (options.matrix is None) == (options.kind == "matrix"):
        raise UserError("--matrix FILE goes with --kind matrix, and only with it")
    if options.image_size < 1:
        raise UserError(f"--image-size {options.image_size}: must be 1 or more")
    check_noise(options.kind, rate)
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more")


def parser() -> CommandParser:
    """The arguments of the command."""
    parser = CommandParser(
        module="alr_fast.noise",
        description="Injects label noise into the training labels of a data set, even if true "
        "labels are known, too, and writes the noisy labels to a file.",
    )
    parser.add_argument(
        "--data-root", type=path_option, metavar="DIR", help="folder or file of the data set"
    )
    data = parser.add_argument(
        "--data",
        default="auto",
        metavar="NAME",
        help="data set; auto recognises the one in the folder (auto)",
    )
    offer(data, Offer(get_args(DatasetName)))
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="of a file of features, the array or column that contains them",
    )
    parser.add_argument(
        "--columns", metavar="PATH=..,LABEL=..", help="of a list, the names of its columns"
    )
    parser.add_argument(
        "--images", type=path_option, metavar="DIR", help="of a list, the folder of its images"
    )
    parser.add_argument(
        "--kind", required=True, choices=NOISE_MODELS, metavar="KIND", help=", ".join(NOISE_MODELS)
    )
    parser.add_argument(
        "--rate", type=float, metavar="R", help="0 to 1; for every kind except none and matrix"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the noise (0)")
    parser.add_argument(
        "--matrix",
        type=path_option,
        metavar="FILE",
        help=".npy or .csv, K rows of K probabilities: row y is the distribution of the noisy "
        "label if the true class is y",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        default=32,
        metavar="S",
        help="side in pixels to which image files are reduced for kind instance (32)",
    )
    parser.add_argument(
        "--output", required=True, type=path_option, metavar="FILE", help="file to write, .npz"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
