"""Checkpoints of several processes, of killed processes, and of banks larger than the memory."""

import os
import random
import tempfile
import time

import pytest
import torch

from alr_fast.training.checkpoint import manifest
from alr_fast.training.checkpoint.store import load
from helpers import checkpoint_workers as workers
from helpers.checkpoints import read_all
from helpers.patience import PATIENCE


@pytest.mark.parametrize(
    ("saving", "loading", "in_background"), [(2, (1, 2, 3, 4), True), (4, (3,), False)]
)
def test_any_number_of_processes_reads_what_others_wrote(tmp_path, saving, loading, in_background):
    workers.run_ranks(saving, workers.save_shards, tmp_path, 64, in_background)
    checkpoint = manifest.newest_checkpoint(tmp_path)
    assert checkpoint.progress == {"rank": 0, "loss": 0.1 + 0.2}
    assert checkpoint.world_size == saving
    assert {name for name in checkpoint.files if "distcp" in name} == {
        f"__{rank}_0.distcp" for rank in range(saving)
    }
    alone = {f"rank{rank}.rng": torch.zeros(1, dtype=torch.int64) for rank in range(saving)}
    load(checkpoint, alone)
    assert [t.item() for t in alone.values()] == list(range(saving))
    for world in loading:
        parts = workers.run_ranks(world, workers.load_shards, tmp_path, 48)
        for part in parts:
            assert part["weight"] == torch.arange(12.0).reshape(3, 4).tolist()
        for name, tensor in workers.whole().items():
            assert [row for part in parts for row in part[name]] == tensor.tolist(), (name, world)


def test_a_failure_on_one_rank_is_raised_on_all_ranks(tmp_path):
    outcomes = workers.run_ranks(2, workers.fail_on_one, tmp_path)
    seen = outcomes[0]["seen"]
    assert outcomes[1]["seen"] == seen
    remains = "; training continues, checkpoint 1 remains"
    full = "could not be written: No space left on device"
    assert seen["first"] == (1, None)
    assert seen["background"] == (1, f"checkpoint 2 {full}{remains}")
    assert seen["foreground"] == (1, f"checkpoint 3 {full}{remains}")
    assert seen["staging"][1] == (
        f"checkpoint 4 could not be written: MemoryError: no memory for a copy{remains}"
    )
    assert seen["last"] == (5, None)
    assert outcomes[0]["lines"] == [
        seen[name][1] for name in ("background", "foreground", "staging")
    ]
    assert outcomes[1]["lines"] == []
    assert "has no 'other'" in seen["missing name"]
    assert "__1_0.distcp is truncated: 0 of" in seen["damage"]
    assert seen["damage"].endswith(f"--resume {tmp_path / '000000001'}")
    assert seen["unreadable"] is not None
    assert [c.number for c in manifest.list_checkpoints(tmp_path)] == [1, 5]


def test_a_file_that_exceeds_the_size_limit_of_the_kernel(tmp_path):
    ((seen, lines),) = workers.run_ranks(1, workers.exceed_file_size, tmp_path)
    too_large = "could not be written: File too large; training continues, checkpoint 1 remains"
    assert lines == [f"checkpoint {number} {too_large}" for number in (2, 3)]
    assert seen == [(1, None), (1, lines[0]), (1, lines[1]), (4, None)]
    assert sorted(os.listdir(tmp_path)) == ["000000001", "000000004"]
    read_all(tmp_path / "000000004")


@pytest.mark.faults
def test_a_kill_at_any_moment_leaves_intact_checkpoints(tmp_path):
    moments, interrupted, newest = random.Random(0), 0, 0
    for attempt in range(10):
        with tempfile.TemporaryDirectory() as store:
            started = workers.new_event()
            process, _ = workers.start(
                workers.save_forever, (tmp_path, attempt % 2 == 0, started), 0, 1, store
            )
            assert started.wait(PATIENCE)
            time.sleep(moments.uniform(0.1, 0.4))
            process.kill()
            process.join()
        checkpoints = manifest.list_checkpoints(tmp_path)
        visible = [name for name in os.listdir(tmp_path) if not name.startswith(".")]
        interrupted += len(visible) < len(os.listdir(tmp_path))
        assert sorted(visible) == [c.path.name for c in checkpoints]
        # The kill may have interrupted the replacement of the newest: the next store restores it.
        assert newest <= 1 or checkpoints[-1].number >= newest - 1
        for checkpoint in checkpoints:
            manifest.check_files(checkpoint)
            weight = torch.zeros(1 << 18, dtype=torch.int64)
            load(checkpoint, {"weight": weight})
            assert (weight == checkpoint.number).all()
            assert checkpoint.progress == {"step": checkpoint.number}
        newest = checkpoints[-1].number if checkpoints else newest
    assert newest > 2
    assert interrupted > 0  # otherwise nothing was tested


def test_a_bank_in_a_file_is_never_in_memory_as_a_whole(tmp_path):
    (sizes,) = workers.run_ranks(1, workers.anonymous_memory, tmp_path, 512)
    assert sizes["saving"] < 200 << 20
    assert sizes["loading"] < 200 << 20
