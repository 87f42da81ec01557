"""Fixtures of trainings in separate processes.

The results of a training with faults are compared bit by bit with those of a training without.
"""

import json

import pytest

from helpers import training_process
from helpers.training_process import outcome


@pytest.fixture(scope="session")
def server():
    server = training_process.Server()
    yield server
    server.close()


@pytest.fixture
def start(server, tmp_path):
    """Starts a training in one folder; all trainings append to one log."""

    def start(*argv, **options):
        runs = tmp_path / "runs"
        return server.start("--runs", runs, *argv, log=tmp_path / "log", **options)

    return start


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def undisturbed(server, tmp_path_factory):
    """Outcome of a training with these options and without faults; each is trained once."""
    made = {}

    def train(*argv, **options):
        key = json.dumps([list(map(str, argv)), options])
        if key not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            training = server.start("--runs", folder / "runs", *argv, log=folder / "log", **options)
            assert training.wait() == 0, training.output
            made[key] = outcome(folder / "runs")
        return made[key]

    return train
