import csv
import errno
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from alr_fast.data.broken import BrokenSamples
from alr_fast.errors import UserError, naming_options
from alr_fast.training.config.command_line import parse
from alr_fast.training.config.schema import Config
from alr_fast.training.output.loggers import Logger
from alr_fast.training.output.records import Histogram
from alr_fast.training.output.run_folder import RunFolder, check_runs, read_config
from alr_fast.training.run_paths import LOCK, find_runs, is_finished
from helpers.records import record


class Notes(Logger):
    def __init__(self):
        self.seen, self.closed = [], 0

    def epoch(self, record, histograms):
        self.seen.append((record, histograms))

    def close(self):
        self.closed += 1


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(Config(runs=str(tmp_path / "runs")))


def test_a_new_folder_holds_the_configuration_and_opens_again(folder):
    with (folder.path / "config.yaml").open() as file:
        assert yaml.safe_load(file) == Config(runs=str(folder.path.parent)).as_dict()
    assert sorted(p.name for p in folder.path.iterdir()) == [LOCK, "config.yaml"]
    assert RunFolder.open(folder.path).path == folder.path


def test_a_folder_holds_what_was_asked_for_and_what_followed(tmp_path):
    config = parse(["--runs", str(tmp_path / "runs"), "--optim.epochs", "6"])
    folder = RunFolder.create(config.with_value("data.image_size", 40)).path
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["data"]["image_size"] is written["alr"]["warmup_epochs"] is None
    resolved = {"data": {"image_size": 40}, "alr": {"warmup_epochs": 1}, "noise": {"seed": 0}}
    assert yaml.safe_load((folder / "resolved.yaml").read_text()) == resolved
    assert read_config(folder) == {
        **config.as_dict(),
        "data": {**written["data"], "image_size": 40},
    }
    assert read_config(folder, asked=True) == written
    (folder / "resolved.yaml").unlink()  # as of an earlier version
    assert read_config(folder) == written


def test_a_folder_of_something_else_is_not_opened(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}: not the folder of a run.*--resume auto"):
        RunFolder.open(tmp_path)


def test_a_lock_that_cannot_be_made_is_an_error_of_one_line(folder):
    folder.close()
    (folder.path / LOCK).unlink()
    (folder.path / LOCK).mkdir()
    with pytest.raises(UserError, match=rf"{folder.path / LOCK}: Is a directory; move the folder"):
        RunFolder.open(folder.path)


@pytest.mark.parametrize("runs", ["runs", "runs/of/mine", "."])
def test_a_check_leaves_nothing_behind(tmp_path, runs):
    check_runs(str(tmp_path / runs))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        # Not even root can write here, although os.access returns True.
        ("/proc/runs", r"cannot be written \(.+\); pass another folder"),
        ("file", "is not a folder; pass another folder"),
        ("file/runs", r"cannot be written \(Not a directory\)"),
        ("nowhere", "is not a folder"),
    ],
)
def test_runs_that_cannot_be_written_are_refused(tmp_path, runs, message):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("none")
    path = tmp_path / runs
    with pytest.raises(UserError, match=f"--runs {path}: {message}"), naming_options(runs="runs"):
        check_runs(str(path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "nowhere"]


def test_the_link_to_the_last_run_needs_its_name(tmp_path):
    (tmp_path / "latest").symlink_to("none")
    check_runs(str(tmp_path))
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}/latest: must be free"):
        check_runs(str(tmp_path))


def test_epochs_go_to_every_logger(folder):
    first, second = Notes(), Notes()
    folder.log_to([first, second])
    histograms = {"confidence": Histogram([1], [0, 1])}
    folder.log_epoch(record(1), histograms)
    folder.log_epoch(record(2), {})
    assert first.seen == second.seen == [(record(1), histograms), (record(2), {})]
    folder.close()
    folder.close()
    assert (first.closed, second.closed) == (1, 1)


def test_a_logger_that_cannot_close_does_not_keep_the_others_open(folder):
    class Broken(Notes):
        def close(self):
            raise UserError("full")

    loggers = [Notes(), Broken(), Notes()]
    folder.log_to(loggers)
    with pytest.raises(UserError, match="full"):
        folder.close()
    assert [logger.closed for logger in loggers] == [1, 0, 1]


def test_weights_are_saved_under_the_names_of_the_model(folder):
    model = torch.nn.Linear(3, 2)
    folder.save_weights("ce", model)
    saved = load_file(folder.path / "ce.safetensors")
    assert saved.keys() == {"weight", "bias"}
    assert torch.equal(saved["weight"], model.weight)


def test_list_of_broken_files(folder):
    broken = BrokenSamples.__new__(BrokenSamples)
    broken.reasons = {}
    folder.save_broken(broken)
    assert not (folder.path / "broken.csv").exists()
    broken.reasons = {7: ("b.png", "empty"), 3: ("a.png", "cut off")}
    folder.save_broken(broken)
    with (folder.path / "broken.csv").open(newline="") as file:
        assert list(csv.reader(file))[1:] == [["3", "a.png", "cut off"], ["7", "b.png", "empty"]]


