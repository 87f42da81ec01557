"""A file that cannot be written is a warning: the other methods, the table and the summary follow.

`--resume` writes later what is missing.
"""

import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from alr_fast.train import main
from alr_fast.training.checkpoint import store
from alr_fast.training.models import MODELS
from alr_fast.training.output import loggers
from alr_fast.utils import files
from helpers.image_folder import write_folder
from helpers.training_process import options_of, outcome, run_folder

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = ["--data.limit", "100", "--data.test_limit", "20", "--optim.batch_size", "25"]
OPTIONS += ["--optim.epochs", "2", "--log.to", "csv,tensorboard", "--log.show", "lines"]
OPTIONS += ["--methods", "ce,alr", "--model.name", "conv-mini", "--data.workers", "1"]
TABLE = r"method.*test acc"


def train(runs, *words):
    return main([*OPTIONS, "--runs", str(runs), *map(str, words)])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Results of the run without faults."""
    runs = tmp_path_factory.mktemp("undisturbed") / "runs"
    assert train(runs) == 0
    return outcome(runs)


def no_space(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.fixture
def full(monkeypatch):
    """The disk is full for files of these names, from their ``at``-th writing on."""

    def fail(name, *, at=1):
        seen = []

        def wrapped(genuine):
            def call(path, *arguments):
                if re.fullmatch(name, Path(path).name):
                    seen.append(path)
                    if len(seen) >= at:
                        no_space(path)
                return genuine(path, *arguments)

            return call

        monkeypatch.setattr(files, "temporary", wrapped(files.temporary))
        monkeypatch.setattr(loggers, "open_appending", wrapped(loggers.open_appending))
        link = wrapped(lambda path, target, genuine=os.symlink: genuine(target, path))
        monkeypatch.setattr(os, "symlink", lambda target, path: link(path, target))
        genuine = store.write_manifest

        def write_manifest(checkpoint):
            if re.fullmatch(name, "manifest.json"):
                no_space(checkpoint.path / "manifest.json")
            genuine(checkpoint)

        monkeypatch.setattr(store, "write_manifest", write_manifest)

    return fail


def summary(runs):
    return json.loads((run_folder(runs) / "summary.json").read_text())


# Writer -> from which writing on it fails, and whether results are missing then.
WRITERS = {
    "ce.safetensors": (1, True),
    "alr.safetensors": (1, True),
    "alr_bank.safetensors": (1, True),
    "summary.json": (1, True),
    "metrics.csv": (3, False),  # the first two are its header and the first epoch
    "events.*": (4, False),
    "metrics.png": (1, False),
    r"\.latest.*": (1, False),
    "manifest.json": (1, False),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_is_full_for_one_file(tmp_path, monkeypatch, capfd, full, undisturbed, name):
    runs, (at, missing) = tmp_path / "runs", WRITERS[name]
    with monkeypatch.context():
        full(name, at=at)
        status = train(runs, "--checkpoint.steps", "3")
    shown = capfd.readouterr()
    assert re.search(TABLE, shown.out)
    assert "No space left on device" in shown.err
    assert "Traceback" not in shown.err
    assert status == (2 if missing else 0)
    found = outcome(runs)
    lost = {n for n in undisturbed if found.get(n) != undisturbed[n]}
    assert lost == ({name} & {*undisturbed} if name != "metrics.csv" else {"metrics"})
    if not missing:
        assert summary(runs)["incomplete"] == []
        return
    (command,) = {*re.findall(r"--resume \S+$", shown.err, re.M)}
    if name == "summary.json":  # still full: no method is left to train
        assert main(options_of(command)) == 2
        assert "Traceback" not in capfd.readouterr().err
    monkeypatch.undo()
    assert main(options_of(command)) == 0  # all others are those of the run
    assert outcome(runs) == undisturbed
    assert summary(runs)["incomplete"] == []
    assert set(summary(runs)["methods"]) == {"ce", "alr"}
    capfd.readouterr()
    assert main(options_of(command)) == 0
    assert "has already finished" in capfd.readouterr().out


class Tied(nn.Module):
    """Two layers with one weight, as of a language model, and a head of its own."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.head = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.head(self.second(self.first(images.flatten(1)).relu()).relu())


class Extra(nn.Module):
    """A head with state that is neither a parameter nor a buffer."""

    state = None

    class Head(nn.Linear):
        def get_extra_state(self):
            return Extra.state

        def set_extra_state(self, state):
            pass

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.head = self.Head(64, num_classes)

    def forward(self, images):
        return self.head(images.flatten(1))


