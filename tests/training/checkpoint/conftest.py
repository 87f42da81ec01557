"""Fixtures for checkpoints: a process group of one process, stores in one folder."""

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from alr_fast.training.checkpoint.store import CheckpointStore


@pytest.fixture(scope="module", autouse=True)
def _group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def mesh():
    return init_device_mesh("cpu", (1,))


@pytest.fixture
def lines():
    """Lines that the stores log."""
    return []


@pytest.fixture
def make_store(tmp_path, lines):
    """Makes stores, in one folder unless it is named, and closes them at the end."""
    stores = []

    def make(folder="c", **options):
        options = {"keep": 3, "log": lines.append} | options
        stores.append(CheckpointStore(tmp_path / folder, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()
