"""Pickles become plain data: nothing runs, nothing takes long or much memory."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from alr_fast.data.label_files.cifar_n import read_cifar_n
from alr_fast.data.layouts import cifar
from alr_fast.errors import UserError
from alr_fast.utils import pickles
from alr_fast.utils.pickles import Global, Instance
from helpers.forged import Command, bounded, proves_itself

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def load(data, known=lambda name: True, limit=1 << 20):
    return pickles.load(io.BytesIO(data), limit=limit, known=known)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 255, 65536, -(2**31), 2**63, -(2**80), 0.5, -1e300, "", "text",
        "Ü\n\\\x00", "\U0001f600", [], [1, [2, [3]]], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4),
        {}, {"a": 1, 2: [None]}, {"a": {"b": ("c",)}}, list(range(3000)),
        {str(k): k for k in range(3000)},
    ],
)  # fmt: skip
def test_plain_values_are_read_as_the_standard_unpickler_reads_them(value, protocol):
    data = pickle.dumps(value, protocol)
    assert load(data) == value
    assert type(load(data)) is type(value)


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_bytes_and_sets(protocol):
    assert load(pickle.dumps(b"\x00\xff" * 300, protocol)) == b"\x00\xff" * 300
    if protocol >= 4:
        assert load(pickle.dumps({1, "a"}, protocol)) == {1, "a"}


def test_strings_of_python_2():
    assert load(b"U\x03a\xe9b.") == "aéb"
    assert load(b"T\x02\x00\x00\x00ab.") == "ab"
    assert load(b"S'a\\xe9\\n'\n.") == "aé\n"


@pytest.mark.parametrize(
    "data", [b"Fabc\n.", b"Iabc\n.", b"L1x\n.", b"X\x01\0\0\0\xff.", b"S'\\x'\n.", b"V\\u12\n."]
)
def test_numbers_and_texts_that_are_none_are_named(data):
    with pytest.raises(pickle.UnpicklingError):
        load(data)


def test_an_integer_of_protocol_0_that_looks_like_a_flag():
    assert [load(b"I0%d\n." % k) for k in (0, 1, 7)] == [False, True, 7]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shared_parts_are_one_object_and_a_list_may_contain_itself(protocol):
    part = [1]
    first, second = load(pickle.dumps([part, part], protocol))
    assert first is second
    part.append(part)
    found = load(pickle.dumps(part, protocol))
    assert found[1] is found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_called(tmp_path, protocol):
    victim = tmp_path / "victim"
    data = pickle.dumps([Command(victim)], protocol)
    proves_itself(data, victim)
    (found,) = load(data)
    assert type(found) is Instance
    assert (found.maker.name, found.arguments) == ("mkdir", (str(victim),))
    with pytest.raises(pickle.UnpicklingError, match=r"asks for (posix|os)\.mkdir"):
        load(data, known=lambda name: False)
    assert not victim.exists()


def _nested():
    """A tuple of tuples of tuples, whose hash takes 2^60 steps, without protocol and end."""
    value = (1,)
    for _ in range(60):
        value = (value, value)
    return pickle.dumps(value, 2)[2:-1]


DEEP = _nested()
HARMFUL = {
    "a place in the memo": b"Nr\xff\xff\xff\x7f.",
    "a long text": b"X\xff\xff\xff\x7fab.",
    "a longer text": b"\x8d" + struct.pack("<Q", 2**62) + b"ab.",
    "a long integer": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
    "a negative size": b"\x8b" + struct.pack("<i", -5) + b"\x01.",
    "many digits": b"L" + b"9" * 500_000 + b"L\n.",
    "a frame": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "a key whose hash takes for ever": b"}" + DEEP + b"Ns.",
    "several of them": b"}(" + DEEP + b"Nu.",
    "a dict of them": b"(" + DEEP + b"Nd.",
    "a set of it": b"\x8f(" + DEEP + b"\x90.",
    "a tensor": b"X\x01\x00\x00\x00aQ.",
    "an old object": b"(ios\nsystem\n.",
    "another old object": b"(cos\nsystem\no.",
    "an extension": b"\x82\x01.",
    "a buffer": b"\x97.",
}


@pytest.mark.parametrize("data", HARMFUL.values(), ids=HARMFUL)
def test_time_and_memory_are_bounded(data):
    with bounded(gigabytes=0.5):
        try:
            load(data)
        except pickle.UnpicklingError as error:
            assert "\n" not in str(error)
            assert "missing" not in str(error)  # the harm itself is refused


DAMAGED = {
    "nothing": b"", "no end": b"N", "no value": b".", "two values": b"NN.", "no mark": b"t.",
    "no list": b"Na.", "no items": b"a.", "no dict": b"NNNs.", "one item": b"}(Nu.",
    "no number": b"Ix\n.", "half a line": b"I1", "nothing stored": b"h\x05.",
    "nothing to store": b"q\x00.", "a call of nothing": b"N)R.",
    "no arguments": b"cos\nsystem\nNR.",
    "a state of nothing": b"NNb.", "unknown": b"\xff.", "no quotes": b"Sx\n.",
}  # fmt: skip


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_pickles_are_refused(data):
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        load(data)


def test_a_pickle_larger_than_the_limit_is_refused():
    data = pickle.dumps("x" * 1000)
    assert load(data, limit=len(data)) == "x" * 1000
    with pytest.raises(pickle.UnpicklingError, match="too large"):
        load(data, limit=500)


def test_the_state_of_an_instance_as_attributes():
    name = Global("a", "b")
    assert Instance(name, ()).fields() == {}
    assert Instance(name, (), {"x": 1}).fields() == {"x": 1}
    assert Instance(name, (), (None, {"x": 1})).fields() == {"x": 1}
    for state in (3, ({}, {}), {1: 2}):
        with pytest.raises(pickle.UnpicklingError, match=r"a\.b with another state"):
            Instance(name, (), state).fields()


# Files of CIFAR and CIFAR-N


def test_nested_parts_of_a_batch_do_not_take_for_ever(tmp_path):
    value = []
    for _ in range(60):
        value = [value, value]
    path = tmp_path / "data_batch_1"
    for content in (value, {"data": value, "labels": value}):
        path.write_bytes(pickle.dumps(content))
        assert path.stat().st_size < 700
        with bounded(gigabytes=0.5):
            found = cifar.read_pickle(path)
    assert found["labels"] is found["data"]


def test_a_batch_that_contains_itself_is_refused(tmp_path):
    value = []
    value.append(value)
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": value}))
    found = cifar.read_pickle(path)
    with pytest.raises(UserError, match="not a list of integers"):
        cifar.integers(found["data"], "data")


def test_a_small_archive_that_unpacks_to_gigabytes_is_refused(tmp_path):
    path = tmp_path / "CIFAR-10_human.pt"
    labels = b"K\x00" * (150 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("human/data.pkl", b"\x80\x02}(U\x0bclean_label](" + labels + b"eu.")
    del labels
    assert path.stat().st_size < 3_000_000
    with (
        bounded(gigabytes=0.2),
        pytest.raises(UserError, match=r"human\.pt: .*it unpacks to 315 MB, labels need 17 MB at"),
    ):
        read_cifar_n(path, "aggre", np.zeros(50_000, np.int64))
