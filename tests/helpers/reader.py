"""A reader who pastes the blocks of a page one after another, into one folder."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alr_fast import train
from helpers import features, image_folder, layouts
from helpers.documents import ROOT, Block


class Reader:
    """Pastes blocks into one shell and one Python session, both in the same folder.

    Attributes:
        folder: The folder; it must be the working folder of this process.
        names: The names of the Python session.
        finished: A run that ``runs/latest`` names whenever a block begins; None for the one that
            finished last.
    """

    def __init__(
        self, folder: Path, names: dict[str, Any] | None = None, finished: Path | None = None
    ) -> None:
        self.folder, self.finished = folder, finished
        self.names = {"__name__": "__main__", **(names or {})}

    def read(self, block: Block) -> None:
        """Saves, pastes or, if it installs something, skips a block."""
        if block.file is not None:
            (self.folder / block.file).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(block.document), "exec"), self.names)
        elif block.language == "sh" and not block.installs:
            self._paste(block)

    def _paste(self, block: Block) -> None:
        if self.finished is not None:
            latest = self.finished.with_name("latest")
            latest.unlink()
            latest.symlink_to(self.finished.name)
        programs = str(self.folder / ".venv" / "bin")
        done = subprocess.run(
            ["bash", "-e", "-c", block.code],
            cwd=self.folder,
            env={
                **os.environ,
                "PATH": f"{programs}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "SLURM_NNODES": "1",
                "SLURM_JOB_ID": "1",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"

    def forget_modules(self) -> None:
        """Forgets the modules that were saved as files of the folder and imported."""
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and Path(file).is_relative_to(self.folder):
                del sys.modules[name]


def write_data(folder: Path) -> Path:
    """Writes what a page calls DIR and features.npz, and a finished run; returns the folder."""
    classes = {"cat": 24, "dog": 24}
    image_folder.write_folder(folder / "DIR", train=classes, test=classes, size=(24, 20))
    features.write_digits(folder / "features.npz", samples=400)
    layouts.write_clothing1m(folder / "clothing1m")
    layouts.write_webvision(folder / "webvision")
    small = ["--data.limit", "200", "--data.test_limit", "50", "--optim.epochs", "3"]
    words = [*small, "--alr.warmup_epochs", "1", "--alr.momentum", "0.3", "--log.show", "quiet"]
    assert train.main([*words, "--runs", str(folder / "runs")]) == 0
    return folder


def surroundings() -> dict[str, Any]:
    """Names that the examples of the README use, on data that a linear model learns."""
    torch.manual_seed(0)
    truth = torch.arange(300) % 10
    images = nn.functional.one_hot(truth, 10).float() + 0.1 * torch.randn(300, 10)
    labels = truth.clone()
    labels[:60] = torch.randint(10, (60,))
    model = nn.Linear(10, 10)
    batches = [(images[i], labels[i], i) for i in torch.randperm(300).split(50)]
    return {
        "X": images,
        "y": labels,
        "labels": labels,
        "truth": truth,
        "loader": batches,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=1.0),
    }
