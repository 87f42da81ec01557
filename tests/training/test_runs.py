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
from alr_fast.errors import UserError
from alr_fast.training.config.schema import Config
from alr_fast.training.output.loggers import Logger
from alr_fast.training.output.records import Histogram, method_summary
from alr_fast.training.output.run_folder import LOCK, RunFolder, check_runs, find_runs, is_finished
from alr_fast.utils.files import replacing, writing
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


def test_a_folder_of_something_else_is_not_opened(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}: not the folder of a run.*--resume auto"):
        RunFolder.open(tmp_path)


def test_a_lock_that_cannot_be_made_is_one_line(folder):
    folder.close()
    (folder.path / LOCK).unlink()
    (folder.path / LOCK).mkdir()
    with pytest.raises(UserError, match=rf"{folder.path / LOCK}: Is a directory; .*--resume auto"):
        RunFolder.open(folder.path)


@pytest.mark.parametrize("runs", ["runs", "runs/of/mine", "."])
def test_a_check_leaves_nothing_behind(tmp_path, runs):
    check_runs(str(tmp_path / runs))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        # Where not even root may write, though os.access says so.
        ("/proc/runs", r"cannot be written \(.+\); pass another folder"),
        ("file", "is not a folder; pass another one"),
        ("file/runs", r"cannot be written \(Not a directory\)"),
        ("nowhere", "is not a folder"),
    ],
)
def test_runs_that_cannot_be_written_are_refused(tmp_path, runs, message):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("none")
    path = tmp_path / runs
    with pytest.raises(UserError, match=f"--runs {path}: {message}"):
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
    folder.log_epoch(record(2))
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


def test_a_finished_run_is_known_by_its_summary(folder):
    notes = Notes()
    folder.log_to([notes])
    assert not is_finished(folder.path)
    folder.finish({"seed": 3}, [record(1), record(2, "ce")])
    assert is_finished(folder.path)
    assert json.loads((folder.path / "summary.json").read_text()) == {"seed": 3}
    assert (folder.path / "metrics.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (folder.path.parent / "latest").resolve() == folder.path.resolve()
    assert notes.closed == 1
    assert not [p for p in folder.path.iterdir() if p.name.startswith(".") and p.name != LOCK]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as fresh:
        fresh.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]
    with replacing(path) as fresh:
        fresh.write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "new")]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EDQUOT, "Disk quota exceeded; free some space"),
        (errno.EROFS, "Read-only file system; make it writable"),
    ],
)
def test_what_cannot_be_written_is_told_in_one_line(tmp_path, number, remedy):
    with pytest.raises(UserError) as caught, writing(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == (
        f"{tmp_path / 'x'}: {remedy} and try again (a run that was stopped goes on with --resume "
        "auto)"
    )


def writes():
    """Each write of a run folder, the file that it makes, and the call below that would fail."""
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
            lambda f: f.finish({}, [record(1)]),
        ),
        "summary": ("summary.json", "pathlib.Path.write_text", lambda f: f.finish({}, [record(1)])),
        "latest": ("latest", "pathlib.Path.symlink_to", lambda f: f.finish({}, [record(1)])),
    }


@pytest.mark.parametrize("name", list(writes()))
def test_a_full_disk_is_told_with_the_name_of_the_file(folder, monkeypatch, name):
    file, call, write = writes()[name]
    monkeypatch.setattr(call, no_space)
    with pytest.raises(UserError) as caught:
        write(folder)
    path = folder.path.parent / file if name == "latest" else folder.path / file
    assert str(caught.value) == (
        f"{path}: No space left on device; free some space and try again (a run that was stopped "
        "goes on with --resume auto)"
    )
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
    # The folder of the runs is there, the one of the run has no room.
    monkeypatch.setattr(
        "pathlib.Path.mkdir", lambda path, exist_ok=False, **_: exist_ok or no_space()
    )
    with pytest.raises(UserError, match=r"--runs .*: No space left on device; pass another folder"):
        RunFolder.create(Config(runs=str(tmp_path)))


def test_weights_that_the_disk_really_has_no_room_for(folder):
    folder.close()
    # A limit on the size of files stands for the full disk: the system itself refuses the write.
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
    (runs / "20270101-000000-digits").mkdir()  # not a run: nothing in it
    (runs / "20270101-000001-note").touch()
    (runs / "latest").symlink_to(names[2])
    assert [p.name for p in find_runs(runs)] == names


def test_summary_adds_up_the_epochs():
    history = [
        record(e, test_accuracy=acc, skipped_steps=e, samples_per_second=100.0 * e, seconds=2.0)
        for e, acc in enumerate([0.5, 0.9, 0.9, 0.7], start=1)
    ]
    result = method_summary(history, 0.6)
    assert (result["test_accuracy_last"], result["test_accuracy_best"]) == (0.7, 0.9)
    assert (result["best_epoch"], result["label_accuracy_before"]) == (2, 0.6)
    assert (result["skipped_steps"], result["seconds"]) == (10, 8.0)
    assert result["samples_per_second"] == pytest.approx(250.0)


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

    def said():
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert f"{folder.path}: another process is still training there" in said()
    folder.close()
    assert said() == ""
