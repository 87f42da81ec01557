"""How far estimated transition matrices are from the noise that was injected, on the digits.

    python -m benchmarks.transitions

For each noise and seed a net is trained with cross entropy for few and for many epochs; from each
the matrix is estimated from anchor points and from confident counts, and forward correction is
trained with it, beside forward correction that is told the matrix. The error is that of
`alr_fast.noise.transition.transition_error`: mean over the classes of the summed absolute differences, 0
to 2. Rows go to benchmarks/results.
"""

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from alr_fast.noise.transition import transition_error
from alr_fast.train import main as train
from benchmarks.harness.environment import environment
from benchmarks.harness.grid import split_noise
from benchmarks.harness.results import FOLDER, ResultFile, as_text
from benchmarks.tables.accuracy import transition_cells
from benchmarks.tables.markdown import show

NOISES = ("symmetric-0.2", "symmetric-0.4", "symmetric-0.6", "asymmetric-0.4")
NET_EPOCHS = (10, 60)
SOURCES = ("anchor", "confident")
METHOD = "forward_correction"


def trained(folder: Path, noise: str, seed: int, *words: str) -> Path:
    """Folder of a finished run.

    Raises:
        SystemExit: It failed; it has said why.
    """
    kind, rate = split_noise(noise)
    argv = ["--recipe", "digits", "--seed", str(seed), "--noise.kind", kind]
    argv += ["--noise.rate", str(rate), "--log.show", "quiet", "--log.to", "csv"]
    with contextlib.redirect_stdout(io.StringIO()):
        status = train([*argv, *words, "--runs", str(folder)])
    if status != 0:
        raise SystemExit(status)
    return (folder / "latest").resolve()


def measure(noise: str, seed: int, net_epochs: Sequence[int], epochs: int) -> list[dict]:
    """The rows of one noise and seed."""
    with tempfile.TemporaryDirectory() as folder:
        runs, last = Path(folder), ("--optim.epochs", str(epochs))

        def row(run: Path, source: str, known: np.ndarray, trained_for: int | None) -> dict:
            matrix = np.loadtxt(run / f"{METHOD}_transition.csv", delimiter=",")
            summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
            return {
                "suite": "transitions",
                "noise": noise,
                "seed": seed,
                "source": source,
                "net_epochs": trained_for,
                "epochs": epochs,
                "error": transition_error(matrix, known),
                "test_accuracy_last": summary["methods"][METHOD]["test_accuracy_last"],
                "environment": environment(),
            }

        told = trained(runs, noise, seed, "--methods", METHOD, *last)
        known = np.loadtxt(told / f"{METHOD}_transition.csv", delimiter=",")
        rows = [row(told, "known", known, None)]
        for number in net_epochs:
            words = ("--methods", "ce", "--optim.epochs", str(number))
            net = trained(runs, noise, seed, *words) / "ce.safetensors"
            for source in SOURCES:
                words = ("--transition.source", source, "--transition.net", str(net), *last)
                run = trained(runs, noise, seed, "--methods", METHOD, *words)
                rows.append(row(run, source, known, number))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU (default 2)")
    parser.add_argument("--tiny", action="store_true", help="few epochs, to try the command")
    parser.add_argument("--json", metavar="FILE", help="write the rows there alone")
    arguments = parser.parse_args(argv)
    for name in ("seeds", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)}: pass 1 or more")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no such folder")
    torch.set_num_threads(arguments.threads)
    net_epochs, epochs = ((1, 2), 2) if arguments.tiny else (NET_EPOCHS, 60)
    noises = NOISES[:1] if arguments.tiny else NOISES
    rows: list[dict] = []
    file = None
    for noise in noises:
        for seed in range(arguments.seeds):
            rows += measure(noise, seed, net_epochs, epochs)
            if not (arguments.tiny or arguments.json):
                file = file or ResultFile(FOLDER, rows[0]["environment"])
                file.write(rows)  # a run that is stopped leaves what it had
    show("transition matrices", *transition_cells(rows))
    if arguments.json:
        Path(arguments.json).write_text(as_text(rows), encoding="utf-8")
    elif file is not None:
        print(f"rows in {file.path}")


if __name__ == "__main__":
    main()
