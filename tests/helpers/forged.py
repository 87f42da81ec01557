"""Files as an attacker would make them."""

import hashlib
import os
import pickle
import resource
import time
from contextlib import contextmanager

import torch

from alr_fast.training.checkpoint import manifest
from helpers.patience import PATIENCE


class Command:
    """An object whose pickle makes a file when the standard unpickler loads it."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def proves_itself(data, victim):
    """Checks that a pickle of a `Command` works, so that its refusal means something."""
    assert not victim.exists()
    pickle.loads(data)
    victim.rmdir()


def sign(checkpoint):
    """Makes the sums in the manifest of a checkpoint fit its files."""
    fields = vars(manifest._parse(checkpoint)) | {"format": 1}
    del fields["path"]
    fields["files"] = {
        name: (len(data), hashlib.sha256(data).hexdigest())
        for name in fields["files"]
        for data in [(checkpoint / name).read_bytes()]
    }
    (checkpoint / manifest.MANIFEST).write_bytes(manifest._encode(fields))


def change_metadata(checkpoint, change, protocol=4):
    """Changes the unpickled metadata of a checkpoint and signs it; ``change`` may return others."""
    path = checkpoint / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    result = change(metadata)
    path.write_bytes(pickle.dumps(metadata if result is None else result, protocol))
    sign(checkpoint)


def replace_tensor(checkpoint, name, data):
    """Replaces the stored bytes of a tensor with others, behind all that is stored."""

    def change(metadata):
        (index,) = [index for index in metadata.storage_data if index.fqn == name]
        place = metadata.storage_data[index]
        with (checkpoint / place.relative_path).open("ab") as file:
            place.offset = file.tell()
            file.write(data)
        place.length = len(data)

    change_metadata(checkpoint, change)


@contextmanager
def bounded(seconds=PATIENCE, gigabytes=1.0):
    """Fails if the block takes longer; allocating more memory raises a MemoryError in it."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(gigabytes * 1e9), limits[1]))
    began = time.monotonic()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.monotonic() - began < seconds


def tensor_bytes(value, tmp_path):
    """What torch.save makes of a value."""
    path = tmp_path / "tensor"
    torch.save(value, path)
    return path.read_bytes()