def test_a_run_with_a_summary_is_finished(folder):
    notes = Notes()
    folder.log_to([notes])
    assert not is_finished(folder.path)
    folder.write_summary({"seed": 3})
    assert is_finished(folder.path)
    assert not folder.is_latest
    folder.plot([record(1), record(2, "ce")])
    folder.link()
    folder.close_loggers()
    assert folder.is_latest
    assert json.loads((folder.path / "summary.json").read_text()) == {"seed": 3}
    assert (folder.path / "metrics.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (folder.path.parent / "latest").resolve() == folder.path.resolve()
    assert notes.closed == 1
    assert not [p for p in folder.path.iterdir() if p.name.startswith(".") and p.name != LOCK]


def writes():
    """Returns for each write of a run folder its file, the call to fail, and the write."""
    broken = BrokenSamples.__new__(BrokenSamples)
    broken.reasons = {3: ("a.png", "cut off")}
    model = torch.nn.Linear(3, 2)
    return {
        "weights": ("ce.safetensors", "os.replace", lambda f: f.save_weights("ce", model)),
        "flushed": ("ce.safetensors", "os.fsync", lambda f: f.save_weights("ce", model)),
        "broken": ("broken.csv", "os.replace", lambda f: f.save_broken(broken)),
        "plot": (
            "metrics.png",
            "matplotlib.figure.Figure.savefig",
            lambda f: f.plot([record(1)]),
        ),
        "summary": (
            "summary.json",
            "pathlib.Path.write_bytes",
            lambda f: f.write_summary({}),
        ),
        "latest": ("latest", "os.symlink", lambda f: f.link()),
    }


@pytest.mark.parametrize("name", list(writes()))
def test_the_error_of_a_full_disk_names_the_file(folder, monkeypatch, name):
    file, call, write = writes()[name]
    monkeypatch.setattr(call, no_space)
    with pytest.raises(UserError) as caught:
        write(folder)
    path = folder.path.parent / file if name == "latest" else folder.path / file
    assert str(caught.value) == (f"{path}: No space left on device; free some space and try again")
    assert not path.exists()
    assert not [
        p
        for p in folder.path.iterdir()
        if p.name not in (LOCK, "config.yaml", "metrics.png", "summary.json")
    ]


def test_a_full_disk_at_the_very_start(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(UserError, match=r"config\.yaml: No space left on device"):
        RunFolder.create(Config(runs=str(tmp_path)))
    assert find_runs(tmp_path) == []
    # The folder of the runs exists, but the disk is full for the folder of the run.
    monkeypatch.setattr(
        "pathlib.Path.mkdir", lambda path, exist_ok=False, **_: exist_ok or no_space()
    )
    with pytest.raises(UserError, match=r"--runs .*: No space left on device; pass another folder"):
        RunFolder.create(Config(runs=str(tmp_path)))


def test_weights_that_exceed_the_space_on_the_disk(folder):
    folder.close()
    # A limit on the size of files simulates a full disk: the kernel itself fails the write.
    code = """
import resource, sys, torch
from pathlib import Path
from alr_fast.utils.command import exit_status
from alr_fast.training.output.run_folder import RunFolder
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
folder = RunFolder.open(Path(sys.argv[1]))
sys.exit(exit_status(lambda: folder.save_weights("ce", torch.nn.Linear(100, 100))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True
    )
    assert done.returncode == 2
    path = folder.path / "ce.safetensors"
    assert done.stderr.startswith(f"error: {path}: File too large; ")
    assert done.stderr.count("\n") == 1
    assert sorted(p.name for p in folder.path.iterdir()) == [LOCK, "config.yaml"]


def test_runs_are_found_newest_first(tmp_path):
    runs = tmp_path / "runs"
    assert find_runs(runs) == []
    names = [
        "20260201-000000-cifar10-small",
        "20260131-235959-digits-10",
        "20260131-235959-digits-9",
        "20260131-235959-digits-2",
        "20260131-235959-digits",
        "20251231-235959-webvision-mini-3",
        "my-best",
    ]
    for name in sorted(names):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.yaml").touch()
    (runs / "20270101-000000-digits").mkdir()  # not a run: empty
    (runs / "20270101-000001-note").touch()
    (runs / "latest").symlink_to(names[2])
    assert [p.name for p in find_runs(runs)] == names


def test_two_processes_never_train_in_one_folder(tmp_path):
    folder = RunFolder.create(Config(runs=str(tmp_path)))
    code = (
        "import pathlib, sys\n"
        "from alr_fast.errors import UserError\n"
        "from alr_fast.training.output.run_folder import RunFolder\n"
        "try:\n"
        "    RunFolder.open(pathlib.Path(sys.argv[1]))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(folder.path)]

    def output():
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert f"{folder.path}: another process is still training there" in output()
    folder.close()
    assert output() == ""


def test_a_folder_of_runs_that_cannot_be_listed(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", denied)  # root may read everywhere
    with pytest.raises(UserError, match=f"{tmp_path}: Permission denied; make it readable"):
        find_runs(tmp_path)
