"""The error of estimated transition matrices under injected noise, on the digits.

    python -m benchmarks.transitions

For each noise and seed a model is trained with cross entropy for few and for many epochs. From each
model the matrix is estimated from anchor points and from confident counts. Forward correction is
trained with each estimate, and for comparison with the known matrix. The error is that of
`alr_fast.noise.transition.transition_error`: mean over the classes of the summed absolute
differences, 0 to 2. Rows are written to benchmarks/results.
"""

import contextlib
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alr_fast.noise.transition import transition_error
from alr_fast.train import main as train
from alr_fast.training.run_paths import actual_path
from benchmarks.harness.command import new_parser, parse
from benchmarks.harness.environment import environment
from benchmarks.harness.grid import noise_words
from benchmarks.harness.results import FOLDER, ResultFile
from benchmarks.tables.accuracy import transition_cells
from benchmarks.tables.markdown import show

NOISES = ("symmetric-0.2", "symmetric-0.4", "symmetric-0.6", "asymmetric-0.4")
NET_EPOCHS = (10, 60)
SOURCES = ("anchor", "confident")
METHOD = "forward_correction"


def trained(folder: Path, noise: str, seed: int, *words: str) -> Path:
    """Folder of a finished run.

    Raises:
        SystemExit: The run failed; its error was printed.
    """
    argv = ["--recipe", "digits", *noise_words(noise, seed), *words]
    argv += ["--log.show", "quiet", "--log.to", "csv", "--runs", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()):
        status = train(argv)
    if status != 0:
        raise SystemExit(status)
    return actual_path(folder / "latest").resolve()


def measure(noise: str, seed: int, net_epochs: Sequence[int], epochs: int) -> list[dict]:
    """The rows of one noise and seed.

    Args:
        noise: Kind and rate.
        seed: Seed of the runs.
        net_epochs: Numbers of epochs of the models that the matrices are estimated with.
        epochs: Number of epochs of forward correction.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)

        def corrected(*words: str) -> tuple[np.ndarray, float]:
            """Matrix and test accuracy of forward correction."""
            length = ("--optim.epochs", str(epochs))
            run = trained(runs, noise, seed, "--methods", METHOD, *words, *length)
            matrix = np.loadtxt(run / f"{METHOD}_transition.csv", delimiter=",")
            summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
            return matrix, summary["methods"][METHOD]["test_accuracy_last"]

        found = [("known", None, *corrected())]
        for number in net_epochs:
            run = trained(runs, noise, seed, "--methods", "ce", "--optim.epochs", str(number))
            net = ("--transition.net", str(run / "ce.safetensors"))
            for source in SOURCES:
                found.append((source, number, *corrected("--transition.source", source, *net)))
    known = found[0][2]
    return [
        {
            "suite": "transitions",
            "noise": noise,
            "seed": seed,
            "source": source,
            "net_epochs": number,
            "epochs": epochs,
            "error": transition_error(matrix, known),
            "test_accuracy_last": accuracy,
            "environment": environment(),
        }
        for source, number, matrix, accuracy in found
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = new_parser(__doc__, threads="threads of the CPU", tiny="few epochs")
    parser.add_argument("--seeds", type=int, default=3, metavar="N",
                        help="number of seeds (default 3)")  # fmt: skip
    arguments = parse(parser, argv)
    net_epochs, epochs = ((1, 2), 2) if arguments.tiny else (NET_EPOCHS, 60)
    file = ResultFile(None if arguments.tiny else FOLDER, arguments.json)
    rows: list[dict] = []
    for noise in NOISES[:1] if arguments.tiny else NOISES:
        for seed in range(arguments.seeds):
            rows += measure(noise, seed, net_epochs, epochs)
            file.write(rows)
    show("transition matrices", *transition_cells(rows))
    file.finish(rows)


if __name__ == "__main__":
    main()
