"""A file that cannot be written is a warning: the other methods, the table and the summary follow.

`--resume` writes later what is missing.
"""

import errno
import json
import os
import re
import shlex
from pathlib import Path

import pytest

from alr_fast.train import main
from alr_fast.training.checkpoint import store
from alr_fast.training.output import loggers
from alr_fast.utils import files
from helpers.training_process import outcome, run_folder

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
        monkeypatch.setattr(Path, "symlink_to", wrapped(Path.symlink_to))
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
    (command,) = {*re.findall(r"python\S* -m alr_fast\.train --resume \S+$", shown.err, re.M)}
    monkeypatch.undo()
    assert main(shlex.split(command)[3:]) == 0  # all options are those of the run
    assert outcome(runs) == undisturbed
    assert summary(runs)["incomplete"] == []
    assert set(summary(runs)["methods"]) == {"ce", "alr"}
    capfd.readouterr()
    assert main(shlex.split(command)[3:]) == 0
    assert "has already finished" in capfd.readouterr().out
