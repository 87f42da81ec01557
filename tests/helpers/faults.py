"""Options, comparisons and file access for the tests of faults."""

import os
import signal

import pytest
import torch

from alr_fast.training.checkpoint import store
from alr_fast.training.checkpoint.store import load
from alr_fast.training.distributed import process_group

STEPS = 7  # in an epoch: 200 samples in batches of 32
DIGITS = ["--data.limit", "200", "--data.test_limit", "50", "--optim.batch_size", "32"]
SMALL = ["--model.name", "dropout", "--log.to", "csv", "--log-every", "1", "--log.show", "lines"]
SMALL += ["--optim.lr", "0.05", "--alr.warmup_epochs", "1"]
OPTIONS = [*DIGITS, *SMALL, "--methods", "alr", "--optim.epochs", "3"]
TERM, USR1 = int(signal.SIGTERM), int(signal.SIGUSR1)
MIDDLE = {"signal_after": {"number": TERM, "steps": STEPS + 3}}
END = {"signal_after": {"number": USR1, "steps": 2 * STEPS}}
EVALUATION = {"signal_in_evaluation": {"number": USR1, "calls": 2}}
# Halves the scale of the gradient scaler.
NAN = {"nan_images": {"first": 3, "last": 3}}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def checkpoints(runs):
    """Folder of the checkpoints; a path that does not exist before the first run."""
    return next(iter(runs.glob("*/checkpoints")), runs / "none")


def newest_number(runs):
    """Number of the newest checkpoint, 0 if there is none."""
    folder = checkpoints(runs)
    names = os.listdir(folder) if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def being_written(runs):
    """Whether a checkpoint is being written, or was not complete when its process ended."""
    folder = checkpoints(runs)
    return folder.is_dir() and any(name.endswith(".tmp") for name in os.listdir(folder))


def same(found, expected):
    """Compares outcomes; a failure names the parts that differ instead of all their bytes."""
    assert found.keys() == expected.keys()
    assert found["metrics"] == expected["metrics"]
    assert [name for name in found if found[name] != expected[name]] == []


def saved_tensors(checkpoint):
    """All tensors of a checkpoint, with their shards joined."""
    tensors = {
        name: torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in store.saved_tensors(checkpoint).items()
    }
    with process_group("cpu"):
        load(checkpoint, tensors)
    return tensors
