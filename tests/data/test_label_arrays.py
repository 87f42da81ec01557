"""Labels in arrays and in tables of any format, for `--data.label_file`."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from alr_fast.data.broken import read_exclusions, write_exclusions
from alr_fast.data.index import SampleIndex
from alr_fast.data.label_files.label_table import is_label_table, read_labels, read_left_out
from alr_fast.errors import UserError
from alr_fast.train import main

NAMES = ("cat", "dog", "frog")


def index(paths=("a", "b", "c", "d")):
    return SampleIndex(
        np.arange(len(paths)), list(paths), np.zeros(len(paths), np.int64), None, NAMES
    )


@pytest.mark.parametrize("values", [[2, 1, 0, 2], ["frog", "dog", "cat", "frog"], [2.0, 1, 0, 2]])
def test_labels_in_the_order_of_the_samples(tmp_path, values):
    np.save(tmp_path / "y.npy", np.array(values))
    np.savez(tmp_path / "y.npz", labels=np.array(values))
    for name in ("y.npy", "y.npz"):
        assert is_label_table(str(tmp_path / name))
        read = read_labels(tmp_path / name, index(), None)
        assert read.labels.tolist() == [2, 1, 0, 2] and read.listed == 4
        assert any("in its order" in remark for remark in read.remarks)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([1, 2, 0], "has 3 labels without paths, and the data set 4 samples; store a label for"),
        ([1, 2, 0, 1, 1], "has 5 labels without paths"),
        ([1, 2, 0, 3], "label '3' is not one of the 3 classes"),
        ([1, 2, 0, -1], "label '-1' is not one of the 3 classes"),
        ([[1, 2, 0, 1]], "label is int64 of shape 1 x 4"),
        (np.eye(4), "label is float64 of shape 4 x 4"),
        ([True, False, True, True], "label is bool of shape 4"),
        (np.array([{}] * 4), "label is object of shape 4"),
    ],
)
def test_arrays_that_are_no_labels(tmp_path, values, problem):
    np.save(tmp_path / "y.npy", values, allow_pickle=True)
    with pytest.raises(UserError, match=rf"y\.npy.*: .*{problem}") as error:
        read_labels(tmp_path / "y.npy", index(), None)
    assert "\n" not in str(error.value)


def test_arrays_with_paths(tmp_path):
    np.savez(tmp_path / "y.npz", filename=["d", "b"], class_name=["frog", "dog"])
    assert read_labels(tmp_path / "y.npz", index(), None).labels.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("name", ["labels.jsonl", "labels.csv", "labels"])
def test_json_lines_under_any_name(tmp_path, name):
    path = tmp_path / name
    records = [{"file_name": "d", "label": "frog"}, {"file_name": "a", "label": None}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert is_label_table(str(path))
    assert read_labels(path, index(), None).labels.tolist() == [0, 0, 0, 2]


def test_what_is_no_table(tmp_path):
    import torch

    torch.save({"clean_label": [1]}, tmp_path / "human.pt")
    np.savez(tmp_path / "noisy.npz", format="alr_fast noisy labels 1", original=[1], labels=[1])
    for name in ("human.pt", "noisy.npz", ".", "none.pt", "none.npz"):
        assert not is_label_table(str(tmp_path / name))
    assert is_label_table(str(tmp_path / "none.csv"))


def test_training_takes_an_array_of_labels(tmp_path, capsys):
    """Not advice on CIFAR-N, whose files hold several sets of labels."""
    np.save(tmp_path / "y.npy", np.zeros(7, dtype=np.int64))
    argv = ["--data.label_file", str(tmp_path / "y.npy"), "--noise.kind", "none"]
    assert main([*argv, "--runs", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert f"--data.label_file {tmp_path}/y.npy: has 7 labels without paths" in error


def test_exclusions_are_read_back(tmp_path):
    paths = ["=a", "-b\n", "'=c", "'s d", os.fsdecode(b"\xe4"), " e "]
    path = tmp_path / "list.csv"
    write_exclusions(path, [(k, name, '+bad, "x"') for k, name in enumerate(paths)])
    assert read_left_out(path, index(paths), 0.5) is None
    assert read_exclusions(path, index(paths)) == {k: '+bad, "x"' for k in range(len(paths))}
    write_exclusions(path, [(0, "=a", "@x")])
    assert b"'=a" in path.read_bytes() and not path.read_bytes().startswith(b"\xef")


def test_paths_that_a_spreadsheet_saved_as_windows_1252(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("path,label\nB\u00e4r.jpg,dog\nb,fr\u00f6g\n".encode("cp1252"))
    names = ("cat", "dog", "fr\u00f6g")
    read = read_labels(path, replace(index(["B\u00e4r.jpg", "b"]), class_names=names), None)
    assert read.labels.tolist() == [1, 2]
    assert f"{path}: is not UTF-8; texts are read as Windows-1252" in read.remarks
    latin = os.fsdecode("B\u00e4r.jpg".encode("cp1252"))
    read = read_labels(path, replace(index([latin, "b"]), class_names=names), None)
    assert read.labels.tolist() == [1, 2]
