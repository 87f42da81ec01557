import csv
import importlib.util
import os
import resource
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from alr_fast.errors import UserError, naming_options
from alr_fast.training.config.schema import Config, LogConfig
from alr_fast.training.output.loggers import (
    CsvLogger,
    TensorBoardLogger,
    WandbLogger,
    check_loggers,
    make_loggers,
)
from alr_fast.training.output.records import EpochRecord, Histogram
from helpers.records import record


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(folder, method):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard" / method))
    found.Reload()
    return found


def steps(folder, method, name="test_accuracy"):
    return [(event.step, event.value) for event in events(folder, method).Scalars(name)]


def test_csv_has_a_column_for_each_field(tmp_path):
    logger = CsvLogger(tmp_path, [])
    logger.epoch(record(1, "ce", skipped_steps=2), {"confidence": Histogram([1], [0, 1])})
    logger.epoch(record(2, "ce"), {})  # both are written before the logger is closed
    first, second = rows(tmp_path)
    assert list(first) == [field.name for field in fields(EpochRecord)]
    assert (first["method"], first["epoch"], first["skipped_steps"]) == ("ce", "1", "2")
    assert (first["second_test_accuracy"], float(first["samples_per_second"])) == ("", 1234.4)
    assert second["epoch"] == "2"


