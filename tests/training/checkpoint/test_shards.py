"""Rows sharded by rank: chunks, arguments."""

import pytest
import torch

from alr_fast.training.checkpoint import shards
from alr_fast.training.checkpoint.store import load
from helpers.checkpoints import saved


@pytest.mark.parametrize("in_background", [True, False])
def test_chunks_of_different_sizes_at_saving_and_loading(
    make_store, mesh, monkeypatch, in_background
):
    rows, ids = torch.randn(50, 3), torch.arange(50)
    monkeypatch.setattr(shards, "CHUNK_BYTES", 7 * 12)
    tensors = {"rows": shards.shard(rows, 0, 50, mesh), "ids": shards.shard(ids, 0, 50, mesh)}
    assert len(shards._chunks(tensors["rows"]).local_shards()) == 8  # of 7 rows, the last of 1 row
    assert len(shards._chunks(tensors["ids"]).local_shards()) == 5  # of 10 numbers
    (checkpoint,) = saved(make_store(background=in_background), 1, tensors=tensors)
    for size in (1, 30 * 12, 11 * 12, 1 << 20):
        monkeypatch.setattr(shards, "CHUNK_BYTES", size)
        got, got_ids = torch.zeros(50, 3), torch.zeros(50, dtype=torch.int64)
        load(
            checkpoint,
            {"rows": shards.shard(got, 0, 50, mesh), "ids": shards.shard(got_ids, 0, 50, mesh)},
        )
        assert torch.equal(got, rows)
        assert torch.equal(got_ids, ids)


def test_chunks_lie_on_the_same_grid(mesh, monkeypatch):
    monkeypatch.setattr(shards, "CHUNK_BYTES", 10 * 8)
    monkeypatch.setattr(type(mesh), "size", lambda self, *_: 2)
    starts = shards._chunks(shards.shard(torch.arange(28), 7, 90, mesh)).local_offsets()
    assert [start[0] for start in starts] == [7, 10, 20, 30]


@pytest.mark.parametrize(
    ("shape", "offset", "total", "message"),
    [
        ((4, 2, 2), 0, 4, "flatten them"),
        ((), 0, 1, "flatten them"),
        ((4, 2), 1, 4, "rows 1 to 5 are not"),
        ((4, 2), -1, 4, "rows -1 to 3 are not"),
        ((4, 2), 0, 5, "rows 0 to 4 are not"),  # a single process that lacks a row
    ],
)
def test_a_wrong_shard_is_refused(mesh, shape, offset, total, message):
    with pytest.raises(ValueError, match=message):
        shards.shard(torch.zeros(shape), offset, total, mesh)


def test_a_shard_on_another_device_than_the_mesh_is_refused(mesh):
    with pytest.raises(ValueError, match='device_type="meta"'):
        shards.shard(torch.zeros(4, 2, device="meta"), 0, 4, mesh)


def test_a_dtensor_of_another_kind_is_refused(make_store, mesh):
    tensor = torch.distributed.tensor.distribute_tensor(torch.zeros(4), mesh)
    with pytest.raises(TypeError, match=r"from alr_fast\.training\.checkpoint\.shards\.shard"):
        make_store().save(1, {"x": tensor}, {})
