"""What lies in a folder is counted: images, other files, lists, and what is skipped."""

import os

import pytest
from PIL import Image

from alr_fast.data import inventory
from alr_fast.data.images.decode import FORMATS
from alr_fast.data.inventory import IMAGE_SUFFIXES, holds_image, scan, take_inventory, walk
from helpers.layouts import write_tree


def test_everything_is_counted(tmp_path):
    write_tree(
        tmp_path,
        {
            "a/1.JPG": 0,
            "a/b/2.png": 1,
            "labels.csv": "x",
            "a/notes.txt": "x",
            "a/README": "x",
            ".git/3.png": 0,
            "@eaDir/4.png": 0,
            "__MACOSX/a/._1.jpg": "x",
            "a/Thumbs.db": "x",
            "a/._1.JPG": "x",
            "lost+found": None,
            "$RECYCLE.BIN/5.png": 0,
            ".ipynb_checkpoints/6.png": 0,
        },
    )
    found = take_inventory(tmp_path)
    assert found.images == {".jpg": 1, ".png": 1}
    assert found.others == {".csv": 1, ".txt": 1, "": 1}
    assert found.depths == {1: 1, 2: 1}
    assert found.lists == ["labels.csv"]
    assert found.folders == 2 and found.complete
    assert found.skipped == {"hidden": 3, "@eaDir": 1, "__MACOSX": 1, "Thumbs.db": 1,
                             "lost+found": 1, "$RECYCLE.BIN": 1}  # fmt: skip
    text = found.summary()
    assert "1 .jpg, 1 .png (images, for example a/1.JPG)" in text
    assert "lists: labels.csv" in text and "3 hidden" in text and "\n" not in text


def test_the_suffixes_are_those_of_the_formats_that_the_decoder_opens():
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in IMAGE_SUFFIXES if suffix in known} == set(FORMATS)
    assert {s for s, name in known.items() if name in FORMATS} == set(IMAGE_SUFFIXES)


def test_circles_of_links_end(tmp_path):
    write_tree(tmp_path, {"a/1.png": 0, "b/2.png": 0})
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to("self")
    found = take_inventory(tmp_path)
    assert found.total == 2
    assert len(found.links) == 3
    assert not holds_image(write_tree(tmp_path / "c", {"d": None}))


def test_unreadable_folders_are_noted(tmp_path, monkeypatch):
    write_tree(tmp_path, {"a/1.png": 0, "b/2.png": 0})
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(inventory.os, "scandir", refuse)
    found = take_inventory(tmp_path)
    assert found.unreadable == {"b": "Permission denied"}
    assert "unreadable: b (Permission denied)" in found.summary()
    with pytest.raises(PermissionError):
        list(walk(tmp_path))


def test_an_inventory_of_many_files_is_bounded(tmp_path):
    write_tree(tmp_path, {f"a/{k}.txt": "" for k in range(30)} | {"b/x.png": 0})
    found = take_inventory(tmp_path, most=20)
    assert not found.complete and found.others.total() < 30
    assert "at first sight" in found.summary()
    assert len(scan(tmp_path, "a", 5).others) == 5
    assert holds_image(tmp_path)
    assert not holds_image(tmp_path, "a", most=10)
