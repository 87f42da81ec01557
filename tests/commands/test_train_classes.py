"""The training command where names of classes are numbers, and where samples came or went."""

import numpy as np
import pytest
from safetensors.torch import load_file

from alr_fast.export import main as export
from alr_fast.noise.__main__ import main as noise
from alr_fast.train import main
from helpers.image_folder import write_folder

NAMES = ("1", "2", "10")
LINE = "class 1 -> 2, 2 -> 10, 10 -> 1"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Folders 1, 2 and 10 with four images each, without a test split."""
    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))
    return write_folder(tmp_path / "set", train=dict.fromkeys(NAMES, 4), test={})


@pytest.fixture
def train(tmp_path, root, one_thread, capsys):
    """Trains for an epoch; returns the lines of the run."""

    def run(*argv, status=0, methods="alr"):
        given = ["--data-root", str(root), "--runs", str(tmp_path / "runs"), "--methods", methods]
        given += ["--model.name", "conv-tiny", "--optim.epochs", "1", "--data.loader", "torch"]
        given += ["--data.crop", "resized", "--data.image_size", "16", "--data.workers", "1"]
        assert main([*given, *map(str, argv)]) == status
        printed = capsys.readouterr()
        return (printed.err if status else printed.out).splitlines()

    return run


def bank_of(tmp_path):
    """Given label of each path in the bank of the last run."""
    tensors = load_file(tmp_path / "runs/latest/alr_bank.safetensors")
    paths = bytes(tensors["paths"].tolist()).decode().split("\0")
    return dict(zip(paths, tensors["given_labels"].tolist(), strict=False))


def test_a_correction_names_the_class(tmp_path, train):
    table = tmp_path / "corrections.csv"
    table.write_text("path,label\ntrain/1/000.png,2\ntrain/1/001.png,10\n")
    lines = train("--labels", table)
    given = bank_of(tmp_path)
    assert (given["train/1/000.png"], given["train/1/001.png"]) == (1, 2)
    assert (given["train/1/002.png"], given["train/10/000.png"]) == (0, 2)
    assert any("for 2 of 12 samples; 2 differ from those" in line for line in lines)

    table.write_text("path,label\ntrain/1/000.png,0\ntrain/1/001.png,1\n")
    (line,) = train("--labels", table, status=2)
    assert line.startswith(
        f"error: --data.label_file {table}, line 2: label '0' is no class name, so labels would be "
        "numbers from 0; but 1 is class '1' by name and class '2' by number; write class names"
    )


def test_pair_noise_says_which_classes_it_flips(tmp_path, root, train, capsys):
    lines = train("--noise.kind", "pair", "--noise.rate", "1")
    assert f"pair: {LINE}" in lines
    assert bank_of(tmp_path)["train/10/000.png"] == 0
    assert bank_of(tmp_path)["train/1/000.png"] == 1
    argv = ["--data-root", str(root), "--output", str(tmp_path / "noisy.npz")]
    assert noise([*argv, "--kind", "pair", "--rate", "1"]) == 0
    assert f"pair: {LINE}" in capsys.readouterr().out.splitlines()


def test_a_matrix_says_which_classes_its_rows_are(tmp_path, root, train, capsys):
    line = "rows and columns count from 0: 0 is class 1, 1 is class 2, 2 is class 10"
    matrix = tmp_path / "t.csv"
    np.savetxt(matrix, np.eye(3)[[0, 2, 1]], delimiter=",")
    lines = train("--noise.kind", "matrix", "--noise.matrix", matrix)
    assert f"transition matrix: {line}" in lines
    assert bank_of(tmp_path)["train/2/000.png"] == 2
    argv = ["--data-root", str(root), "--output", str(tmp_path / "noisy.npz")]
    assert noise([*argv, "--kind", "matrix", "--matrix", str(matrix)]) == 0
    assert f"transition matrix: {line}" in capsys.readouterr().out.splitlines()
    lines = train("--transition.source", matrix, methods="forward_correction")
    assert f"{matrix}: {line}" in lines


def test_the_tables_of_a_run_serve_its_data_after_images_came_and_went(tmp_path, root, train):
    train("--optim.epochs", "1")
    table = tmp_path / "labels.csv"
    assert export([str(tmp_path / "runs/latest"), "--output", str(table)]) == 0
    (root / "train/1/003.png").rename(root / "train/1/+.png")  # moves all ids
    (root / "train/2/000.png").unlink()
    (root / "train/3").mkdir()  # and the numbers of classes
    (root / "train/2/001.png").rename(root / "train/3/000.png")
    lines = train("--labels", table, "--data.label_key", "given_label")
    assert [line for line in lines if line.startswith("labels: ")] == [
        f"labels: from {table} for 9 of 11 samples; 0 differ from those of the data set",
        "labels: 9 of 11 samples; 3 in the table are unknown (first: line 5, train/1/003.png), 2 "
        "of the data set are not listed",
        "labels: its classes have other numbers in the data set; the names count",
    ]
    lines = train("--data.exclude", table, "--data.exclude_above", "0.01")
    assert any(
        line.startswith("left out: 9 of 11 samples; 3 in the table are unknown") for line in lines
    )


def test_noisy_labels_of_a_file_serve_the_data_after_an_image_came(tmp_path, root, train):
    file = tmp_path / "noisy.npz"
    argv = ["--data-root", str(root), "--output", str(file), "--kind", "pair", "--rate", "1"]
    assert noise(argv) == 0
    (root / "train/1/+.png").write_bytes((root / "train/1/003.png").read_bytes())
    lines = train("--data.label_file", file)
    assert (
        "labels: 12 of 13 samples; 1 of the data set are not in the file and keep their label "
        "(first: train/1/+.png)"
    ) in lines
    given = bank_of(tmp_path)
    assert (given["train/1/+.png"], given["train/1/000.png"], given["train/10/000.png"]) == (
        *(0, 1, 0),
    )


def test_a_class_that_is_left_out_is_said(train_folder, tmp_path, root, capsys):
    folder = sorted(path for path in (root / "train").iterdir() if path.is_dir())[0]
    names = [f"train/{folder.name}/{path.name}" for path in folder.iterdir()]
    (tmp_path / "out.csv").write_text("path\n" + "\n".join(names) + "\n")
    status, _ = train_folder("--data.exclude", str(tmp_path / "out.csv"), "--methods", "ce")
    text = capsys.readouterr()
    assert status == 0, text.err
    assert f"left out: all samples of the classes {folder.name}\n" in text.out
