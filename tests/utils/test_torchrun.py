"""torchrun's summary shows the message of the process that failed."""

import json
import os
import subprocess
import sys

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from alr_fast.errors import SharedError, UserError
from alr_fast.utils.command import exit_status


@pytest.fixture
def error_file(tmp_path, monkeypatch):
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    monkeypatch.setenv("RANK", "1")
    return path


def failing(error):
    def action():
        raise error

    return action


def summary(error_file):
    """What torchrun prints at its end."""
    failure = ProcessFailure(local_rank=1, pid=7, exitcode=2, error_file=str(error_file))
    return ChildFailedError("alr_fast.train", {1: failure}).format_msg()


@pytest.mark.parametrize("kind", [UserError, SharedError])
def test_a_wrong_input(error_file, capsys, kind):
    message = "the disk is full; free some space"
    assert exit_status(failing(kind(message))) == 2
    assert f"traceback : {message}\n" in summary(error_file)
    expected = "" if kind is SharedError else f"error in process 1: {message}\n"
    assert capsys.readouterr().err == expected


def test_a_fault_of_the_program(error_file):
    with pytest.raises(ZeroDivisionError):
        exit_status(failing(ZeroDivisionError("by zero")))
    assert "ZeroDivisionError: by zero" in summary(error_file)
    assert int(json.loads(error_file.read_text())["message"]["extraInfo"]["timestamp"]) > 1e9


def test_without_torchrun_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert exit_status(failing(UserError("wrong"))) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_torchrun_that_is_gone(error_file, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(error_file.parent / "gone" / "error.json"))
    assert exit_status(failing(UserError("wrong"))) == 2
    assert capsys.readouterr().err == "error in process 1: wrong\n"


@pytest.mark.slow
def test_torchrun(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    options = ["-m", "alr_fast.train", "--optim.batch_size", "33", "--runs", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    end = done.stderr[done.stderr.index("Root Cause") :]
    assert "--optim.batch_size 33: cannot be shared equally among 2 processes" in end
