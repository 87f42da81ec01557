"""BankFile: rows and columns as written, every change detected, whatever the bytes."""

import json
import os
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alr_fast.bank.file import CHECKSUMS, BankFileWriter, write_tensors
from alr_fast.bank.read_file import BankFile, read_columns, strings
from alr_fast.errors import UserError

N, K = 6, 3


def rows_of(dtype=torch.float32):
    rows = torch.rand(N, K, generator=torch.Generator().manual_seed(1))
    return (rows / rows.sum(1, keepdim=True)).to(dtype)


def write(path, rows, **tensors):
    writer = BankFileWriter(
        path,
        num_samples=N,
        num_classes=K,
        dtype=rows.dtype,
        tensors={"ids": torch.arange(N), "bytes": torch.arange(9, dtype=torch.uint8), **tensors},
        metadata={"class_names": json.dumps(["a", "b", "caf\udce9"])},
    )
    with writer:
        writer.write(torch.arange(N), rows)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_file_is_read_as_it_was_written(tmp_path, dtype):
    rows = rows_of(dtype)
    file = BankFile(write(tmp_path / "bank", rows, loss=torch.rand(N)))
    assert (file.num_samples, file.num_classes) == (N, K)
    for some in (slice(None), slice(2, 5), slice(4, 99), slice(3, 3), slice(5, 2)):
        found = file.read(some)
        assert found.dtype == np.float32
        assert np.array_equal(found, rows.float().numpy()[some])
    assert file.columns.has_checksum
    assert file.columns.array("ids", np.int64, N).tolist() == list(range(N))
    assert strings(file.columns.metadata, "class_names") == ("a", "b", "caf\udce9")


def test_rows_are_compared_with_their_checksums_only_once(tmp_path, monkeypatch):
    file = BankFile(write(tmp_path / "bank", rows_of()))
    calls = []
    monkeypatch.setattr(BankFile, "_check", lambda self, values, *_: calls.append(len(values)))
    for some in (slice(0, 2), slice(0, 4), slice(1, 3), slice(0, 4), slice(4, 6), slice(0, 6)):
        file.read(some)
    assert calls == [2, 4, 2]


def test_a_changed_row_is_found_when_it_is_read(tmp_path):
    path = write(tmp_path / "bank", rows_of())
    offset = read_columns(path).offsets["rows"]
    with path.open("r+b") as file:
        file.seek(offset + 4 * K * 4 + 1)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    bank = BankFile(path)
    assert bank.read(slice(0, 4)).shape == (4, K)
    with pytest.raises(UserError, match=r"label bank \(row 4 was changed after it was written\)"):
        bank.read(slice(3, 6))


@pytest.mark.parametrize(
    ("dtype", "row", "why"),
    [
        (torch.float32, [0.5, 0.25, 0.25], None),
        (torch.float32, [0.0, 0.0, 0.0], None),
        (torch.float32, [0.1, 0.0, 0.0], None),
        (torch.float32, [0.5, 0.5, 0.015], None),
        (torch.float32, [0.5, 0.5, 0.1], "row 2 sums to 1.1, not to 1"),
        (torch.bfloat16, [0.5, 0.5, 0.125], None),
        (torch.float16, [0.5, 0.5, 0.125], None),
        (torch.float16, [1.0, 1.0, 0.0], "row 2 sums to 2, not to 1"),
        (torch.bfloat16, [1.0, -0.5, 0.5], "row 2 has a negative value, -0.5"),
        (torch.float16, [torch.inf, -torch.inf, 0.5], "row 2 has a NaN or infinite value"),
        (torch.float32, [3e38, 3e38, 3e38], "row 2 sums to inf, not to 1"),
    ],
)
def test_rows_that_are_no_probabilities(tmp_path, dtype, row, why):
    rows = rows_of(dtype)
    rows[2] = torch.tensor(row)
    file = BankFile(write(tmp_path / "bank", rows))
    if why is None:
        assert file.read(slice(0, N)).shape == (N, K)
        return
    with pytest.raises(UserError) as caught:
        file.read(slice(1, N))
    assert f"bank: cannot be read as a label bank ({why}); train again" in str(caught.value)


