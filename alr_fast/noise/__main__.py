"""Injects noise into the training labels of a data set and writes them to a file.

    python -m alr_fast.noise --data digits --kind symmetric --rate 0.4 --output noisy.npz
    python -m alr_fast.noise --data-root DIR --kind asymmetric --rate 0.4 --output noisy.npz
    python -m alr_fast.noise --data-root DIR --kind matrix --matrix T.csv --output noisy.npz

The labels that get noise are the ones that the data set gives, also where true ones are known
beside them. The file is one of `alr_fast.noise.files`.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from alr_fast.errors import UserError, naming_options
from alr_fast.noise.files import check_output, read_matrix, save_labels
from alr_fast.noise.injection import NOISE_MODELS, check_noise, inject, needs_features
from alr_fast.utils.command import CommandParser, exit_status

PROG = "python -m alr_fast.noise"
RATELESS = ("none", "matrix")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for a wrong input, 130 when interrupted."""

    def action() -> None:
        try:
            print(run(_parser().parse_args(argv)))
        except UserError as error:  # models speak of the options of training, which have groups
            raise UserError(re.sub(r"^--noise\.", "--", str(error))) from None

    return exit_status(action)


def run(options: argparse.Namespace) -> str:
    """Reads, injects and writes; returns the line that says what came out.

    Raises:
        UserError: Something that the user can put right; nothing is written.
    """
    from alr_fast.data import open_dataset

    if options.rate is None and options.kind not in RATELESS:
        raise UserError(f"--kind {options.kind}: needs a rate; pass --rate, 0 to 1")
    if options.rate is not None and options.kind in RATELESS:
        raise UserError(f"--rate {options.rate}: kind {options.kind} takes no rate; leave it out")
    if (options.matrix is None) == (options.kind == "matrix"):
        raise UserError("--matrix FILE goes with --kind matrix, and only with it")
    if options.image_size < 1:
        raise UserError(f"--image-size {options.image_size}: must be 1 or more")
    rate = options.rate or 0.0
    check_noise(options.kind, rate)
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more")
    matrix = None if options.matrix is None else read_matrix(options.matrix)
    if not options.overwrite:
        check_output(options.output, overwrite=False)

    with naming_options(name="data", root="data-root"):
        split = open_dataset(options.data, options.data_root).split("train")
    index = split.index
    features, remark = None, ""
    if needs_features(options.kind):
        features = split.images.array
        if features is None:
            from alr_fast.data.loaders.memory import decode_all

            decoded = decode_all(split, options.image_size)
            features = decoded.array
            if decoded.broken:
                remark = f"; images that cannot be read, taken as black: {len(decoded.broken):,}"
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
    save_labels(options.output, noise, index, overwrite=options.overwrite)
    return (
        f"{noise.kind}: {noise.requested_rate:.2%} requested, {noise.realised_rate:.2%} of "
        f"{len(index):,} labels changed, seed {noise.seed}; written to {options.output}{remark}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=PROG,
        allow_abbrev=False,
        description="Injects label noise into the training labels of a data set, those that the "
        "data set gives, also where true ones are known beside them, and writes them to a file.",
    )
    parser.add_argument("--data-root", metavar="DIR", help="folder of the data set")
    parser.add_argument(
        "--data", default="auto", metavar="NAME", help="data set; auto looks at the folder (auto)"
    )
    parser.add_argument(
        "--kind", required=True, choices=NOISE_MODELS, metavar="KIND", help=", ".join(NOISE_MODELS)
    )
    parser.add_argument(
        "--rate", type=float, metavar="R", help="0 to 1; for every kind but none and matrix"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the noise (0)")
    parser.add_argument(
        "--matrix",
        metavar="FILE",
        help=".npy or .csv of K rows of K probabilities: row y holds what true class y becomes",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        default=32,
        metavar="S",
        help="side that images in files are reduced to for kind instance (32)",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="file to write, .npz")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
