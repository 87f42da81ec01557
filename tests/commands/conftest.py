"""Fixtures of the tests of commands."""

import pytest

from alr_fast.train import main
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
