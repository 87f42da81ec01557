"""Several processes: stopped, killed, restarted, and resumed on another number of them."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alr_fast.training.checkpoint.manifest import newest_checkpoint
from alr_fast.training.config.command_line import parse
from alr_fast.training.run_data import load_data
from helpers.faults import (
    OPTIONS,
    STEPS,
    TERM,
    checkpoints,
    newest_number,
    same,
    saved_tensors,
    slow,
)
from helpers.features import write_digits
from helpers.training_process import metrics, outcome, run_folder

pytestmark = pytest.mark.faults


# The rows stay close to the given labels, so that each row can be assigned to its sample.
GROUP = [*OPTIONS, "--alr.momentum", "0.95", "--checkpoint.steps", "3", "--checkpoint.keep", "3"]


@pytest.fixture(scope="module")
def stopped_pair(server, tmp_path_factory):
    """A run of two processes, stopped by SIGTERM to torchrun in the middle of the second epoch."""
    folder = tmp_path_factory.mktemp("pair")
    options = ["--runs", folder / "runs", *GROUP]
    faults = {"wait_for_signal": {"steps": STEPS + 5}}
    training = server.start(*options, log=folder / "log", processes=2, faults=faults)
    assert training.until(lambda: newest_number(folder / "runs") >= STEPS + 2), training.output
    training.send(signal.SIGTERM)
    assert training.wait() not in (0, None)
    output = training.output
    assert output.count("resumes there") == 1, output
    words = shlex.split(re.search(r"^stopped by .* resumes there: (.+)$", output, re.M)[1])
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "alr_fast.train"]
    assert words[1:] == [*torchrun, "--resume", str(run_folder(folder / "runs"))]
    checkpoint = newest_checkpoint(checkpoints(folder / "runs"))
    position = checkpoint.progress["position"]
    assert (checkpoint.world_size, position["epoch"], position["step"]) == (2, 1, 5)
    return folder / "runs"


def test_a_stopped_torchrun_resumes_bit_by_bit(start, runs, stopped_pair, undisturbed):
    shutil.copytree(stopped_pair, runs, symlinks=True)
    resumed = start("--resume", run_folder(runs), processes=2)
    assert resumed.wait() == 0, resumed.output
    assert resumed.output.count("alr: resumes in epoch") == 1
    same(outcome(runs), undisturbed(*GROUP, processes=2))


@pytest.mark.parametrize("processes", [None, slow(4)])
def test_another_number_of_processes_restores_the_row_of_each_sample(
    start, runs, stopped_pair, processes
):
    shutil.copytree(stopped_pair, runs, symlinks=True)
    before = newest_checkpoint(checkpoints(runs))
    # After one step all rows but those of one batch are unchanged.
    stop = {"signal_after": {"number": TERM, "steps": 1}}
    training = start(*GROUP, "--resume", "auto", processes=processes, faults=stop)
    assert training.wait() == (75 if processes is None else 1)
    assert "that epoch starts again" in training.output
    after = newest_checkpoint(checkpoints(runs))
    assert (after.number, after.world_size) == (before.number + 1, processes or 1)
    old, new = saved_tensors(before), saved_tensors(after)
    given = given_labels(200)
    assert torch.equal(new["bank.ids"], old["bank.ids"])
    for tensors in (old, new):
        assert torch.equal(tensors["bank.rows"].argmax(1), given[tensors["bank.ids"]])
        assert (tensors["bank.rows"].max(1).values < 1).sum() > 32  # refined
    assert (old["bank.rows"] != new["bank.rows"]).any(1).sum() == 32

    training = start(*GROUP, "--resume", "auto", processes=processes)
    assert training.wait() == 0, training.output
    saved = load_file(run_folder(runs) / "alr_bank.safetensors")
    assert torch.equal(saved["rows"].argmax(1), saved["given_labels"])
    assert (saved["rows"].max(1).values < 1).all()
    assert torch.equal(given[saved["ids"]], saved["given_labels"])


def test_no_process_evaluates_without_test_samples(start, runs, tmp_path):
    file = write_digits(tmp_path / "set.npz", samples=200, split=np.full(200, "train"))
    options = ["--data-root", file, "--methods", "alr", "--optim.epochs", "3"]
    stop = {"signal_after": {"number": TERM, "steps": 3}}
    assert start(*options, "--log.every", "1", processes=2, faults=stop).wait() == 1
    training = start(*options, "--resume", "auto", processes=2)
    assert training.wait() == 0, training.output
    # Each run says so once, and its table.
    assert training.output.count("no test samples: accuracy is not measured") == 4
    assert [row["test_accuracy"] for row in metrics(runs)] == ["", "", ""]


def given_labels(limit):
    """Noisy labels of the first samples, by sample id; -1 for other samples."""
    from alr_fast.noise import inject

    config = parse([*OPTIONS, "--data.limit", str(limit)])
    index = load_data(config.data, None, log=lambda line: None).train.index
    noise = inject(
        index.labels, num_classes=10, kind=config.noise.kind, rate=config.noise.rate, seed=0
    )
    labels = torch.full((int(index.sample_ids.max()) + 1,), -1)
    labels[torch.from_numpy(index.sample_ids)] = torch.from_numpy(noise.labels)
    return labels


@pytest.mark.parametrize(("processes", "rank"), [(2, 1), slow(2, 0), slow(4, 2)])
def test_torchrun_restarts_after_a_killed_rank(start, runs, undisturbed, processes, rank):
    faults = {"kill_rank": {"rank": rank, "steps": STEPS + 3}}
    training = start(*GROUP, "--resume", "auto", processes=processes, restarts=2, faults=faults)
    assert training.wait() == 0, training.output
    assert training.output.count("alr: resumes in epoch") == 1
    same(outcome(runs), undisturbed(*GROUP, processes=processes))


@pytest.mark.slow
def test_the_real_torchrun_with_a_killed_rank(runs, undisturbed):
    options = [*GROUP, "--model.name", "conv-tiny"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["4", "--max-restarts", "2", "-m", "alr_fast.train", *options]
    with subprocess.Popen(
        [*command, "--runs", str(runs), "--resume", "auto"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while newest_number(runs) < STEPS and process.poll() is None:
            time.sleep(0.01)
        os.kill(children(process.pid)[2], signal.SIGKILL)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("alr: resumes in epoch") == 1
    same(outcome(runs), undisturbed(*options, processes=4))


def children(pid):
    """Ids of the child processes of a process, ascending."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return sorted(map(int, text.split()))


@pytest.mark.slow
def test_the_disk_is_full_when_an_epoch_is_logged(start, runs, undisturbed):
    fault = {"full_disk": {"name": "metrics.csv", "at": 2}}
    training = start(*GROUP, processes=2, faults=fault)
    assert training.wait() == 0, training.output
    assert training.output.count("metrics.csv: No space left on device") == 1
    same(outcome(runs), undisturbed(*GROUP, processes=2))


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_all(start, runs, tmp_path, undisturbed):
    """No process waits for the one that failed."""
    moved = tmp_path / "moved"
    faults = {"move_run": {"runs": str(runs), "to": str(moved), "steps": 8}}
    training = start(*GROUP, processes=2, faults=faults)
    assert training.wait() == 1
    (name,) = set(re.findall(r"runs/(\S+): the folder of this run was removed", training.output))
    moved.rename(runs / name)
    resumed = start(*GROUP, "--resume", "auto", processes=2)
    assert resumed.wait() == 0, resumed.output
    same(outcome(runs), undisturbed(*GROUP, processes=2))
