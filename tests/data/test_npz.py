"""Sizes of arrays are looked at before they are unpacked."""

import io
import os
import resource
import zipfile

import numpy as np
import pytest

from alr_fast.data.index import SampleIndex
from alr_fast.data.tables.npz import ArraysError, is_npz, open_npz
from alr_fast.errors import UserError
from alr_fast.noise.files import load_labels, read_matrix


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def claiming(shape, dtype="<i8", data=b""):
    """An array whose header claims another size than it has."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture(scope="module")
def bomb(tmp_path_factory):
    """300 kB that unpack to 320 MB."""
    path = tmp_path_factory.mktemp("bomb") / "labels.npz"
    zeros = npy(np.zeros(40_000_000, dtype=np.int64))
    return archive(path, ids=zeros, labels=zeros, original=zeros, format=npy(np.array("x")))


def test_an_array_that_is_too_large_is_not_unpacked(bomb):
    before = memory()
    with open_npz(bomb) as arrays:
        assert arrays.headers["ids"].shape == (40_000_000,)
        with pytest.raises(ArraysError, match=r"ids is int64 of shape 40000000, 320 MB, more than"):
            arrays.read("ids", 1 << 20)
    assert memory() - before < 64 << 10


def test_a_file_of_noisy_labels_that_is_too_large(bomb):
    index = SampleIndex(np.arange(3), ["a", "b", "c"], np.zeros(3, np.int64), None, ("u", "v"))
    before = memory()
    with pytest.raises(UserError, match=r"labels\.npz: not a file of noisy labels"):
        load_labels(bomb, index)
    assert memory() - before < 64 << 10


def test_a_matrix_that_is_too_large(tmp_path):
    path = tmp_path / "t.npy"
    with path.open("wb") as file:
        file.write(claiming((1 << 15, 1 << 15), "<f8"))
        file.truncate(file.tell() + 8 * (1 << 30))  # a sparse file
    with pytest.raises(UserError, match=r"t\.npy: .* 8\.6 GB, more than"):
        read_matrix(path)
    path.write_text("1 " * (1 << 20))
    with pytest.raises(UserError, match="line 1 is too long"):
        read_matrix(path)
    path.write_text("0.5,0.5\n" * 3)
    with pytest.raises(UserError, match="more than 2 rows of so many values"):
        read_matrix(path)


@pytest.mark.parametrize(
    "content",
    [
        claiming((1 << 40,)),
        claiming((1 << 62, 1 << 62)),
        claiming((-1,), data=b"\0" * 8),
        claiming((3,), data=b"\0" * 16),
        claiming((3,), data=b"\0" * 32),
        claiming((3,), "<U" + "9" * 12),
        claiming("x"),
        npy(np.arange(3))[:-1],
        npy(np.arange(3))[:20],
        b"\x93NUMPY\x09\x00" + b"\0" * 20,
        b"",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_that_do_not_fit_are_refused(tmp_path, content, packed):
    path = tmp_path / "x.npy"
    if packed:
        archive(path, y=content)
    else:
        path.write_bytes(content)
    before = memory()
    problem = r"x\.npy: .* cannot be read .*; write it again$"
    with pytest.raises(ArraysError, match=problem), open_npz(path) as arrays:
        arrays.read(next(iter(arrays.headers)), 1 << 40)
    assert memory() - before < 64 << 10


def test_python_objects_are_refused(tmp_path):
    path = archive(tmp_path / "x.npz", y=npy(np.array([None])))
    with open_npz(path) as arrays, pytest.raises(ArraysError, match="Python objects"):
        arrays.read("y", 1 << 20)


def test_arrays_are_read(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        np.savez_compressed(file, a=np.arange(3), b=np.array(["x", "\u00e4"]), c=np.float32(2))
    assert is_npz(path) and not is_npz(tmp_path) and not is_npz(tmp_path / "none")
    with open_npz(path) as arrays:
        assert list(arrays.headers) == ["a", "b", "c"]
        assert arrays.read("a", 24).tolist() == [0, 1, 2]
        assert arrays.read("b", 100).tolist() == ["x", "\u00e4"]
        assert arrays.read("c", 100) == 2
    np.save(tmp_path / "y.npy", np.asfortranarray(np.eye(3)[:2]))
    with open_npz(tmp_path / "y.npy") as arrays:
        assert np.array_equal(arrays.read("", 100), np.eye(3)[:2])


def test_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(ArraysError, match="not a regular file"), open_npz(tmp_path / "x.npz"):
        pass
    with pytest.raises(UserError, match="not a regular file"):
        read_matrix(tmp_path / "x.npz")
