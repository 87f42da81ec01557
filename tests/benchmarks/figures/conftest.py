"""Finished runs, trained once for all tests of figures."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.finished_runs import EPOCHS, trained
from helpers.image_folder import write_folder
from helpers.problems import threads


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with digits."""
    with threads(1):
        return trained(
            tmp_path_factory.mktemp("runs"), "--recipe", "digits", "--optim.epochs", str(EPOCHS)
        )


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with image files, and the folder to which these were moved afterwards."""
    folder = tmp_path_factory.mktemp("photographs")
    counts = {"cat": 12, "dog": 12, "owl": 12}
    write_folder(folder / "old", train=counts, test=counts, size=(12, 8))
    with threads(1):
        done = trained(
            folder / "runs",
            *("--data-root", str(folder / "old"), "--recipe", "folder"),
            *("--model.name", "conv-mini", "--optim.epochs", "2", "--alr.warmup_epochs", "1"),
        )
    shutil.move(folder / "old", folder / "new")
    # One of the test images is damaged afterwards.
    (folder / "new" / "test" / "dog" / "003.png").write_bytes(b"no image")
    return done, folder / "new"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with nothing in it."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def broken_run(run: Path, tmp_path: Path) -> Callable[[Callable[[Path], object]], Path]:
    """Copies the run and damages the copy."""

    def make(damage: Callable[[Path], object]) -> Path:
        copy = tmp_path / "copy"
        shutil.copytree(run, copy)
        damage(copy)
        return copy

    return make
