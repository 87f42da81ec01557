"""Kills and signals at any time; the resumed run has the same results."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from alr_fast.training.checkpoint.manifest import list_checkpoints, newest_checkpoint
from helpers.faults import (
    DIGITS,
    END,
    EVALUATION,
    MIDDLE,
    NAN,
    OPTIONS,
    SMALL,
    STEPS,
    TERM,
    USR1,
    being_written,
    checkpoints,
    newest_number,
    same,
    saved_tensors,
    slow,
)
from helpers.image_folder import write_folder
from helpers.patience import PATIENCE
from helpers.training_process import options_of, outcome, run_folder

pytestmark = pytest.mark.faults


FLOAT16_EMA = ["--precision", "float16", "--model.ema_decay", "0.9"]


@pytest.mark.parametrize("kills", [4, pytest.param(24, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_has_the_same_results(start, runs, tmp_path, undisturbed, kills):
    epochs = 4 if kills == 4 else 10
    options = [*DIGITS, *SMALL, "--methods", "ce,alr", "--optim.epochs", epochs]
    options += ["--checkpoint.steps", "2"]
    expected = undisturbed(*options)

    rng, steps = random.Random(kills), 2 * epochs * STEPS
    hits = writes = resumed = 0
    for kill in range(kills):
        had = newest_number(runs)
        training = start(*options, "--resume", "auto", faults={"slow_steps": {"seconds": 0.03}})
        # The kills are spread over both methods, except for the end: the remaining steps take
        # longer than the pauses below.
        aim = round(0.8 * steps * (kill + 1) / kills)
        if kill % 4 == 3:  # at any time, including start and resume
            time.sleep(rng.uniform(0, 0.6))
            training.until(lambda had=had: had or newest_number(runs))
        else:
            assert training.until(lambda aim=aim: newest_number(runs) >= aim), kill
            time.sleep(rng.uniform(0, 0.1))
            if kill % 4 < 2:
                assert training.until(lambda: being_written(runs)), kill
                time.sleep(rng.uniform(0, 0.01))
        assert training.send(signal.SIGKILL), "it had ended before it was killed"
        assert training.wait() == -signal.SIGKILL
        hits += 1
        writes += being_written(runs)
        resumed += bool(had)
    last = start(*options, "--resume", "auto")
    assert last.wait() == 0, last.output
    same(outcome(runs), expected)
    assert (hits, resumed) == (kills, kills - 1)
    assert writes >= kills // 4
    # A run that is killed while it starts has not logged yet that it resumes.
    assert last.output.count(": resumes in epoch") > kills // 2
    assert not being_written(runs)
    print(f"{hits} kills, {writes} of them while a checkpoint was written")


@pytest.mark.parametrize(
    ("stop", "where", "options"),
    [
        (MIDDLE, "epoch 2 after step 3", []),
        (END, "epoch 2 after step 7", ["--optim.clip_norm", "0.5", "--optim.accumulate", "2"]),
        (
            EVALUATION,
            "epoch 3 after step 0",
            ["--model.ema_decay", "0.9", "--precision", "bfloat16"],
        ),
        ({**MIDDLE, **NAN}, "epoch 2 after step 3", ["--precision", "float16"]),
        slow(MIDDLE, "epoch 2 after step 3", ["--model.ema_decay", "0.9"]),
        slow(
            MIDDLE, "epoch 2 after step 3", ["--optim.clip_norm", "0.5", "--precision", "bfloat16"]
        ),
        slow(END, "epoch 2 after step 7", ["--precision", "float16", "--optim.accumulate", "2"]),
        slow(END, "epoch 2 after step 7", ["--model.ema_decay", "0.9"]),
        slow(MIDDLE, "epoch 2 after step 3", ["--optim.optimizer", "adamw", "--optim.lr", "0.01"]),
        slow(MIDDLE, "epoch 2 after step 3", ["--optim.sgd_momentum", "0"]),
        slow(
            MIDDLE, "epoch 2 after step 3", ["--bank.dtype", "bfloat16", "--bank.placement", "file"]
        ),
        slow(MIDDLE, "epoch 2 after step 3", ["--optim.warmup_steps", "12"]),
        slow(MIDDLE, "epoch 2 after step 3", ["--checkpoint.background", "false"]),
        slow(EVALUATION, "epoch 3 after step 0", ["--model.name", "conv-tiny"]),
        (MIDDLE, "epoch 2 after step 3", ["--methods", "elr"]),
        slow(MIDDLE, "epoch 2 after step 3", ["--methods", "sat", "--sat.warmup_epochs", "1"]),
        slow(
            MIDDLE,
            "epoch 2 after step 3",
            ["--methods", "ce,distillation", "--distillation.teacher", "ce"],
        ),
    ],
)
def test_a_run_stopped_by_a_signal_resumes_bit_by_bit(
    start, runs, undisturbed, stop, where, options
):
    nan = {name: fault for name, fault in stop.items() if name == "nan_images"}
    options = [*OPTIONS, *options, "--checkpoint.steps", "9"]
    expected = undisturbed(*options, faults=nan)
    stopped = start(*options, faults=stop)
    assert stopped.wait() == 75, stopped.output
    message = stopped.output.splitlines()[-1]
    assert message.startswith(("stopped by SIGTERM", "stopped by SIGUSR1"))
    where = re.escape(where)
    found = re.fullmatch(
        rf"stopped by \w+ in {where} \(\w+\); checkpoint \d+ resumes there: (.+)", message
    )
    command = options_of(found[1])
    assert command == ["--resume", str(run_folder(runs))]
    assert newest_checkpoint(checkpoints(runs)) is not None
    assert not (runs / "latest").exists()

    resumed = start(*command)
    assert resumed.wait() == 0, resumed.output
    assert resumed.output.count(": resumes in epoch") == 1
    same(outcome(runs), expected)
    again = start(*options, "--resume", "auto")
    assert again.wait() == 0
    assert "has already finished" in again.output.splitlines()[-1]
    same(outcome(runs), expected)


def test_the_whole_state_is_restored(start, runs, tmp_path, server):
    """Compares the last checkpoints of both runs tensor by tensor, not only their results."""
    options = [*OPTIONS, "--checkpoint.steps", "20", "--checkpoint.keep", "9", *FLOAT16_EMA]
    whole = server.start("--runs", tmp_path / "whole", *options, log=tmp_path / "log", faults=NAN)
    assert whole.wait() == 0, whole.output
    assert start(*options, faults={**MIDDLE, **NAN}).wait() == 75
    assert start(*options, "--resume", "auto").wait() == 0

    def state(folder):
        checkpoint = list_checkpoints(checkpoints(folder))[-1]
        assert checkpoint.number == 20
        return saved_tensors(checkpoint), checkpoint.progress["position"]

    (found, position), (expected, expected_position) = state(runs), state(tmp_path / "whole")
    for state in (position, expected_position):
        del state["scheduler"]["_step_count"]  # only for a warning about the order of calls
    assert position == expected_position
    assert position["scaler"]["scale"] < 65536
    assert found.keys() == expected.keys()
    kinds = {".".join(name.split(".")[:2]) for name in found}
    assert {"rank0.random", "rank0.sums", "rank0.skipped", "rank0.bank_status"} <= kinds
    assert [name for name in found if bits(found[name]) != bits(expected[name])] == []


def bits(tensor):
    """Bytes of a tensor, so that NaN equals NaN."""
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


@pytest.fixture
def with_workers(tmp_path):
    """Options of a training with worker processes that decode images."""
    root = write_folder(tmp_path / "set", train=dict.fromkeys("abc", 16), test={"a": 4})
    options = [*SMALL, "--methods", "alr", "--optim.epochs", "2", "--optim.batch_size", "8"]
    return [*options, "--data-root", root, "--data.loader", "torch", "--data.workers", "2"]


@pytest.mark.parametrize("workers", [0, slow(1)])
def test_random_numbers_continue_with_the_torch_loader(start, tmp_path, undisturbed, workers):
    """A DataLoader draws a random number when it starts, and again in a new process."""
    classes = {name: 16 for name in "abc"}
    root = write_folder(tmp_path / "set", train=classes, test=dict.fromkeys("abc", 4))
    options = [*SMALL, "--methods", "alr", "--optim.epochs", "3", "--optim.batch_size", "8"]
    options += ["--data-root", root, "--data.loader", "torch", "--data.workers", workers]
    expected = undisturbed(*options)
    faults = {"signal_after": {"number": TERM, "steps": 9}}
    assert start(*options, faults=faults).wait() == 75
    resumed = start(*options, "--resume", "auto")
    assert resumed.wait() == 0, resumed.output
    same(outcome(tmp_path / "runs"), expected)


@pytest.mark.parametrize("number", [TERM, slow(USR1), slow(int(signal.SIGINT))])
def test_a_signal_to_the_workers_too_ends_none_of_them(start, runs, with_workers, number):
    """Slurm, and a shell that signals a whole group, reach the workers of the loader, too."""
    stop = {"signal_group_after": {"number": number, "steps": 4}}
    stopped = start(*with_workers, faults=stop)
    assert stopped.wait() == (130 if number == signal.SIGINT else 75), stopped.output
    assert "Traceback" not in stopped.output
    assert "in epoch 1 after step 4 (alr); checkpoint 4 resumes" in stopped.output.splitlines()[-1]
    resumed = start(*with_workers, "--resume", "auto")
    assert resumed.wait() == 0, resumed.output
    assert "alr: resumes in epoch 1 after step 4" in resumed.output


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_training(start, with_workers):
    training = start(*with_workers, "--optim.epochs", "500")
    training.until(lambda: training.log.exists() and " 1/500 " in training.output)

    def living():
        """Ids of the processes in the group of the training, without zombies."""
        found = set()
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):
                state, _, group, *_ = path.read_text().rpartition(")")[2].split()
                if state != "Z" and int(group) == training.pid:
                    found.add(int(path.parent.name))
        return found

    assert len(living()) >= 3
    training.send(signal.SIGKILL)
    assert training.wait() == -signal.SIGKILL
    end = time.monotonic() + PATIENCE  # workers look for their parent every five seconds
    while living():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_the_real_command_stopped_by_sigterm(tmp_path, undisturbed):
    options = [*OPTIONS, "--model.name", "conv-tiny", "--optim.epochs", "8"]
    command = [sys.executable, "-m", "alr_fast.train", *options, "--runs", str(tmp_path / "runs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if "epoch 2/8" in line:
                process.send_signal(signal.SIGTERM)
                break
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert errors.startswith("stopped by SIGTERM in epoch ")
    assert "--resume" in errors
    assert errors.count("\n") == 1
    done = subprocess.run(
        [*command, "--resume", "auto"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "alr: resumes in epoch " in done.stdout
    same(outcome(tmp_path / "runs"), undisturbed(*options))
