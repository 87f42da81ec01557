"""The adapters in two processes on the CPU."""

import pytest
import torch

from helpers import adapter_workers as workers
from helpers.process_groups import run_group

N, K = workers.N, workers.K


def check_ownership(results: list[dict], epochs: int, name: str = "drawn") -> None:
    """Every sample was drawn once in each epoch, and always by the process that has its row."""
    for result in results:
        assert set(result[name]) == set(result["rows"])
    drawn = sorted(row for result in results for row in result[name])
    assert drawn == sorted(list(range(N)) * epochs)


def test_accelerate_leaves_the_sampler_alone():
    pytest.importorskip("accelerate")
    results = run_group(2, workers.accelerate_epoch, preload=("accelerate",))
    for epoch in range(2):
        for result in results:
            assert sorted(result["drawn"][epoch]) == sorted(result["rows"])
    assert results[0]["drawn"][0] != results[0]["drawn"][1]
    # What the documentation warns of: prepare gives each process a part of its own rows only.
    assert all(len(set(result["dealt"])) < len(result["rows"]) for result in results)


@pytest.mark.parametrize("part_of_module", [True, False])
def test_lightning_in_two_processes(part_of_module, tmp_path):
    pytest.importorskip("lightning")
    arguments = str(tmp_path), part_of_module
    results = run_group(2, workers.lightning_run, *arguments, preload=("lightning.pytorch",))
    check_ownership(results, epochs=3)
    check_ownership(results, epochs=1, name="drawn later")
    first, second = results
    one_hot = torch.nn.functional.one_hot(torch.arange(N) % K, K).float()
    for name in ("bank", "loaded", "resumed"):
        assert torch.equal(first[name], second[name])
    assert (first["bank"] != one_hot).any(1).all()  # two epochs have refined every row
    assert torch.equal(first["loaded"], first["bank"])
    assert (first["resumed"] != first["bank"]).any(1).all()
    assert "sampler DistributedSampler: with several processes" in first["error"]
    assert "sampler=alr_fast.data.OwnedRowsSampler(dataset)" in first["error"]


def test_transformers_in_two_processes(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    results = run_group(2, workers.transformers_run, str(tmp_path), preload=("transformers",))
    check_ownership(results, epochs=3)
    check_ownership(results, epochs=1, name="drawn later")
    first, second = results
    for name in ("bank", "resumed"):
        assert torch.equal(first[name], second[name])
    assert torch.equal(first["saved"], first["bank"])
    assert (first["resumed"] != first["bank"]).any(1).all()
