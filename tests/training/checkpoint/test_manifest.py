"""Checkpoint folders are found by number. Any damage is detected, an older checkpoint offered."""

import errno
import json
import os
import shutil

import pytest
import torch

from alr_fast.errors import UserError
from alr_fast.training.checkpoint import manifest
from helpers.checkpoints import flip, read_all, saved


def test_checkpoints_are_sorted_as_numbers_not_as_text(make_store):
    checkpoints = saved(make_store(keep=9), 10, 9, 1_000_000_000, 999_999_999)
    assert [c.number for c in checkpoints] == [9, 10, 999_999_999, 1_000_000_000]
    assert checkpoints[0].path.name == "000000009"
    assert manifest.newest_checkpoint(checkpoints[0].path.parent).number == 1_000_000_000


def test_incomplete_checkpoints_are_not_listed(make_store, tmp_path):
    store = make_store()
    saved(store, 4)
    whole = store.folder / "000000004"
    shutil.copytree(whole, store.folder / ".000000005.tmp")
    shutil.copytree(whole, store.folder / ".000000006.del")
    shutil.copytree(whole, store.folder / "best")
    shutil.copytree(whole, store.folder / "7")
    shutil.copytree(whole, store.folder / "000000008")
    (store.folder / "000000008" / manifest.MANIFEST).unlink()
    (store.folder / "000000009").write_text("a file")
    assert [c.number for c in manifest.list_checkpoints(store.folder)] == [4]
    assert manifest.newest_checkpoint(store.folder).number == 4
    assert manifest.list_checkpoints(tmp_path / "nowhere") == []
    assert manifest.newest_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(UserError, match=r"000000008 is not a complete checkpoint.*000000004"):
        manifest.read_manifest(store.folder / "000000008")


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", manifest.MANIFEST])
def test_any_damage_is_refused_and_an_older_one_offered(make_store, name):
    older, newest = saved(make_store(), 1, 2, tensors={"x": torch.arange(100)})
    file = newest.path / name
    good = file.read_bytes()
    positions = range(0, len(good), max(1, len(good) // 40))
    damages = {f"byte {p}": lambda p=p: flip(file, p) for p in [*positions, len(good) - 1]}
    damages["one byte less"] = lambda: file.write_bytes(good[:-1])
    damages["empty"] = lambda: file.write_bytes(b"")
    damages["one byte more"] = lambda: file.write_bytes(good + b"\n")
    damages["gone"] = file.unlink
    for damage, make in damages.items():
        make()
        with pytest.raises(UserError) as caught:
            read_all(newest.path)
        message = str(caught.value)
        file.write_bytes(good)
        assert "\n" not in message
        assert f"--resume {older.path}" in message, damage
        assert str(file if damage != "gone" else newest.path) in message, damage
        if name != manifest.MANIFEST and damage in ("one byte less", "empty"):
            assert "truncated" in message
        elif damage == "gone":
            assert "missing" in message or "No such file" in message
        else:
            assert "changed" in message, damage
    read_all(newest.path)  # intact again: the errors were due to the damage


def test_a_change_of_any_byte_of_the_manifest_is_detected(make_store):
    (checkpoint,) = saved(make_store(), 1)
    file = checkpoint.path / manifest.MANIFEST
    good = file.read_bytes()
    for position in range(len(good)):
        for bit in (1, 32):  # 32 also changes spaces, quotes and digits
            file.write_bytes(good[:position] + bytes([good[position] ^ bit]) + good[position + 1 :])
            with pytest.raises(UserError):
                manifest.read_manifest(checkpoint.path)
    assert manifest.list_checkpoints(checkpoint.path.parent) == []
    with pytest.raises(UserError, match="changed"):  # not None
        manifest.newest_checkpoint(checkpoint.path.parent)


def test_only_an_intact_checkpoint_is_offered(make_store):
    checkpoints = saved(make_store(keep=9), 1, 2, 3, 4)
    flip(checkpoints[3].path / "__0_0.distcp", 300)
    flip(checkpoints[2].path / "__0_0.distcp", 300)
    (checkpoints[1].path / manifest.MANIFEST).write_text("{}")
    for damaged in checkpoints[1:]:
        with pytest.raises(UserError, match=f"--resume {checkpoints[0].path}$"):
            read_all(damaged.path)
    flip(checkpoints[0].path / ".metadata", 10)
    read_all(saved(make_store(keep=9), 5)[-1].path)  # intact, but newer
    with pytest.raises(UserError, match=r"no older checkpoint is intact: start a new run$"):
        read_all(checkpoints[3].path)


def test_a_manifest_of_a_later_format_is_refused(make_store):
    (checkpoint,) = saved(make_store(), 1)
    fields = json.loads((checkpoint.path / manifest.MANIFEST).read_bytes())
    del fields["sha256"]
    fields["format"] = 2
    (checkpoint.path / manifest.MANIFEST).write_bytes(manifest._encode(fields))
    with pytest.raises(UserError, match="newer alr_fast"):
        manifest.read_manifest(checkpoint.path)


def test_checkpoints_that_cannot_be_listed(make_store, lines, monkeypatch):
    store = make_store()
    saved(store, 1)

    def denied(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "listdir", denied)  # root may read everywhere
    with pytest.raises(UserError, match=f"{store.folder}: Permission denied; make it readable"):
        manifest.newest_checkpoint(store.folder)
    store._remove_old(1)
    store._fail(2, "the disk is full")
    assert "old checkpoints could not be removed" in lines[0]
    assert "no older checkpoint exists" in lines[1]
