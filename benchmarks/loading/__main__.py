"""Images per second of the loaders and of common alternatives, and the cost of a list of millions.

    python -m benchmarks.loading

Suite "loading": photographs as JPEG, generated here from a seed, are turned into batches: random
resized crop, mirrored, normalised, float32, channels last, on the training device, with the same
number of threads or worker processes for all loaders. For comparison it measures full decoding
alone, and the loader for small images. First each loader must return every image exactly once in an
epoch, and batches of the right kind. Then they take turns. A turn waits until the other loaders
have stopped prefetching, takes batches without timing until its own prefetched ones are used up,
then times a number of batches: the steady state, without the start of an epoch. The files stay in
the page cache.

Suite "index": WebVision's lists with 2.4 million lines, read for the first time, opened from the
cache, and used in a worker process, each in its own process.

Rows are written to benchmarks/results, from which `python -m benchmarks.report` generates tables.
With --tiny or --only they are written to the file of --json only.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from alr_fast.data.layouts import folder as folder_layout
from alr_fast.errors import UserError
from benchmarks.harness.command import new_parser, parse
from benchmarks.harness.results import FOLDER, ResultFile
from benchmarks.loading.contest import measure
from benchmarks.loading.index_cost import measure_index
from benchmarks.loading.variants import VARIANTS
from benchmarks.loading.work import TINY, Scale, Work
from benchmarks.tables.loading import index_terminal_cells, terminal_cells
from benchmarks.tables.markdown import show

_INDEX = "index"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = new_parser(__doc__, device="cpu", threads="of each loader",
                        seconds=(120, "time for all turns"), tiny="few small images")  # fmt: skip
    parser.add_argument("--images", type=int, metavar="N",
                        help="photographs, and images of a turn (default 1024)")  # fmt: skip
    parser.add_argument("--cifar", type=Path, metavar="DIR",
                        help="CIFAR-10 as JPEGs, train/<class>/* and test/<class>/*, for the rows "
                        "of small images; without it they are generated")  # fmt: skip
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=(*VARIANTS, _INDEX),
                        help=f"only these, of {', '.join((*VARIANTS, _INDEX))}")  # fmt: skip
    arguments = parse(parser, argv)
    scale = TINY if arguments.tiny else Scale()
    files = arguments.images if arguments.images is not None else (12 if arguments.tiny else 1024)
    if files < scale.batch:
        parser.error(f"--images {files}: a batch has {scale.batch}; raise it")
    if arguments.cifar is not None and folder_layout.find(arguments.cifar) is None:
        parser.error(f"--cifar {arguments.cifar}: looked for {folder_layout.LOOKED_FOR}")
    files = -(-files // scale.batch) * scale.batch  # an epoch has full batches only
    wanted = arguments.only or (*VARIANTS, _INDEX)
    names = [name for name in VARIANTS if name in wanted]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="alr_fast_") as folder:
        if names:
            work = Work(Path(folder), files, arguments.threads, arguments.device, scale,
                        arguments.cifar)  # fmt: skip
            try:
                rows += measure(work, names, arguments.seconds)
            except UserError as error:  # of --cifar
                parser.error(str(error))
            show("images per second", *terminal_cells(rows), text_columns=2)
            sizes = {row["source"]: row["bytes_per_file"] for row in rows if "files" in row}
            for name, size in sizes.items():
                print(f"{name}: {size:,.0f} bytes on average")
        if _INDEX in wanted:
            found = measure_index(Path(folder), scale.samples, scale.opens)
            title = f"index of {scale.samples:,} samples"
            show(title, *index_terminal_cells(found), text_columns=1)
            rows += found
    whole = not (arguments.tiny or arguments.only)
    ResultFile(FOLDER if whole else None, arguments.json).finish(rows)


if __name__ == "__main__":
    main()
