"""Images of strangers: no program starts, nothing waits or fills the memory."""

import io
import os
import stat
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from alr_fast import report, train
from alr_fast.data.__main__ import main as data
from alr_fast.data.images.decode import decode_rgb, open_image, prepare
from alr_fast.data.images.sources import BrokenImage
from alr_fast.data.loaders.choose import has_dali
from helpers.forged import bounded
from helpers.image_folder import write_folder

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 32 32
%%EndComments
(VICTIM) (w) file closefile
showpage
%%EOF
"""
LOADERS = ["torch", "memory", *(["dali"] if has_dali() else [])]
OPTIONS = ["--optim.epochs", "1", "--methods", "alr", "--model.name", "conv-mini"]
OPTIONS += ["--data.workers", "1", "--log.show", "lines", "--optim.batch_size", "4"]


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "set", train={"a": 6, "b": 6}, test={"a": 2, "b": 2})


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program in place of Ghostscript, which leaves a trace when it is started."""
    trace, folder = tmp_path / "started", tmp_path / "bin"
    folder.mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {trace}\nexit 0\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield trace
    assert not trace.exists()


def an_image(root):
    return sorted((root / "train" / "a").iterdir())[1]


def trained(root, tmp_path, loader, *options):
    argv = ["--data-root", str(root), "--runs", str(tmp_path / "runs"), *OPTIONS]
    argv += ["--data.loader", loader, "--data.max_broken", "0.5", "--data.exclude", "none"]
    return train.main([*argv, *options])


@pytest.mark.parametrize("loader", LOADERS)
def test_an_eps_named_jpg_starts_no_program(root, tmp_path, ghostscript, capsys, loader):
    an_image(root).write_bytes(EPS)
    assert trained(root, tmp_path, loader) == 0
    assert "broken: " in capsys.readouterr().out
    assert report.main([str(tmp_path / "runs/latest")]) == 0


def test_verify_and_pack_start_no_program(root, tmp_path, ghostscript, capsys):
    path = an_image(root)
    path.write_bytes(EPS)
    assert data(["verify", str(root), "--workers", "1"]) == 1
    assert path.name in capsys.readouterr().out
    assert data(["pack", str(root), str(tmp_path / "out"), "--workers", "1"]) == 0


def test_the_program_would_have_started(root, tmp_path, ghostscript, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(Exception), Image.open(io.BytesIO(EPS)) as image:  # noqa: B017
        image.load()
    assert ghostscript.exists()
    ghostscript.unlink()


@pytest.mark.parametrize(
    "start", [EPS, b"%PDF-1.7", b"\xc5\xd0\xd3\xc6" + EPS, b"\x00\x00\x01\xb3"]
)
def test_other_formats_are_not_opened(start):
    with pytest.raises(BrokenImage):
        open_image(start)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "sparse", "loop", "folder"])
def test_what_is_no_image_is_broken_at_once(root, tmp_path, capsys, loader, kind):
    path = an_image(root)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(60 * 10**9)
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        path.mkdir()
    with bounded(seconds=120, gigabytes=100):  # threads and pools reserve much
        assert trained(root, tmp_path, loader) == 0
    if kind in ("pipe", "device", "sparse"):
        assert f"broken: {path} " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_verify_names_what_is_no_image(root, capsys, kind):
    path = an_image(root)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(60 * 10**9)
    with bounded(gigabytes=1):
        assert data(["verify", str(root), "--workers", "1"]) == 1
    assert path.name in capsys.readouterr().out


def png(*chunks, size=(8, 8)):
    """A PNG with extra chunks behind its header."""
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    whole = file.getvalue()
    extra = b"".join(
        len(content).to_bytes(4, "big") + name + content
        + zlib.crc32(name + content).to_bytes(4, "big")
        for name, content in chunks
    )  # fmt: skip
    return whole[:33] + extra + whole[33:]


BOMBS = {
    "text": png((b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20)))),
    "international text": png((b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(200 << 20)))),
    "profile": png((b"iCCP", b"a\0\0" + zlib.compress(bytes(200 << 20)))),
    "many texts": png(*[(b"tEXt", b"a\0" + b"x" * 1000)] * 2000),
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_text_and_profiles_cost_no_memory(content):
    with bounded(gigabytes=0.5):
        pixels = decode_rgb(prepare(content))
    assert tuple(pixels.shape) == (3, 8, 8)


def test_text_of_a_usual_size_is_no_reason():
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * 5_000_000, zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(file, "PNG", pnginfo=info)
    assert np.asarray(decode_rgb(prepare(file.getvalue())))[:, 0, 0].tolist() == [1, 2, 3]


def _huge(kind):
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, kind)
    content = bytearray(file.getvalue())
    if kind == "PNG":
        content[16:24] = (60_000).to_bytes(4, "big") * 2
        content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    else:
        content[18:26] = (60_000).to_bytes(4, "little") * 2
    return bytes(content)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_huge_dimensions_are_refused_in_our_words(kind):
    with bounded(gigabytes=1), pytest.raises(BrokenImage) as caught:
        decode_rgb(prepare(_huge(kind)))
    assert str(caught.value).endswith(" pixels")
    assert "attack" not in str(caught.value)


def test_many_frames_cost_one():
    frames = [Image.new("P", (8, 8), k % 250) for k in range(3000)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    with bounded(gigabytes=0.5):
        assert tuple(decode_rgb(prepare(file.getvalue())).shape) == (3, 8, 8)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_lists_of_broken_files_have_the_usual_permissions(root, tmp_path, umask):
    an_image(root).write_bytes(b"broken")
    before = os.umask(umask)
    try:
        assert trained(root, tmp_path, "torch") == 0
    finally:
        os.umask(before)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "runs/latest/").iterdir()
        if path.is_file()
    }
    assert "broken.csv" in modes
    assert set(modes.values()) == {0o666 & ~umask}