def with_header(path, change):
    """Changes the header of a file, which keeps its data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(change(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def entry(name, **values):
    return lambda header: header | {name: header[name] | values}


HEADERS = {
    "not an object": lambda header: [header],
    "an entry that is none": lambda header: header | {"ids": 3},
    "no type": lambda header: header | {"ids": {"shape": [N], "data_offsets": [0, 48]}},
    "a type": entry("ids", dtype="X9"),
    "a type of rows": entry("rows", dtype="I32"),
    "a type of a column": entry("ids", dtype="F64"),
    "another size": entry("ids", shape=[N + 1]),
    "below 0": entry("ids", shape=[-N]),
    "a fraction": entry("ids", shape=[float(N)]),
    "a huge shape": entry("rows", shape=[2**62, 2**62]),
    "an overlap": entry("ids", data_offsets=[8, 56]),
    "negative offsets": entry("ids", data_offsets=[-8, 40]),
    "texts": entry("ids", data_offsets=["a", "b"]),
    "three": entry("ids", data_offsets=[0, 48, 50]),
    "flat rows": entry("rows", shape=[N * K]),
    "metadata": lambda header: header | {"__metadata__": {"class_names": 3}},
    "metadata of a list": lambda header: header | {"__metadata__": []},
    "no checksum": lambda header: (
        header | {"__metadata__": {"class_names": header["__metadata__"]["class_names"]}}
    ),
    "other names": lambda header: (
        header | {"__metadata__": header["__metadata__"] | {"class_names": '["a", "b", "x"]'}}
    ),
    "another name": lambda header: {("rows2" if k == "rows" else k): v for k, v in header.items()},
    "no sums": lambda header: {("sums" if k == CHECKSUMS else k): v for k, v in header.items()},
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_is_wrong(tmp_path, case):
    path = write(tmp_path / "bank", rows_of())
    with_header(path, HEADERS[case])
    with pytest.raises(UserError, match=rf"{path}: cannot be read as a label bank \(.*\); train"):
        BankFile(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 60_000) + b"[" * 60_000,
        struct.pack("<Q", 60_000) + b'{"a":' * 12_000,
        struct.pack("<Q", 3) + b"\xff\xff\xff",
    ],
)
def test_files_of_another_kind(tmp_path, data):
    (tmp_path / "bank").write_bytes(data)
    with pytest.raises(UserError, match="cannot be read as a label bank"):
        BankFile(tmp_path / "bank")


def test_a_pipe_and_a_missing_file_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "none"):
        with pytest.raises(UserError, match=rf"{name}: cannot be read as a label bank"):
            BankFile(tmp_path / name)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_whatever_the_bytes_there_is_a_result_or_an_error(tmp_path_factory, data):
    path = write(tmp_path_factory.mktemp("fuzz") / "bank", rows_of())
    good = path.read_bytes()
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["byte", "cut", "insert"]))
        if kind == "byte":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 40))]
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        content = content or bytearray(b"\0")
    path.write_bytes(content)
    try:
        file = BankFile(path)
        rows = file.read(slice(0, N))
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        # Padding may change, nothing else.
        assert np.array_equal(rows, rows_of().numpy())
        assert file.columns.array("ids", np.int64, N).tolist() == list(range(N))


def test_a_file_without_rows(tmp_path):
    tensors = {"a": torch.arange(5), "b": torch.tensor([1, 2, 3], dtype=torch.uint8)}
    write_tensors(tmp_path / "columns", tensors, {"x": "y"})
    columns = read_columns(tmp_path / "columns")
    assert columns.array("a", np.int64, 5).tolist() == [0, 1, 2, 3, 4]
    assert columns.array("b", np.uint8, 3).tolist() == [1, 2, 3]
    assert columns.metadata["x"] == "y" and columns.has_checksum
    with pytest.raises(UserError, match="it has no rows"):
        BankFile(tmp_path / "columns")