def test_csv_of_a_resumed_run_starts_with_its_completed_epochs(tmp_path):
    logger = CsvLogger(tmp_path, [])
    for epoch in (1, 2, 3):
        logger.epoch(record(epoch), {})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("alr,4,0.")  # the disk became full here
    resumed = CsvLogger(tmp_path, [record(1), record(2)])
    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2"]
    resumed.epoch(record(3, test_accuracy=0.5), {})
    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2", "3"]
    assert rows(tmp_path)[2]["test_accuracy"] == "0.5"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_csv_on_a_full_disk(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files: the kernel itself fails the write.
    message = rf"{path}: File too large; raise the limit on the size of files \(ulimit -f\) and"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(UserError, match=message):
            CsvLogger(tmp_path, [record(1)])
        assert path.read_text() == "old"
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        logger = CsvLogger(tmp_path, [])
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
        with pytest.raises(UserError, match=message):
            logger.epoch(record(1), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    logger.close()
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_tensorboard_events_are_read_back(tmp_path):
    logger = TensorBoardLogger(tmp_path, [])
    histogram = Histogram([0, 3, 0, 1, 0], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    logger.epoch(
        record(1, "ce", test_accuracy=0.5),
        {"confidence": histogram, "none": Histogram([0], [0.0, 1.0])},
    )
    logger.epoch(record(1, "alr", test_accuracy=0.75), {})
    # Without closing: the events of a killed run are on the disk.
    assert steps(tmp_path, "ce") == [(1, 0.5)]
    assert steps(tmp_path, "alr") == [(1, 0.75)]
    found = events(tmp_path, "ce")
    unknown = {f.name for f in fields(EpochRecord) if getattr(record(1), f.name) is None}
    left_out = {"method", "epoch", *unknown}
    assert "second_test_accuracy" in unknown
    assert set(found.Tags()["scalars"]) == {f.name for f in fields(EpochRecord)} - left_out
    assert found.Tags()["histograms"] == ["confidence"]
    (event,) = found.Histograms("confidence")
    value = event.histogram_value
    assert event.step == 1
    assert (value.min, value.max, value.num) == (0.2, 0.8, 4)
    assert value.sum == pytest.approx(3 * 0.3 + 0.7)
    assert value.sum_squares == pytest.approx(3 * 0.09 + 0.49)
    assert value.bucket == [0, 3, 0, 1, 0]
    assert value.bucket_limit == [0.2, 0.4, 0.6, 0.8, 1.0]
    logger.close()


def test_tensorboard_discards_the_epochs_after_the_resumed_one(tmp_path):
    stopped = TensorBoardLogger(tmp_path, [])
    for method in ("ce", "alr", "later"):
        for epoch in (1, 2, 3):
            stopped.epoch(record(epoch, method, test_accuracy=0.25), {})
    stopped.close()
    completed = [record(e, "ce") for e in (1, 2, 3)] + [record(1, "alr")]
    resumed = TensorBoardLogger(tmp_path, completed)
    assert [step for step, _ in steps(tmp_path, "ce")] == [1, 2, 3]
    assert [step for step, _ in steps(tmp_path, "alr")] == [1]
    assert steps(tmp_path, "later") == []  # although none of its epochs has been logged since
    resumed.epoch(record(2, "alr", test_accuracy=0.75), {})
    resumed.close()
    assert steps(tmp_path, "alr") == [(1, 0.25), (2, 0.75)]


def test_tensorboard_on_a_full_disk(tmp_path):
    # A limit on the size of files simulates a full disk: the kernel itself fails the write.
    code = """
import resource, sys
from pathlib import Path
from helpers.records import record
from alr_fast.utils.command import exit_status
from alr_fast.training.output.loggers import TensorBoardLogger

def action():
    logger = TensorBoardLogger(Path(sys.argv[1]), [])
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
    for epoch in range(1, 100):
        logger.epoch(record(epoch), {})

sys.exit(exit_status(action))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: {tmp_path}/tensorboard/alr/events.out.tfevents.")
    assert ": File too large; " in done.stderr


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (["csv", "tensorboard"], [CsvLogger, TensorBoardLogger]),
        (["tensorboard"], [TensorBoardLogger]),
        (["csv", "csv"], [CsvLogger]),
        ([], []),
    ],
)
def test_the_chosen_loggers_are_made(tmp_path, names, kinds):
    config = Config(log=LogConfig(to=names))
    loggers = make_loggers(config, tmp_path, [record(1), record(2)])
    assert [type(logger) for logger in loggers] == kinds
    for logger in loggers:
        logger.epoch(record(3), {})
        logger.close()
    if CsvLogger in kinds:
        assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2", "3"]
    if TensorBoardLogger in kinds:
        assert [step for step, _ in steps(tmp_path, "alr")] == [3]
    assert (tmp_path / "metrics.csv").exists() == (CsvLogger in kinds)


def test_unknown_logger():
    check_loggers(["csv", "tensorboard"])
    with pytest.raises(UserError) as caught, naming_options(logger="log.to"):
        check_loggers(["csv", "foo"])
    assert str(caught.value) == (
        "--log.to foo: no such logger; choose from csv, tensorboard, wandb"
    )


@pytest.mark.parametrize("here", ["nothing", "folder"])
def test_missing_wandb(tmp_path, monkeypatch, here):
    # A folder "wandb" in the working folder, which W&B itself creates, is no package.
    folder = importlib.machinery.ModuleSpec("wandb", None, is_package=True)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if here == "nothing" else folder
    )
    with pytest.raises(UserError) as caught, naming_options(logger="log.to"):
        check_loggers(["wandb"])
    message = str(caught.value)
    assert message.startswith("--log.to wandb: needs wandb, not installed: ")
    assert "pip install 'wandb>=" in message and message.endswith(", or leave it out")
    check_loggers(["csv"])


def test_the_package_of_a_logger_is_imported_only_if_it_is_used():
    code = (
        "import sys, alr_fast.training.output.loggers, alr_fast.training.output.run_folder;"
        "print([n for n in ('wandb', 'tensorboard') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class FakeRun:
    """Replaces wandb.Run and records its calls."""

    def __init__(self):
        self.metrics, self.logged, self.finished = [], [], 0

    def define_metric(self, name, **options):
        self.metrics.append((name, options))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


@pytest.fixture
def fake_wandb(monkeypatch):
    class Fake:
        class errors:
            class Error(Exception):
                pass

        class Histogram:
            def __init__(self, np_histogram):
                self.np_histogram = np_histogram

        Settings = dict

        def __init__(self):
            self.options, self.run, self.refuse = [], FakeRun(), None

        def init(self, **options):
            if self.refuse:
                raise self.errors.Error(self.refuse)
            self.options.append(options)
            return self.run

    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def wandb_config(show="auto"):
    return Config(
        methods=["ce", "alr"], log=LogConfig(to=["wandb"], wandb_project="mine", show=show)
    )


def test_wandb_has_one_run_for_all_methods(tmp_path, fake_wandb):
    folder = tmp_path / "20260131-235959-digits"
    folder.mkdir()
    (logger,) = make_loggers(wandb_config(), folder, [])
    logger.epoch(record(1, "ce"), {})
    logger.epoch(record(1, "alr"), {"confidence": Histogram([4], [0.0, 1.0])})
    logger.close()
    (options,) = fake_wandb.options
    assert (options["project"], options["name"]) == ("mine", folder.name)
    assert (options["resume"], options["dir"]) == ("allow", str(folder))
    assert options["config"] == wandb_config().as_dict()
    assert not options["settings"]["silent"]
    run = fake_wandb.run
    assert [name for name, _ in run.metrics] == ["epoch", "ce/*", "alr/*"]
    assert all(options == {"step_metric": "epoch"} for _, options in run.metrics[1:])
    first, second = run.logged
    assert (first["epoch"], first["ce/test_accuracy"]) == (1, 0.989)
    assert "ce/second_test_accuracy" not in first
    assert second["alr/confidence"].np_histogram == ([4], [0.0, 1.0])
    assert not [key for key in second if key.startswith("ce/")]
    assert run.finished == 1


def test_wandb_resumes_under_the_same_id(tmp_path, fake_wandb):
    folders = [tmp_path / "a" / "20260131-235959-digits", tmp_path / "b" / "20260131-235959-digits"]
    for folder in folders:
        folder.mkdir(parents=True)
        WandbLogger(folder, wandb_config("json"))
    WandbLogger(folders[0], wandb_config())
    first, other, again = [options["id"] for options in fake_wandb.options]
    assert first == again
    assert first.startswith("20260131-235959-digits-")
    assert first != other  # two machines that start in the same second
    assert [bool(o["settings"]["silent"]) for o in fake_wandb.options] == [True, True, False]


def test_wandb_that_rejects_a_run_is_an_error_of_one_line(tmp_path, fake_wandb):
    fake_wandb.refuse = "No API key\n configured."
    with pytest.raises(UserError) as caught:
        make_loggers(wandb_config(), tmp_path, [])
    assert str(caught.value) == (
        "--log.to wandb: No API key configured.; run wandb login, set WANDB_MODE=offline, or "
        "leave it out"
    )


def test_the_real_wandb_offline(tmp_path):
    pytest.importorskip("wandb")
    # In a separate process: W&B starts a service that must not outlive the test.
    code = """
import sys
from pathlib import Path
from helpers.records import record
from alr_fast.training.config.schema import Config, LogConfig
from alr_fast.training.output.loggers import Histogram, check_loggers, make_loggers

check_loggers(["wandb"])
config = Config(methods=["ce", "alr"], log=LogConfig(to=["wandb"], show="quiet"))
for epoch in (1, 2):  # the second time as a resumed run
    (logger,) = make_loggers(config, Path(sys.argv[1]), [])
    logger.epoch(record(epoch), {"confidence": Histogram([1, 2], [0.0, 0.5, 1.0])})
    logger.close()
"""
    folder = tmp_path / "20260131-235959-digits"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    name = (folder / "wandb.id").read_text().strip()
    files = list(folder.glob(f"wandb/offline-run-*/run-{name}.wandb"))
    assert files
    content = b"".join(path.read_bytes() for path in files)
    assert b"test_accuracy" in content
    assert b"histogram" in content