def test_tied_weights_are_saved_under_each_name(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tied", Tied)
    runs = tmp_path / "runs"
    assert train(runs, "--model.name", "tied", "--checkpoint.steps", "3") == 0
    saved = load_file(run_folder(runs) / "ce.safetensors")
    assert torch.equal(saved["first.weight"], saved["second.weight"])
    model = Tied(10, 1)
    model.load_state_dict(saved)
    assert model.second.weight is model.first.weight
    expected = outcome(runs)
    (run_folder(runs) / "summary.json").unlink()
    assert main(["--resume", str(run_folder(runs))]) == 0
    assert outcome(runs) == expected


@pytest.mark.parametrize("state", [{"seen": 3}, torch.ones(1)])
def test_extra_state_is_refused_before_training(tmp_path, monkeypatch, capfd, state):
    """A tensor, too: a checkpoint could not give it back."""
    monkeypatch.setitem(MODELS, "extra", Extra)
    monkeypatch.setattr(Extra, "state", state)
    assert train(tmp_path / "runs", "--model.name", "extra") == 2
    error = capfd.readouterr().err
    assert error.startswith(
        "error: --model.name: its module head has extra state (get_extra_state)"
    )
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_is_full_for_a_while(tmp_path, monkeypatch, undisturbed):
    """What was not logged is written with the next epoch, or at the end."""
    runs, genuine, seen = tmp_path / "runs", loggers.open_appending, []

    def sometimes(path):
        seen.append(path)
        if path.name == "metrics.csv" and sum(p == path for p in seen) in (2, 3):
            no_space(path)
        return genuine(path)

    monkeypatch.setattr(loggers, "open_appending", sometimes)
    assert train(runs) == 0
    assert outcome(runs) == undisturbed


def test_events_after_a_full_disk_are_readable(tmp_path, full, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from alr_fast.training.output.loggers import TensorBoardLogger
    from helpers.records import record

    logger = TensorBoardLogger(tmp_path, [])
    logger.epoch(record(1), {})
    genuine = loggers.open_appending

    def part(path):
        file = genuine(path)
        file.write(b"a part of an event")
        file.close()
        no_space(path)

    with monkeypatch.context() as patch:
        patch.setattr(loggers, "open_appending", part)
        with pytest.raises(ValueError, match="No space left"):
            logger.epoch(record(2), {})
    logger.epoch(record(3), {})
    events = EventAccumulator(str(tmp_path / "tensorboard" / record(1).method))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [1, 3]


@pytest.mark.parametrize("name", ["config.yaml", "resolved.yaml", "samples-.*", "metrics.csv"])
def test_a_disk_that_is_full_at_the_start(tmp_path, full, capfd, name):
    """The folder is closed and its lock is released: the next run can open it."""
    runs = tmp_path / "runs"
    full(name)
    assert train(runs) == 2
    (folder,) = runs.iterdir()
    error = capfd.readouterr().err.splitlines()[-1]
    assert re.match(rf"error: {folder}/{name}\S*: No space left on device; free some", error)
    locks = [p for p in Path("/proc/self/fd").iterdir() if os.path.exists(p)
             and os.readlink(p) == str(folder / ".lock")]  # fmt: skip
    assert locks == []


def test_a_disk_that_is_full_for_all_that_is_not_a_result(tmp_path, full, capfd):
    root = write_folder(tmp_path / "set", train={"a": 12, "b": 12}, test={"a": 4, "b": 4})
    (root / "train/a/002.png").write_bytes(b"")
    full(r".*_transition\.csv|trace\.json\.gz|broken\.csv|metrics\.png")
    words = ["--data-root", str(root), "--data.max_broken", "0.2", "--noise.kind", "symmetric"]
    words += ["--noise.rate", "0.2", "--methods", "forward_correction", "--optim.epochs", "3"]
    words += ["--optim.batch_size", "4", "--log.profile", "true", "--runs", str(tmp_path / "runs")]
    assert main([*words, "--data.workers", "1"]) == 0
    shown = capfd.readouterr()
    assert shown.err.count("No space left on device") == 4
    assert re.search(TABLE, shown.out)
    assert summary(tmp_path / "runs")["incomplete"] == []


def test_a_finished_run_whose_weights_are_lost(tmp_path, full, monkeypatch, capfd):
    runs = tmp_path / "runs"
    with monkeypatch.context():
        full(r"ce\.safetensors|manifest\.json")
        assert train(runs) == 2
    monkeypatch.undo()
    capfd.readouterr()
    run = run_folder(runs)
    assert main(["--resume", str(run), "--log.show", "quiet"]) == 2  # not that all is well
    message = capfd.readouterr().err
    assert "weights or label bank of ce are lost; train again with: " in message
    assert options_of(message) == [
        *("--config", str(run / "config.yaml"), "--resume", "none", "--methods", "ce")
    ]
