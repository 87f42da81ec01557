"""The folder of a run is removed or replaced while it trains."""

import contextlib
import itertools
import os
import shutil

import pytest

from alr_fast import train
from alr_fast.training.output.display import TrainingDisplay
from alr_fast.utils.files import KnownFolder

OPTIONS = ["--data.limit", "100", "--data.test_limit", "20", "--optim.epochs", "4", "--methods"]
OPTIONS += ["alr", "--alr.warmup_epochs", "0", "--log.show", "lines", "--optim.batch_size", "50"]
OPTIONS += ["--checkpoint.steps", "1", "--noise.seed", "0", "--alr.momentum", "0.3"]


def removed(run):
    shutil.rmtree(run)


def replaced(run):
    shutil.rmtree(run)
    run.mkdir()


def moved(run):
    run.rename(run.with_name("moved"))


def a_file(run):
    shutil.rmtree(run)
    run.write_text("mine")


def a_link(run):
    run.rename(run.with_name("moved"))
    run.with_name("other").mkdir()
    run.symlink_to("other")


def without_checkpoints(run):
    shutil.rmtree(run / "checkpoints")


def all_runs(run):
    shutil.rmtree(run.parent)


def trained(tmp_path, monkeypatch, change, *options):
    """Trains four epochs; the folder changes after the second. Returns the exit status."""
    epoch = TrainingDisplay.epoch

    def show(self, record):
        epoch(self, record)
        if record.epoch == 2:
            (run,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "latest")
            while run.exists():  # a checkpoint may be being written
                with contextlib.suppress(OSError):
                    change(run)
                    break

    monkeypatch.setattr(TrainingDisplay, "epoch", show)
    return train.main([*OPTIONS, "--runs", str(tmp_path / "runs"), *options])


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [["--checkpoint.steps", "1"], ["--log.to", ""]])
@pytest.mark.parametrize("change", [removed, replaced, moved, a_file, a_link, all_runs])
def test_the_run_stops_with_one_line(tmp_path, monkeypatch, capsys, change, options):
    assert trained(tmp_path, monkeypatch, change, *options) == 2
    output = capsys.readouterr()
    *warnings, error = output.err.splitlines()
    (name,) = {line.split("/")[-1] for line in [error.split(": ")[1]]}
    path = tmp_path / "runs" / name
    assert error == (
        f"error: {path}: the folder of this run was removed, moved or replaced while it trained, "
        "so the run has stopped; put it back to resume it with --resume auto"
    )
    # Of a checkpoint that was being written.
    assert all(line.startswith("warning: checkpoint ") for line in warnings)
    assert len(warnings) <= 1
    assert "Traceback" not in output.err
    assert "Not finished: epochs alr 2 of 4" in output.out  # the results so far
    if change is replaced:
        assert list(path.iterdir()) == []
    if change is a_file:
        assert path.read_text() == "mine"
    if change is a_link:
        assert list((tmp_path / "runs/other").iterdir()) == []
    if change in (moved, a_link):
        path.unlink(missing_ok=True)
        (tmp_path / "runs/moved").rename(path)
        monkeypatch.undo()
        argv = [*OPTIONS, "--runs", str(tmp_path / "runs"), *options]
        assert train.main([*argv, "--resume", "auto"]) == 0


def test_another_run_in_its_place_stays_as_it_is(tmp_path, monkeypatch):
    other = tmp_path / "other"
    assert train.main([*OPTIONS, "--runs", str(tmp_path / "others")]) == 0
    (tmp_path / "others/latest").resolve().rename(other)
    before = tree(other)

    def change(run):
        run.rename(tmp_path / "moved")
        other.rename(run)

    assert trained(tmp_path, monkeypatch, change) == 2
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "latest")
    run.rename(other)
    assert tree(other) == before


def test_checkpoints_that_were_removed_are_written_again(tmp_path, monkeypatch, capsys):
    assert trained(tmp_path, monkeypatch, without_checkpoints) == 0
    assert len(list((tmp_path / "runs/latest/checkpoints").iterdir())) > 0


def test_checkpoints_that_became_a_link_are_not_followed(tmp_path, monkeypatch, capsys):
    def change(run):
        (run / "checkpoints").rename(tmp_path / "moved")
        (run / "checkpoints").symlink_to(tmp_path / "moved")

    assert trained(tmp_path, monkeypatch, change) == 0
    error = capsys.readouterr().err
    assert "checkpoints: is a symbolic link" in error
    assert max(int(path.name) for path in (tmp_path / "moved").iterdir() if path.name[0] != ".") < 6


def test_a_file_system_that_numbers_folders_anew_each_time(tmp_path, monkeypatch):
    numbers = itertools.count()
    monkeypatch.setattr(os.path, "samestat", lambda *stats: next(numbers) < 0)
    folder = KnownFolder(tmp_path)
    assert folder.in_place()
    folder.close()
    folder.close()
