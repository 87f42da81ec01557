"""Small checkpoints for tests: written, read, damaged."""

import os

import torch

from alr_fast.training.checkpoint import manifest
from alr_fast.training.checkpoint.store import load


def bits(tensor):
    """The bytes of a tensor as a list."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).tolist()


def saved(store, *numbers, tensors=None):
    """Saves checkpoints; returns those in the folder of the store."""
    for number in numbers:
        store.save(number, tensors or {"x": torch.tensor([number])}, {"step": number})
    store.wait()
    assert store.last_error is None
    return manifest.list_checkpoints(store.folder)


def value(checkpoint):
    """Verifies a checkpoint of `saved` and returns the value of its tensor."""
    manifest.check_files(checkpoint)
    x = torch.zeros(1, dtype=torch.int64)
    load(checkpoint, {"x": x})
    return x.item()


def names(store):
    """Names in the folder of a store."""
    return sorted(os.listdir(store.folder))


def flip(file, position):
    """Flips a bit of the byte at a position."""
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def read_all(path):
    """Verifies the manifest and all files of a checkpoint."""
    manifest.check_files(manifest.read_manifest(path))
