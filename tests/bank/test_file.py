"""BankFileWriter: content of the file, refused input, and no incomplete file under its name."""

import errno
import json
import os
import stat
import zlib

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alr_fast.bank.file import BankFileWriter
from alr_fast.errors import UserError

N, K = 7, 5
METADATA = {"sample_fingerprint": "abc", "class_names": json.dumps(["häuschen", 'a "b"'])}


def rows_of(dtype=torch.float32, samples=N):
    return torch.rand(samples, K, generator=torch.Generator().manual_seed(1)).to(dtype)


def bytes_of(rows):
    return [bytes(row.view(torch.uint8).tolist()) for row in rows]


def small_tensors():
    return {
        "ids": torch.arange(N) * 10,
        "given_labels": torch.arange(N) % K,
        "clean_labels": torch.arange(N).flip(0) % K,
    }


def writer_of(path, dtype=torch.float32, tensors=None, metadata=METADATA, samples=N):
    return BankFileWriter(
        path,
        num_samples=samples,
        num_classes=K,
        dtype=dtype,
        tensors=small_tensors() if tensors is None else tensors,
        metadata=metadata,
    )


def write_all(path, **options):
    rows = rows_of(options.get("dtype", torch.float32))
    with writer_of(path, **options) as writer:
        writer.write(torch.arange(N), rows)
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_pieces_in_any_order_give_the_file_that_the_library_writes(
    device, tmp_path, dtype, monkeypatch
):
    rows, order = rows_of(dtype), torch.tensor([3, 6, 0, 5, 1, 4, 2])
    path = tmp_path / "alr_bank.safetensors"
    for chunk in (1 << 26, 2 * K * dtype.itemsize):  # a whole piece, and two rows at a time
        monkeypatch.setattr("alr_fast.bank.file._CHUNK_BYTES", chunk)
        with writer_of(path, dtype=dtype) as writer:
            for piece in order.split([3, 0, 4]):
                writer.write(piece.to(device), rows[piece].to(device))
        save_file({"rows": rows, **small_tensors()}, tmp_path / "library", metadata=METADATA)
        found, wanted = load_file(path), load_file(tmp_path / "library")
        checksums = found.pop("row_checksums").numpy().view(np.uint32)
        assert checksums.tolist() == [zlib.crc32(row) for row in bytes_of(rows)]
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
        with safe_open(path, "pt") as file:
            assert METADATA.items() <= file.metadata().items()
            assert file.metadata().keys() - METADATA.keys() == {"sha256"}
            assert torch.equal(file.get_slice("rows")[2:4], rows[2:4])
        os.unlink(path)


@pytest.mark.parametrize("text", ["", "a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg"])
def test_every_tensor_starts_at_a_multiple_of_its_item_size(tmp_path, text):
    tensors = {
        "flags": torch.tensor([True, False, True]),
        "half": torch.rand(3).half(),
        "brain": torch.rand(2, 1).bfloat16(),
        "double": torch.rand(1, 1, 3, dtype=torch.float64),
        "one": torch.tensor(5, dtype=torch.int32),
        "none": torch.zeros(0, 4, dtype=torch.int8),
        "turned": torch.arange(6).view(2, 3).T,
    }
    path = tmp_path / "bank"
    rows = write_all(path, dtype=torch.bfloat16, tensors=tensors, metadata={"text": text})
    found = load_file(path)
    del found["row_checksums"]
    assert found.keys() == {"rows", *tensors}
    for name, tensor in {"rows": rows, **tensors}.items():
        assert torch.equal(found[name], tensor)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    sizes = {"BOOL": 1, "I8": 1, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "F64": 8}
    del header["__metadata__"]
    for entry in header.values():
        assert entry["data_offsets"][0] % sizes[entry["dtype"]] == 0


def test_the_file_gets_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "bank.safetensors"
    path.write_text("the old one")
    with writer_of(path) as writer:
        writer.write(torch.arange(N), rows_of())
        assert path.read_text() == "the old one"
        (part,) = set(tmp_path.iterdir()) - {path}
        assert part.name.startswith(".bank.safetensors.")
        # All space is reserved before the first row is written.
        assert part.stat().st_blocks * 512 >= part.stat().st_size > N * K * 4
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(load_file(path)["rows"], rows_of())


