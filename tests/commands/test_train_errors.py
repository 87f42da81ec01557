"""Errors of the training command: one line, and nothing is written."""

import importlib.util
import re
import sys
from types import SimpleNamespace

import pytest

from alr_fast.train import TRAIN_EXTRA, main


def test_a_diverged_training_ends_with_one_line(train_folder, capsys):
    status, runs = train_folder("--optim.lr", "1e30")
    assert status == 2
    text = capsys.readouterr().err
    assert "training loss of epoch" in text
    assert "--optim.lr" in text
    *warnings, error = text.splitlines()
    assert all(line.startswith("warning: alr: 2 epochs cannot change a label") for line in warnings)
    assert error.startswith("error: ")
    assert not (runs / "latest").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--recipe", "nosuch"], "nosuch"),
        (["--data-root", "/no/such/folder"], "/no/such/folder: no such file or folder"),
        (["--data.crop", "resized"], "--data.crop resized: images that come as arrays"),
        (["--data.loader", "dali"], "--data.loader dali: the images of this data set are arrays"),
        (["--data.randaugment_ops", "2"], "--data.randaugment_ops 2: images that come as arrays"),
        (["--data.epoch_samples", "5"], "--data.epoch_samples 5: below the number of classes, 10"),
        (["--model.name", "nosuch"], "--model.name nosuch"),
        (["--model.sync_batchnorm", "true"], "--model.sync_batchnorm true: PyTorch"),
        (["--bank.placement", "pinned", "--device", "cpu"], "pinned"),
        (["--bank.placement", "file", "--bank.folder", "/no/such"], "--bank.folder /no/such: no"),
        (["--log.to", "csv,paper"], "--log.to paper: no such logger"),
        (["--resume", "/no/such/run"], "--resume /no/such/run: no such folder"),
        (
            ["--optim.accumulate", "2", "--model.compile", "reduce-overhead"],
            "--optim.accumulate 2: does not go with --model.compile reduce-overhead",
        ),
        (["--optim.clip_norm", "0"], "--optim.clip_norm 0.0: must be above 0"),
        (["--model.ema_decay", "1"], "--model.ema_decay 1.0: must be at least 0 and below 1"),
        (["--checkpoint.keep", "0"], "--checkpoint.keep 0: must be 1 or more"),
        (["--device", "nosuch"], "--device nosuch: not usable"),
        (["--data.limit", "5"], "--data.limit 5: below the number of classes, 10"),
        (["--noise.rate", "2"], "--noise.rate 2.0"),
        (["--no.such", "2"], "--no.such: no such option"),
    ],
)
def test_wrong_input_writes_nothing(tmp_path, capsys, argv, message):
    assert main([*argv, "--runs", str(tmp_path / "runs")]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert message in text
    assert text.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["train", "test"])
def test_too_many_broken_images_are_found_before_anything_is_written(
    train_folder, root, capsys, split
):
    path = root / split / "b" / "003.png"
    path.write_bytes(path.read_bytes()[:-40])
    status, runs = train_folder()
    assert status == 2
    text = capsys.readouterr().err
    assert text.startswith("error: --data.max_broken 0.001: 1 of ")
    assert f"{path} cannot be read as an image (the PNG is cut off)" in text
    assert " data verify " in text
    assert text.count("\n") == 1
    assert not runs.exists()


def test_too_little_space_for_the_bank_is_found_before_training(train_folder, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    status, runs = train_folder("--bank.placement", "file", "--methods", "ce,alr")
    assert status == 2
    assert "has room for" in capsys.readouterr().err
    assert not runs.exists()


def test_a_folder_of_runs_that_cannot_be_made(capsys):
    assert main(["--runs", "/proc/runs"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: --runs /proc/runs: ")
    assert text.count("\n") == 1


@pytest.mark.parametrize("where", ["file", "latest"])
def test_unusable_folder_of_runs(tmp_path, capsys, where):
    runs = tmp_path / "runs"
    if where == "file":
        runs.write_text("")
    else:
        (runs / "latest").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert main(["--runs", str(runs)]) == 2
    assert str(runs) in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_extra_is_one_line(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "rich" else real(n))
    assert "rich" in TRAIN_EXTRA
    assert main([]) == 2
    start, command = capsys.readouterr().err.split(" -m pip install ")
    assert start == f"error: training needs rich, not installed: {sys.executable}"
    assert re.fullmatch(r"'rich>=[0-9.]+'\n", command)
