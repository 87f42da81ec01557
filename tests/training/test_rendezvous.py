"""Variables of another job in the environment: no wait without end, and a line that names them."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from alr_fast.errors import UserError
from alr_fast.training import distributed
from helpers.patience import PATIENCE

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ADDRESS = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}  # nobody listens there


@pytest.fixture
def environment(monkeypatch):
    """Sets these variables of torchrun and no others; waits only a second for other processes."""

    def set_variables(variables):
        for name in (*NAMES, "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(distributed, "_START_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr(distributed, "_PATIENCE", 0.1)
    return set_variables


STALE = {
    "rank 0 waits for nobody": (
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"},
        "clients",
    ),
    "rank 1 finds nobody": ({"RANK": "1", "WORLD_SIZE": "2", **ADDRESS}, "refused"),
    "no such machine": (
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a.invalid", "MASTER_PORT": "1"},
        "a.invalid:1: ",
    ),
    "no address": ({"RANK": "1", "WORLD_SIZE": "2"}, "not the address of process 0"),
    "no size": ({"RANK": "0", **ADDRESS}, "not all of these are there as numbers"),
    "no number": ({"RANK": "x", "WORLD_SIZE": "2", **ADDRESS}, "numbers"),
    "no port": ({"RANK": "1", "WORLD_SIZE": "2", **ADDRESS, "MASTER_PORT": "x"}, "numbers"),
    "a rank too high": ({"RANK": "2", "WORLD_SIZE": "2", **ADDRESS}, "RANK must be below"),
    "a local rank": ({"RANK": "1", "WORLD_SIZE": "2", **ADDRESS, "LOCAL_RANK": "-"}, "numbers"),
}


@pytest.mark.parametrize("case", STALE)
def test_a_stale_environment_is_one_line(environment, case):
    variables, problem = STALE[case]
    environment(variables)
    began = time.monotonic()
    with pytest.raises(UserError) as raised, distributed.process_group():
        pass
    assert time.monotonic() - began < PATIENCE
    message = str(raised.value)
    assert problem in message and "\n" not in message
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        if name in variables:
            assert f"{name}={variables[name]}" in message
    assert message.endswith("unset RANK WORLD_SIZE")
    assert not dist.is_initialized()


def test_a_line_says_early_whom_it_waits_for(environment, capsys):
    environment({"RANK": "1", "WORLD_SIZE": "2", **ADDRESS})
    with pytest.raises(UserError), distributed.process_group():
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("waiting up to 0:00:01: RANK=1 WORLD_SIZE=2 MASTER_ADDR=localhost")
    assert line.endswith("unset RANK WORLD_SIZE")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "", "WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a.invalid", "MASTER_PORT": "1"},
    ],
)
def test_one_process_waits_for_nobody(environment, variables):
    environment(variables)
    with distributed.process_group() as world:
        assert (world.rank, world.size) == (0, 1)


def test_ctrl_c_while_it_waits():
    code = (
        "from alr_fast.training import distributed\n"
        "distributed._PATIENCE = 0.1\n"
        "with distributed.process_group(): pass"
    )
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **variables, "LOCAL_RANK": "0"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline().startswith("waiting up to 0:05:00")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == -signal.SIGINT
    process.stderr.close()
