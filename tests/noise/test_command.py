"""alr-fast noise."""

import re

import numpy as np
import pytest

from alr_fast.noise import (
    inject,
    load_labels,
)
from alr_fast.noise.__main__ import main
from helpers.image_folder import write_folder


@pytest.fixture
def digits():
    from alr_fast.data import open_dataset

    return open_dataset("digits", None).split("train")


def test_command_writes_the_labels_of_inject(tmp_path, capsys, digits):
    path = tmp_path / "noisy.npz"
    words = ["--data", "digits", "--kind", "pair", "--rate", "0.45", "--seed", "3"]
    assert main([*words, "--output", str(path)]) == 0
    noise = inject(digits.index.labels, num_classes=10, kind="pair", rate=0.45, seed=3)
    assert np.array_equal(load_labels(path, digits.index), noise.labels)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"pair: 45.00% requested, {noise.realised_rate:.2%} of 1,437 labels changed, seed 3; "
        f"written to {path}"
    ]


def test_command_passes_the_pixels_to_instance_noise(tmp_path, digits):
    path = tmp_path / "noisy.npz"
    words = ["--data", "digits", "--kind", "instance", "--rate", "0.3", "--output", str(path)]
    assert main(words) == 0
    noise = inject(
        digits.index.labels,
        num_classes=10,
        kind="instance",
        rate=0.3,
        seed=0,
        features=digits.images.array,
    )
    assert np.array_equal(load_labels(path, digits.index), noise.labels)


def test_command_decodes_the_images_of_a_folder(tmp_path, capsys, monkeypatch):
    from alr_fast.data import open_dataset
    from alr_fast.data.loaders.memory import decode_all

    monkeypatch.setenv("ALR_FAST_CACHE", str(tmp_path / "cache"))
    root = write_folder(tmp_path / "set", train=dict.fromkeys("xyz", 20), test={"x": 1})
    path = tmp_path / "noisy.npz"
    words = ["--kind", "instance", "--rate", "0.5", "--image-size", "4", "--output", str(path)]
    assert main(["--data-root", str(root), *words]) == 0
    assert "black" not in capsys.readouterr().out
    split = open_dataset("auto", root).split("train")
    noise = inject(
        split.index.labels,
        num_classes=3,
        kind="instance",
        rate=0.5,
        seed=0,
        features=decode_all(split, 4).array,
    )
    assert np.array_equal(load_labels(path, split.index), noise.labels)

    (root / split.index.paths[3]).write_bytes(b"broken")
    assert main(["--data-root", str(root), *words, "--overwrite"]) == 0
    assert "; unreadable images, replaced by black: 1" in capsys.readouterr().out


def test_command_reads_a_matrix(tmp_path, capsys, digits):
    np.save(tmp_path / "t.npy", np.roll(np.eye(10), 1, axis=1))
    path = tmp_path / "noisy.npz"
    words = ["--data", "digits", "--kind", "matrix", "--matrix", str(tmp_path / "t.npy")]
    assert main([*words, "--output", str(path)]) == 0
    assert "matrix: 100.00% requested, 100.00% of 1,437" in capsys.readouterr().out
    index = digits.index
    assert np.array_equal(load_labels(path, index), (index.labels + 1) % 10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--kind pair", "--kind pair: needs a rate"),
        ("--kind pair --rate 2", "--rate 2.0: must lie between 0 and 1"),
        ("--kind pair --rate x", "--rate x: must be a number; --help"),
        ("--kind nosuch --rate 0.1", "--kind nosuch: must be one of .*symmetric"),
        ("--rate 0.1", "arguments are required: --kind"),
        ("--kind none --rate 0.1", "--rate 0.1: kind none takes no rate; leave it out"),
        ("--kind pair --rate 0.1 --matrix t.csv", "--matrix FILE goes with --kind matrix"),
        ("--kind matrix", "--matrix FILE goes with --kind matrix"),
        ("--kind matrix --matrix t.csv", "t.csv: no such file"),
        ("--kind pair --rate 0.1 --seed -1", "--seed -1: must be 0 or more"),
        ("--kind pair --rate 0.1 --image-size 0", "--image-size 0: must be 1 or more"),
        (
            "--kind asymmetric-superclass --rate 0.1",
            "superclass: made for .*CIFAR-100.*kinds that fit",
        ),
        ("--kind pair --rate 0.1 --data nosuch", "--data nosuch: no such data set"),
    ],
)
def test_command_errors_are_one_line(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["--data", "digits", "--output", "noisy.npz", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.match(f"error: .*{message}", err), err
    assert list(tmp_path.iterdir()) == []


def test_command_overwrites_only_if_told(tmp_path, capsys, digits):
    path = tmp_path / "noisy.npz"
    path.write_text("mine")
    words = ["--data", "digits", "--kind", "pair", "--rate", "1", "--output", str(path)]
    assert main(words) == 2
    assert path.read_text() == "mine"
    assert "exists already" in capsys.readouterr().err
    # Refused before the data set is read, which may take long.
    assert main([*words, "--data", "auto", "--data-root", str(tmp_path / "nosuch")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert np.array_equal(load_labels(path, digits.index), (digits.index.labels + 1) % 10)
