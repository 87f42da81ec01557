"""Failures inside torch.distributed.checkpoint."""

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from alr_fast.training.checkpoint import dcp
from helpers import checkpoint_workers as workers
from helpers.checkpoints import names, saved


@pytest.mark.parametrize("step", ["write_data", "finish"])
def test_an_error_that_cannot_be_pickled_is_logged(make_store, lines, monkeypatch, step):
    class Odd(OSError):  # a local class cannot be pickled
        pass

    def fail(*_, **__):
        raise Odd(5, "odd disk")

    monkeypatch.setattr(FileSystemWriter, step, fail)
    make_store(background=False).save(1, {"x": torch.ones(1)}, {})
    assert "could not be written: odd disk" in lines[0]


def test_an_error_in_the_plan_of_dcp_is_logged(make_store, lines, monkeypatch):
    def fail(self, *_):
        raise ValueError("no plan\nat all")

    monkeypatch.setattr(DefaultSavePlanner, "create_global_plan", fail)
    store = make_store()
    store.save(1, {"x": torch.ones(1)}, {}, wait=True)
    assert "ValueError: no plan at all" in lines[0]
    assert names(store) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_passes(make_store, lines, monkeypatch, interruption):
    store = make_store(background=False)
    with workers.failing_writes(interruption()), pytest.raises(interruption):
        store.save(1, {"x": torch.ones(1)}, {})

    def fail(self, *_):
        raise interruption()

    with monkeypatch.context() as patch:
        patch.setattr(DefaultSavePlanner, "create_global_plan", fail)
        with pytest.raises(interruption):
            store.save(1, {"x": torch.ones(1)}, {})
    assert lines == []
    assert [c.number for c in saved(store, 1)] == [1]


def test_an_interruption_is_raised_before_other_failures():
    def fail():
        failures = [OSError("full"), KeyboardInterrupt(), ValueError("odd")]
        raise dcp.CheckpointException("write", {i: (f, None) for i, f in enumerate(failures)})

    with pytest.raises(KeyboardInterrupt):
        dcp._call_dcp(fail)
