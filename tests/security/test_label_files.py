"""Tables of a stranger: columns of other types are refused by name, small files stay small."""

import datetime
import io
import os
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alr_fast import train
from helpers.forged import Command, bounded, proves_itself
from helpers.image_folder import write_folder

OPTIONS = ["--optim.epochs", "1", "--methods", "ce", "--model.name", "conv-mini", "--log.show"]
OPTIONS += ["quiet", "--data.workers", "1", "--log.to", "csv"]
COUNT = 8


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    return write_folder(folder, train={"a": 4, "b": 4}, test={"a": 1, "b": 1})


@pytest.fixture(scope="module")
def paths(root):
    return sorted(path.relative_to(root).as_posix() for path in (root / "train").rglob("*.png"))


def refused(root, tmp_path, capsys, *argv):
    """Training on these options ends with one line and writes nothing; returns the line."""
    runs = tmp_path / "runs"
    capsys.readouterr()
    with bounded(gigabytes=1):
        status = train.main(["--data-root", str(root), "--runs", str(runs), *OPTIONS, *argv])
    error = capsys.readouterr().err
    assert status == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert not runs.exists()
    return error


DAY = datetime.date(2026, 1, 31)
LABELS = {
    "a list": pa.array([["a"]] * COUNT),
    "a struct": pa.array([{"x": "a"}] * COUNT),
    "a date": pa.array([DAY] * COUNT),
    "a time": pa.array([datetime.datetime(2026, 1, 31)] * COUNT),
    "bytes": pa.array([b"\x00\xff"] * COUNT),
    "a map": pa.array([[("a", 1)]] * COUNT, pa.map_(pa.string(), pa.int64())),
    "nested lists": pa.array([[[1]]] * COUNT),
    "fractions": pa.array([0.5] * COUNT),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_of_another_type_are_refused_by_name(root, paths, tmp_path, capsys, labels):
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"path": paths, "label": labels}), path)
    assert "label" in refused(root, tmp_path, capsys, "--labels", str(path))


@pytest.mark.parametrize(
    "column", [pa.array([["a"]] * COUNT), pa.array([{"x": 1}] * COUNT), pa.array([DAY] * COUNT)]
)
def test_paths_of_another_type_are_refused_by_name(root, tmp_path, capsys, column):
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"path": column, "label": ["a"] * COUNT}), path)
    assert "path" in refused(root, tmp_path, capsys, "--labels", str(path))


@pytest.mark.parametrize(
    "name", ["../outside.png", "/etc/passwd", "a/../../outside.png", "file:///etc/passwd"]
)
def test_a_list_names_files_of_its_folder_only(tmp_path, capsys, name):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = ["path,label,split", *(f"{k}.png,a,train" for k in range(4)), f"{name},b,train"]
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    line = refused(folder / "list.csv", tmp_path, capsys)
    assert "outside" in line or "passwd" in line


def zipped(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def npy(count):
    """A file of numpy that is ``count`` zeros."""
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({count},), }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return (
        b"\x93NUMPY\x01\x00"
        + len(header).to_bytes(2, "little")
        + header.encode()
        + bytes(8 * count)
    )


def test_a_small_npz_that_unpacks_to_gigabytes(root, tmp_path, capsys):
    path = tmp_path / "labels.npz"
    path.write_bytes(zipped("noisy_labels.npy", npy(60_000_000)))
    assert path.stat().st_size < 1_000_000
    refused(root, tmp_path, capsys, "--labels", str(path))


@pytest.mark.parametrize("suffix", ["npz", "npy", "pt", "csv", "parquet", "jsonl", "json"])
def test_no_table_runs_a_program(root, tmp_path, capsys, suffix):
    victim = tmp_path / "victim"
    path = tmp_path / f"labels.{suffix}"
    objects = np.array([Command(victim)] * COUNT, dtype=object)
    for content in (
        pickle.dumps(Command(victim)),
        zipped("label.npy", _saved(objects)),
        zipped("human/data.pkl", pickle.dumps(Command(victim))),
        _saved(objects),
    ):
        path.write_bytes(content)
        refused(root, tmp_path, capsys, "--labels", str(path))
    assert not victim.exists()
    proves_itself(pickle.dumps(Command(victim)), victim)


def _saved(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz", "npy", "pt", "jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(root, tmp_path, capsys, suffix, kind):
    path = tmp_path / f"labels.{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    refused(root, tmp_path, capsys, "--labels", str(path))
    if kind != "folder":
        refused(path, tmp_path, capsys)
