"""Whatever the bytes: an image or a broken one, soon, and the same for everybody."""

import random
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alr_fast.data.checks.examine import Broken, examine
from alr_fast.data.images import decode
from alr_fast.data.images.decode import decode_rgb, prepare
from alr_fast.data.images.sources import BrokenImage
from helpers.loaded import LOADING, WHOLE, loaded, split_of
from helpers.odd_images import SIDE, odd_images
from helpers.patience import PATIENCE

SEEDS = [odd.data for odd in odd_images() if len(odd.data) < 12000]


def edited(seed, edits, cut, mend):
    data = bytearray(seed)
    for at, byte, kind in edits:
        place = int(at * len(data)) if data else 0
        if kind == "insert":
            data[place:place] = bytes((byte,)) * (1 + byte % 9)
        elif kind == "delete":
            del data[place : place + 1 + byte % 9]
        elif data:
            data[min(place, len(data) - 1)] = byte
    data = bytes(data[: len(data) - int(cut * len(data))])
    return _with_checksums(data) if mend else data


def _with_checksums(data):
    """A PNG whose checksums fit again, so that its chunks are looked at."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    out, position = data[:8], 8
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            break
        body = data[position + 4 : end - 4]
        out += data[position : position + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        position = end
    return out + data[position:]


# Half of the edits hit the first bytes, where headers are.
_place = st.one_of(st.floats(0, 1), st.floats(0, 0.05))
_edits = st.lists(
    st.tuples(_place, st.integers(0, 255), st.sampled_from(("set", "insert", "delete"))),
    max_size=8,
)
_files = st.one_of(
    st.builds(
        edited, st.sampled_from(SEEDS), _edits, st.sampled_from((0, 0, 0, 0.01, 0.5)), st.booleans()
    ),
    st.binary(max_size=300),
    st.builds(bytes.__add__, st.sampled_from([seed[:16] for seed in SEEDS]), st.binary()),
)


def check_any_bytes(data):
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damaged files
        try:
            encoded = prepare(data)
            assert 0 < encoded.height * encoded.width <= decode.MAX_PIXELS
            pixels = decode_rgb(encoded)
        except BrokenImage as error:
            assert str(error) and "\n" not in str(error)
            broken = True
        else:
            assert pixels.dtype == torch.uint8
            assert pixels.shape == (3, encoded.height, encoded.width)
            broken = False
        try:
            examine(data)
        except Broken as error:
            assert error.kind and "\n" not in str(error)
        else:
            assert not broken  # what `verify` keeps is never broken for a loader
    assert time.monotonic() - began < PATIENCE


@pytest.fixture
def small_limit(monkeypatch):
    """Files of the fuzzer may claim any size: the limit is part of the bound on time and memory."""
    monkeypatch.setattr(decode, "MAX_PIXELS", 1 << 20)


_once = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(_once, max_examples=100)
@given(data=_files)
def test_any_bytes_are_an_image_or_broken(small_limit, data):
    check_any_bytes(data)


@pytest.mark.slow
@settings(_once, max_examples=2000)
@given(data=_files)
def test_many_bytes_are_an_image_or_broken(small_limit, data):
    check_any_bytes(data)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about damaged tags
@pytest.mark.parametrize("count", [100, pytest.param(4000, marks=pytest.mark.slow)])
def test_what_verify_keeps_looks_the_same_everywhere(small_limit, tmp_path, count):
    """Files with a few wrong bytes that `verify` still keeps."""
    rng = random.Random(count)
    kept = []
    while len(kept) < count:
        edits = [
            (rng.random() ** 2, rng.choice((0, 1, 128, 255)), rng.choice(("set", "delete")))
            for _ in range(rng.randint(1, 2))
        ]
        data = edited(rng.choice(SEEDS), edits, 0, True)
        try:
            examine(data)
        except Broken:
            continue
        encoded = prepare(data)
        if max(encoded.height, encoded.width) < 200 and data not in SEEDS:
            kept.append(data)
    split = split_of(tmp_path, kept)
    for name in LOADING:
        found, broken = loaded(name, split)
        assert not broken
        for data, pixels in zip(kept, found, strict=True):
            encoded = prepare(data)
            box = WHOLE.box(encoded.height, encoded.width)
            part = decode.resize_part(decode_rgb(encoded), box, SIDE).permute(1, 2, 0).numpy()
            assert np.abs(pixels - part).max() < 4
