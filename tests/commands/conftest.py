"""Fixtures of the tests of commands."""

import shutil

import pytest

from alr_fast.train import main
from helpers import exported_runs
from helpers.image_folder import write_folder


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "set", train={"a": 12, "b": 12}, test={"a": 4, "b": 4})


@pytest.fixture
def train_folder(root, tmp_path, one_thread):
    """Trains on a folder of 24 images; returns the exit status and the folder of runs."""

    def train(*argv):
        runs = tmp_path / "runs"
        given = ["--data-root", str(root), "--runs", str(runs), "--optim.epochs", "2"]
        return main([*given, "--optim.batch_size", "8", "--data.workers", "1", *argv]), runs

    return train


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Folder of a finished run on the digits; no test writes into it."""
    return exported_runs.train_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def run(digits, tmp_path):
    """A copy of the run."""
    return shutil.copytree(digits, tmp_path / "run")


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory):
    """Folder of 24 images, and folder of a run on them; no test writes into them."""
    return exported_runs.train_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture
def moved(folder_run, tmp_path):
    """Copies of both; the run does not find the images."""
    return exported_runs.moved_copy(*folder_run, tmp_path)