def test_others_may_read_the_file(tmp_path):
    mask = os.umask(0o022)
    try:
        write_all(tmp_path / "bank")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "bank").stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_no_file(tmp_path, error):
    with pytest.raises(error), writer_of(tmp_path / "bank") as writer:
        writer.write(torch.arange(N), rows_of())
        raise error
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="written within `with BankFileWriter"):
        writer.write(torch.arange(N), rows_of())


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([0, 1, 2, 3, 4, 6], "1 of 7 rows of .*bank were not written, the first at index 5"),
        ([], "7 of 7 rows .* the first at index 0"),
    ],
)
def test_missing_rows_are_refused(tmp_path, positions, message):
    places = torch.tensor(positions, dtype=torch.int64)
    with pytest.raises(ValueError, match=message), writer_of(tmp_path / "bank") as writer:
        writer.write(places, rows_of()[places])
    assert list(tmp_path.iterdir()) == []


BAD_PIECES = {
    "twice in a piece": (torch.tensor([5, 4, 5]), 3, {}, ValueError, "between 4 and 5 came twice"),
    "twice": (torch.tensor([0, 3]), 2, {}, ValueError, "between 0 and 3 came twice"),
    "beyond": (torch.tensor([4, N]), 2, {}, ValueError, r"lie in \[0, 7\), got 4 to 7"),
    "negative": (torch.tensor([-1, 4]), 2, {}, ValueError, r"lie in \[0, 7\), got -1 to 4"),
    "int32": (torch.tensor([4], dtype=torch.int32), 1, {}, TypeError, "torch.int32 and torch.fl"),
    "float16": (torch.tensor([4]), 1, dict(dtype=torch.float16), TypeError, "and torch.float16"),
    "more rows": (torch.tensor([4]), 2, {}, ValueError, r"got \(1,\) and \(2, 5\)"),
    "one row for all": (torch.tensor([4, 5]), 1, {}, ValueError, r"got \(2,\) and \(1, 5\)"),
    "no list": (torch.tensor([[4]]), 1, {}, ValueError, r"got \(1, 1\) and \(1, 5\)"),
}


@pytest.mark.parametrize("case", BAD_PIECES)
def test_a_wrong_piece_is_refused_and_changes_nothing(tmp_path, case):
    positions, count, options, error, message = BAD_PIECES[case]
    rows = rows_of()
    with writer_of(tmp_path / "bank") as writer:
        writer.write(torch.tensor([3, 1]), rows[[3, 1]])
        with pytest.raises(error, match=message):
            writer.write(positions, torch.ones(count, K, **options))
        rest = torch.tensor([0, 2, 4, 5, 6])
        writer.write(rest, rows[rest])
    assert torch.equal(load_file(tmp_path / "bank")["rows"], rows)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(samples=0), ValueError, "at least one sample and one class, got 0 and 5"),
        (dict(tensors={"rows": torch.zeros(1)}), ValueError, "'rows' is taken"),
        (dict(tensors={"row_checksums": torch.zeros(1)}), ValueError, "'row_checksums' is taken"),
        (dict(tensors={"__metadata__": torch.zeros(1)}), ValueError, "'__metadata__' is taken"),
        (dict(tensors={"z": torch.zeros(1).cfloat()}), TypeError, "z is torch.complex64"),
        (dict(dtype=torch.complex64), TypeError, "rows is torch.complex64"),
    ],
)
def test_an_impossible_file_is_refused(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        writer_of(tmp_path / "bank", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_before_the_first_row(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    path = tmp_path / "bank"
    with pytest.raises(UserError, match=rf"{path} needs 1 kB.*No space left on device"):
        writer_of(path).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}/none/bank.*No such file"):
        writer_of(tmp_path / "none" / "bank").__enter__()


def test_a_file_system_that_cannot_reserve_space_gets_zeros(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    rows = write_all(tmp_path / "bank")
    assert torch.equal(load_file(tmp_path / "bank")["rows"], rows)


def test_the_data_is_on_disk_before_the_file_gets_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=real: (calls.append(n), f(*a)))
    handles = len(os.listdir("/proc/self/fd"))
    write_all(tmp_path / "bank")
    assert calls == ["fsync", "replace"]
    assert len(os.listdir("/proc/self/fd")) == handles
