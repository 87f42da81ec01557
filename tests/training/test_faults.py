"""What may happen to a training: kills, signals, lost processes, a full disk, NaN, other data.

Each training is a process of its own; what it leaves is compared with that of one that nothing
happened to, bit by bit.
"""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from alr_fast.training.checkpoint.manifest import list_checkpoints, newest_checkpoint
from alr_fast.training.checkpoint.store import load
from alr_fast.training.config.command_line import parse
from alr_fast.training.distributed import process_group
from alr_fast.training.loaders import make_loaders, make_transform
from alr_fast.training.methods import METHODS
from alr_fast.training.models import build_model
from alr_fast.training.run_data import load_data, with_labels
from alr_fast.training.trainer import Trainer
from helpers import training_process
from helpers.image_folder import write_folder
from helpers.training_process import metrics, outcome, run_folder

pytestmark = pytest.mark.faults

STEPS = 7  # an epoch has: 200 samples in batches of 32
DIGITS = ["--data.limit", "200", "--data.test_limit", "50", "--optim.batch_size", "32"]
SMALL = ["--model.name", "dropout", "--log.to", "csv", "--log-every", "1", "--log.show", "lines"]
SMALL += ["--optim.lr", "0.05", "--alr.warmup_epochs", "1"]
OPTIONS = [*DIGITS, *SMALL, "--methods", "alr", "--optim.epochs", "3"]


@pytest.fixture(scope="module")
def server():
    server = training_process.Server()
    yield server
    server.close()


@pytest.fixture
def start(server, tmp_path):
    """Starts a training in one folder; all write into one log."""

    def start(*argv, **options):
        runs = tmp_path / "runs"
        return server.start("--runs", runs, *argv, log=tmp_path / "log", **options)

    return start


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory):
    """What a training of these options leaves that nothing happens to; each is made once."""
    made = {}

    def train(*argv, **options):
        key = json.dumps([list(map(str, argv)), options])
        if key not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            training = server.start("--runs", folder / "runs", *argv, log=folder / "log", **options)
            assert training.wait() == 0, training.output
            made[key] = outcome(folder / "runs")
        return made[key]

    return train


def checkpoints(runs):
    """The folder of the checkpoints, once there is one."""
    return next(iter(runs.glob("*/checkpoints")), runs / "none")


def newest_number(runs):
    """Number of the newest checkpoint, 0 before the first."""
    folder = checkpoints(runs)
    names = os.listdir(folder) if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def being_written(runs):
    """Whether a checkpoint is being written, or was when its process ended."""
    folder = checkpoints(runs)
    return folder.is_dir() and any(name.endswith(".tmp") for name in os.listdir(folder))


def same(found, expected):
    """Compares outcomes; says which parts differ, not all of their bytes."""
    assert found.keys() == expected.keys()
    assert found["metrics"] == expected["metrics"]
    assert [name for name in found if found[name] != expected[name]] == []


@pytest.mark.parametrize("kills", [4, pytest.param(24, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(
    start, runs, tmp_path, undisturbed, kills
):
    epochs = 4 if kills == 4 else 10
    options = [*DIGITS, *SMALL, "--methods", "ce,alr", "--optim.epochs", epochs]
    options += ["--checkpoint.steps", "2"]
    expected = undisturbed(*options)

    rng, steps = random.Random(kills), 2 * epochs * STEPS
    hits = writes = resumed = 0
    for kill in range(kills):
        had = newest_number(runs)
        training = start(*options, "--resume", "auto")
        # The kills are spread over both methods, but not to the end: what is left takes longer than
        # the pauses below, on a fast machine, too.
        aim = round(0.8 * steps * (kill + 1) / kills)
        if kill % 4 == 3:  # anywhere, while it starts and resumes, too
            time.sleep(rng.uniform(0, 0.6))
            training.until(lambda had=had: had or newest_number(runs))
        else:
            assert training.until(lambda aim=aim: newest_number(runs) >= aim), kill
            time.sleep(rng.uniform(0, 0.1))
            if kill % 4 < 2:
                assert training.until(lambda: being_written(runs)), kill
                time.sleep(rng.uniform(0, 0.01))
        assert training.send(signal.SIGKILL), "it had ended before it was killed"
        assert training.wait() == -signal.SIGKILL
        hits += 1
        writes += being_written(runs)
        resumed += bool(had)
    last = start(*options, "--resume", "auto")
    assert last.wait() == 0, last.output
    same(outcome(runs), expected)
    assert (hits, resumed) == (kills, kills - 1)
    assert writes >= kills // 4
    # A run that is killed while it starts has not said yet that it goes on.
    assert last.output.count(": goes on in epoch") > kills // 2
    assert not being_written(runs)
    print(f"{hits} kills, {writes} of them while a checkpoint was written")


_TERM, _USR1 = int(signal.SIGTERM), int(signal.SIGUSR1)
MIDDLE = {"signal_after": {"number": _TERM, "steps": STEPS + 3}}
END = {"signal_after": {"number": _USR1, "steps": 2 * STEPS}}
EVALUATION = {"signal_in_evaluation": {"number": _USR1, "calls": 2}}
# The scaler's factor is halved.
NAN = {"nan_images": {"first": 3, "last": 3}}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("stop", "where", "options"),
    [
        (MIDDLE, "epoch 2 after step 3", []),
        (END, "epoch 2 after step 7", ["--optim.clip_norm", "0.5", "--optim.accumulate", "2"]),
        (
            EVALUATION,
            "epoch 3 after step 0",
            ["--model.ema_decay", "0.9", "--precision", "bfloat16"],
        ),
        ({**MIDDLE, **NAN}, "epoch 2 after step 3", ["--precision", "float16"]),
        slow(MIDDLE, "epoch 2 after step 3", ["--model.ema_decay", "0.9"]),
        slow(
            MIDDLE, "epoch 2 after step 3", ["--optim.clip_norm", "0.5", "--precision", "bfloat16"]
        ),
        slow(END, "epoch 2 after step 7", ["--precision", "float16", "--optim.accumulate", "2"]),
        slow(END, "epoch 2 after step 7", ["--model.ema_decay", "0.9"]),
        slow(MIDDLE, "epoch 2 after step 3", ["--optim.optimizer", "adamw", "--optim.lr", "0.01"]),
        slow(MIDDLE, "epoch 2 after step 3", ["--optim.sgd_momentum", "0"]),
        slow(
            MIDDLE, "epoch 2 after step 3", ["--bank.dtype", "bfloat16", "--bank.placement", "file"]
        ),
        slow(MIDDLE, "epoch 2 after step 3", ["--optim.warmup_steps", "12"]),
        slow(MIDDLE, "epoch 2 after step 3", ["--checkpoint.background", "false"]),
        slow(EVALUATION, "epoch 3 after step 0", ["--model.name", "conv-tiny"]),
        (MIDDLE, "epoch 2 after step 3", ["--methods", "elr"]),
        slow(MIDDLE, "epoch 2 after step 3", ["--methods", "sat", "--sat.warmup_epochs", "1"]),
        slow(
            MIDDLE,
            "epoch 2 after step 3",
            ["--methods", "ce,distillation", "--distillation.teacher", "ce"],
        ),
    ],
)
def test_stopped_by_a_signal_it_goes_on_bit_by_bit(start, runs, undisturbed, stop, where, options):
    nan = {name: fault for name, fault in stop.items() if name == "nan_images"}
    options = [*OPTIONS, *options, "--checkpoint.steps", "9"]
    expected = undisturbed(*options, faults=nan)
    stopped = start(*options, faults=stop)
    assert stopped.wait() == 75, stopped.output
    said = stopped.output.splitlines()[-1]
    assert said.startswith(("stopped by SIGTERM", "stopped by SIGUSR1"))
    assert said.endswith(f" in {where}; --resume auto goes on there")
    assert newest_checkpoint(checkpoints(runs)) is not None
    assert not (runs / "latest").exists()

    resumed = start(*options, "--resume", "auto")
    assert resumed.wait() == 0, resumed.output
    assert resumed.output.count(": goes on in epoch") == 1
    same(outcome(runs), expected)
    again = start(*options, "--resume", "auto")
    assert again.wait() == 0
    assert "has finished already" in again.output.splitlines()[-1]
    same(outcome(runs), expected)


def test_the_whole_state_goes_on(start, runs, tmp_path, server):
    """The last checkpoint of both, tensor by tensor: also what no figure shows yet."""
    options = [*OPTIONS, "--checkpoint.steps", "20", "--checkpoint.keep", "9", *_FLOAT16_EMA]
    whole = server.start("--runs", tmp_path / "whole", *options, log=tmp_path / "log", faults=NAN)
    assert whole.wait() == 0, whole.output
    assert start(*options, faults={**MIDDLE, **NAN}).wait() == 75
    assert start(*options, "--resume", "auto").wait() == 0

    def state(folder):
        checkpoint = list_checkpoints(checkpoints(folder))[-1]
        assert checkpoint.number == 20
        return saved_tensors(checkpoint), checkpoint.progress["position"]

    (found, position), (expected, expected_position) = state(runs), state(tmp_path / "whole")
    for state in (position, expected_position):
        del state["scheduler"]["_step_count"]  # only warns of a wrong order of calls
    assert position == expected_position
    assert position["scaler"]["scale"] < 65536
    assert found.keys() == expected.keys()
    kinds = {".".join(name.split(".")[:2]) for name in found}
    assert {"rank0.random", "rank0.sums", "rank0.skipped", "rank0.bank_status"} <= kinds
    assert [name for name in found if bits(found[name]) != bits(expected[name])] == []


def bits(tensor):
    """NaN compares as equal to itself."""
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


_FLOAT16_EMA = ["--precision", "float16", "--model.ema_decay", "0.9"]


def saved_tensors(checkpoint):
    """All that a checkpoint holds, shards as whole tensors."""
    from torch.distributed.checkpoint import FileSystemReader

    entries = FileSystemReader(checkpoint.path).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(tuple(entry.size), dtype=entry.properties.dtype)
        for name, entry in entries.items()
    }
    with process_group("cpu"):
        load(checkpoint, tensors)
    return tensors


@pytest.fixture
def with_workers(tmp_path):
    """Options of a training whose images are decoded by processes."""
    root = write_folder(tmp_path / "set", train=dict.fromkeys("abc", 16), test={"a": 4})
    options = [*SMALL, "--methods", "alr", "--optim.epochs", "2", "--optim.batch_size", "8"]
    return [*options, "--data-root", root, "--data.loader", "torch", "--data.workers", "2"]


@pytest.mark.parametrize("workers", [0, slow(1)])
def test_random_numbers_go_on_with_a_loader_of_torch(start, tmp_path, undisturbed, workers):
    """A DataLoader takes a random number when it begins, in a new process once more."""
    classes = {name: 16 for name in "abc"}
    root = write_folder(tmp_path / "set", train=classes, test=dict.fromkeys("abc", 4))
    options = [*SMALL, "--methods", "alr", "--optim.epochs", "3", "--optim.batch_size", "8"]
    options += ["--data-root", root, "--data.loader", "torch", "--data.workers", workers]
    expected = undisturbed(*options)
    faults = {"signal_after": {"number": _TERM, "steps": 9}}
    assert start(*options, faults=faults).wait() == 75
    resumed = start(*options, "--resume", "auto")
    assert resumed.wait() == 0, resumed.output
    same(outcome(tmp_path / "runs"), expected)


@pytest.mark.parametrize("number", [_TERM, slow(_USR1), slow(int(signal.SIGINT))])
def test_a_signal_to_the_workers_too_ends_none_of_them(start, runs, with_workers, number):
    """Slurm, and a shell that ends a whole group, signal the workers of the loader as well."""
    stop = {"signal_group_after": {"number": number, "steps": 4}}
    stopped = start(*with_workers, faults=stop)
    if number == signal.SIGINT:
        assert stopped.wait() == 130, stopped.output
        assert "Traceback" not in stopped.output
        return
    assert stopped.wait() == 75, stopped.output
    assert stopped.output.splitlines()[-1].endswith(
        "in epoch 1 after step 4; --resume auto goes on there"
    )
    resumed = start(*with_workers, "--resume", "auto")
    assert resumed.wait() == 0, resumed.output
    assert "alr: goes on in epoch 1 after step 4" in resumed.output


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_training(start, with_workers):
    training = start(*with_workers, "--optim.epochs", "500")
    training.until(lambda: training.log.exists() and " 1/500 " in training.output)

    def living():
        """Number of each process of the training's group, zombies left out."""
        found = set()
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):
                state, _, group, *_ = path.read_text().rpartition(")")[2].split()
                if state != "Z" and int(group) == training.pid:
                    found.add(int(path.parent.name))
        return found

    assert len(living()) >= 3
    training.send(signal.SIGKILL)
    assert training.wait() == -signal.SIGKILL
    end = time.monotonic() + 20  # they look every five seconds whether it is still there
    while living():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_the_command_itself_stopped_from_outside(tmp_path, undisturbed):
    options = [*OPTIONS, "--model.name", "conv-tiny", "--optim.epochs", "8"]
    command = [sys.executable, "-m", "alr_fast.train", *options, "--runs", str(tmp_path / "runs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if "epoch 2/8" in line:
                process.send_signal(signal.SIGTERM)
                break
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert errors.startswith("stopped by SIGTERM in epoch ")
    assert "--resume auto" in errors
    assert errors.count("\n") == 1
    done = subprocess.run(
        [*command, "--resume", "auto"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "alr: goes on in epoch " in done.stdout
    same(outcome(tmp_path / "runs"), undisturbed(*options))


# The rows stay close to the given labels, so that each of them tells whose it is.
GROUP = [*OPTIONS, "--alr.momentum", "0.95", "--checkpoint.steps", "3", "--checkpoint.keep", "3"]


@pytest.fixture(scope="module")
def stopped_pair(server, tmp_path_factory):
    """A run of two processes, stopped by SIGTERM to torchrun in the second epoch or later."""
    folder = tmp_path_factory.mktemp("pair")
    training = server.start("--runs", folder / "runs", *GROUP, log=folder / "log", processes=2)
    assert training.until(lambda: newest_number(folder / "runs") >= STEPS + 2), training.output
    training.send(signal.SIGTERM)
    assert training.wait() not in (0, None)
    output = training.output
    assert output.count("goes on there") == 1, output
    assert "stopped by " in output
    checkpoint = newest_checkpoint(checkpoints(folder / "runs"))
    assert (checkpoint.world_size, checkpoint.progress["position"]["epoch"] >= 1) == (2, True)
    return folder / "runs"


def test_torchrun_stopped_goes_on_bit_by_bit(start, runs, stopped_pair, undisturbed):
    shutil.copytree(stopped_pair, runs, symlinks=True)
    resumed = start(*GROUP, "--resume", "auto", processes=2)
    assert resumed.wait() == 0, resumed.output
    assert resumed.output.count("alr: goes on in epoch") == 1
    same(outcome(runs), undisturbed(*GROUP, processes=2))


@pytest.mark.parametrize("processes", [None, slow(4)])
def test_another_number_of_processes_finds_each_samples_row(start, runs, stopped_pair, processes):
    shutil.copytree(stopped_pair, runs, symlinks=True)
    before = newest_checkpoint(checkpoints(runs))
    # One step, then look what it has: all but the rows of one batch.
    stop = {"signal_after": {"number": _TERM, "steps": 1}}
    training = start(*GROUP, "--resume", "auto", processes=processes, faults=stop)
    assert training.wait() == (75 if processes is None else 1)
    assert "that epoch is begun anew" in training.output
    after = newest_checkpoint(checkpoints(runs))
    assert (after.number, after.world_size) == (before.number + 1, processes or 1)
    old, new = saved_tensors(before), saved_tensors(after)
    given = given_labels(200)
    assert torch.equal(new["bank.ids"], old["bank.ids"])
    for tensors in (old, new):
        assert torch.equal(tensors["bank.rows"].argmax(1), given[tensors["bank.ids"]])
        assert (tensors["bank.rows"].max(1).values < 1).sum() > 32  # refined
    assert (old["bank.rows"] != new["bank.rows"]).any(1).sum() == 32

    training = start(*GROUP, "--resume", "auto", processes=processes)
    assert training.wait() == 0, training.output
    saved = load_file(run_folder(runs) / "alr_bank.safetensors")
    assert torch.equal(saved["rows"].argmax(1), saved["given_labels"])
    assert (saved["rows"].max(1).values < 1).all()
    assert torch.equal(given[saved["ids"]], saved["given_labels"])


def given_labels(limit):
    """Labels that the recipe's noise gives to the first samples, by id; -1 for those left out."""
    from alr_fast.noise import inject

    config = parse([*OPTIONS, "--data.limit", str(limit)])
    index = load_data(config.data, None, log=lambda line: None).train.index
    noise = inject(
        index.labels, num_classes=10, kind=config.noise.kind, rate=config.noise.rate, seed=0
    )
    labels = torch.full((int(index.sample_ids.max()) + 1,), -1)
    labels[torch.from_numpy(index.sample_ids)] = torch.from_numpy(noise.labels)
    return labels


@pytest.mark.parametrize(("processes", "rank"), [(2, 1), slow(2, 0), slow(4, 2)])
def test_torchrun_starts_a_killed_rank_anew(start, runs, undisturbed, processes, rank):
    faults = {"kill_rank": {"rank": rank, "steps": STEPS + 3}}
    training = start(*GROUP, "--resume", "auto", processes=processes, restarts=2, faults=faults)
    assert training.wait() == 0, training.output
    assert training.output.count("alr: goes on in epoch") == 1
    same(outcome(runs), undisturbed(*GROUP, processes=processes))


@pytest.mark.slow
def test_torchrun_itself_with_a_killed_rank(runs, undisturbed):
    options = [*GROUP, "--model.name", "conv-tiny"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["4", "--max-restarts", "2", "-m", "alr_fast.train", *options]
    with subprocess.Popen(
        [*command, "--runs", str(runs), "--resume", "auto"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while newest_number(runs) < STEPS and process.poll() is None:
            time.sleep(0.01)
        os.kill(children(process.pid)[2], signal.SIGKILL)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("alr: goes on in epoch") == 1
    same(outcome(runs), undisturbed(*options, processes=4))


def children(pid):
    """Processes that a process started, ascending."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return sorted(map(int, text.split()))


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_all(start, runs, undisturbed):
    """A full disk when the line of an epoch is written: nobody waits for the one that failed."""
    fault = {"full_disk": {"name": "metrics.csv", "mode": "a", "at": 2}}
    training = start(*GROUP, processes=2, faults=fault)
    assert training.wait() == 1
    assert training.output.count("metrics.csv: No space left on device") == 1
    resumed = start(*GROUP, "--resume", "auto", processes=2)
    assert resumed.wait() == 0, resumed.output
    same(outcome(runs), undisturbed(*GROUP, processes=2))


FULL = [*OPTIONS, "--checkpoint.steps", "5"]
LIMIT = 40_000  # bytes: more than any other file of the run, less than a checkpoint


def test_no_checkpoint_can_be_written_and_training_goes_on(start, runs, undisturbed):
    training = start(*FULL, faults={"limit_files": {"num_bytes": LIMIT, "after_steps": 1}})
    assert training.wait() == 0, training.output
    for number in (5, 10, 15, 20):
        assert f"checkpoint {number} could not be written: File too large" in training.output
    assert training.output.count("no older checkpoint exists") == 4
    assert list(checkpoints(runs).iterdir()) == []
    same(outcome(runs), undisturbed(*FULL))


@pytest.mark.parametrize("stop", [False, True])
def test_an_older_checkpoint_stands(start, runs, undisturbed, stop):
    options = [*FULL, "--checkpoint.background", "false"]
    faults = {"limit_files": {"num_bytes": LIMIT, "after_steps": 6}}
    if stop:
        faults["signal_after"] = {"number": _TERM, "steps": 12}
    training = start(*options, faults=faults)
    assert training.wait() == (2 if stop else 0), training.output
    assert "checkpoint 10 could not be written: File too large" in training.output
    (checkpoint,) = list_checkpoints(checkpoints(runs))
    assert checkpoint.number == 5
    assert max(path.stat().st_size for path in checkpoint.path.iterdir()) > LIMIT
    assert not being_written(runs)
    if stop:
        said = training.output.splitlines()[-1]
        assert said.startswith(
            "error: stopped in epoch 2 after step 5, but checkpoint 12 could not be"
        )
        assert "checkpoint 5 remains" in said
    else:
        same(outcome(runs), undisturbed(*options))
        (run_folder(runs) / "summary.json").unlink()  # as if it had been killed at its very end
    resumed = start(*options, "--resume", "auto")
    assert resumed.wait() == 0, resumed.output
    assert "goes on in epoch 1 after step 5" in resumed.output
    same(outcome(runs), undisturbed(*options))


def test_disk_full_at_the_line_of_an_epoch(start, runs, undisturbed):
    fault = {"full_disk": {"name": "metrics.csv", "mode": "a", "at": 2}}
    training = start(*FULL, faults=fault)
    assert training.wait() == 2
    errors = [line for line in training.output.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert "metrics.csv: No space left on device; free some space and try again" in errors[0]
    assert "Traceback" not in training.output
    resumed = start(*FULL, "--resume", "auto")
    assert resumed.wait() == 0, resumed.output
    assert "goes on in epoch 2 after step 3" in resumed.output
    same(outcome(runs), undisturbed(*FULL))


@contextmanager
def trainer_of(*argv):
    """A trainer at work in this process, with its loader and the loss's bank."""
    from alr_fast.bank import LabelBank

    config = parse([*OPTIONS, "--model.name", "conv-tiny", *argv])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with process_group("cpu") as world:
        data = load_data(config.data, None, log=lambda line: None)
        data = with_labels(data, data.train.index.labels)
        transform = make_transform(config.data, data.train)
        loaders = make_loaders(
            config, data, transform, world=world, log=lambda line: None, track=lambda x, **_: x
        )
        labels = torch.from_numpy(data.train.index.labels[loaders.train.sampler.rows])
        bank = LabelBank.from_labels(labels, 10)
        torch.manual_seed(0)
        model = build_model("conv-tiny", num_classes=10, in_channels=1, image_size=8)
        options = asdict(config.options["alr"])
        criterion = METHODS["alr"](bank, **options, reduction="sum", unique_index=True)
        trainer = Trainer(model, criterion, config, loaders.train, world)
        yield SimpleNamespace(trainer=trainer, bank=bank, batches=list(loaders.train))
    torch.set_num_threads(threads)


def copies(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("at", [0, 2])
def test_a_step_of_nan_changes_nothing(optimizer, precision, at):
    options = ["--precision", precision, "--alr.warmup_epochs", "0", "--optim.clip_norm", "1"]
    options += ["--optim.optimizer", optimizer, "--optim.lr", "0.01"]
    with trainer_of(*options[: 4 if at else 6], *options[6:]) as this:
        trainer, bank = this.trainer, this.bank
        trainer.begin_epoch()
        for batch in this.batches[:at]:
            trainer.train_step(batch)

        def state():
            weights = dict(trainer.model.named_parameters())
            own = {
                f"{number}.{key}": value
                for number, weight in enumerate(weights.values())
                for key, value in trainer.optimizer.state[weight].items()
            }
            return copies({**weights, **own, "rows": bank.rows})

        before = state()
        assert all(tensor.isfinite().all() for tensor in before.values())
        batch = this.batches[at]
        trainer.train_step({**batch, "image": batch["image"] * torch.nan})
        after = state()
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
        assert trainer.check_skipped() == 1
        assert all(buffer.isfinite().all() for buffer in trainer.model.buffers())

        trainer.train_step(this.batches[at + 1])
        trainer.train_step(this.batches[at + 2])
        last = state()
        assert trainer.check_skipped() == 1
        assert all(tensor.isfinite().all() for tensor in last.values())
        assert not torch.equal(last["head.weight"], before["head.weight"])
        changed = (last["rows"] != before["rows"]).any(1).nonzero().flatten().tolist()
        touched = torch.cat([this.batches[at + 1]["index"], this.batches[at + 2]["index"]])
        assert changed == sorted(touched.tolist())


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ([], 0),
        (["--precision", "float16", "--log-every", "20"], STEPS + 2),
        slow(["--precision", "bfloat16", "--model.ema_decay", "0.9"], 2 * STEPS - 1),
        slow(
            ["--precision", "float16", "--model.ema_decay", "0.9", "--log-every", "20"],
            2 * STEPS + 1,
        ),
        slow(["--optim.optimizer", "adamw", "--optim.accumulate", "2"], 0),
        slow(["--precision", "float16", "--optim.optimizer", "adamw"], STEPS),
    ],
)
def test_a_run_with_one_step_of_nan(start, runs, undisturbed, options, at):
    training = start(*OPTIONS, *options, faults={"nan_images": {"first": at, "last": at}})
    assert training.wait() == 0, training.output
    rows = metrics(runs)
    # float16 leaves out steps of its own while the scaler looks for its factor.
    usual = [int(row["skipped_steps"]) for row in undisturbed(*OPTIONS, *options)["metrics"]]
    usual[at // STEPS] += 1
    assert [int(row["skipped_steps"]) for row in rows] == usual
    for row in rows:
        assert float(row["train_loss"]) < 10
        assert float(row["test_loss"]) < 10
    assert float(rows[-1]["test_accuracy"]) > 0.2
    weights = load_file(run_folder(runs) / "alr.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    saved = load_file(run_folder(runs) / "alr_bank.safetensors")
    torch.testing.assert_close(saved["rows"].sum(1), torch.ones(200), atol=1e-3, rtol=0)


@pytest.mark.parametrize("every", [1, 20])
def test_nan_that_stays_ends_the_run(start, runs, every):
    options = ["--optim.max_skipped", "4", "--log-every", every]
    training = start(*OPTIONS, *options, faults={"nan_images": {"first": 5, "last": 99}})
    assert training.wait() == 2
    said = training.output.splitlines()[-1]
    assert said.startswith("error: the gradients of the last ")
    assert "not finite" in said
    assert "--optim.lr" in said
    assert "Traceback" not in training.output
    assert not (runs / "latest").exists()


@pytest.fixture(scope="module")
def stopped_table(server, tmp_path_factory):
    """A run on a list of images, stopped with three checkpoints: folder and options."""
    folder = tmp_path_factory.mktemp("table")
    classes = dict.fromkeys("abc", 8)
    write_folder(folder / "set", train=classes, test=dict.fromkeys("abc", 2))
    rows = [
        (f"{split}/{name}/{path.name}", name, split)
        for split in ("train", "test")
        for name in classes
        for path in sorted((folder / "set" / split / name).iterdir())
    ]
    write_list(folder / "set" / "all.csv", rows)
    options = [*SMALL, "--methods", "alr", "--optim.epochs", "3", "--optim.batch_size", "8"]
    options += ["--data.loader", "memory", "--data.workers", "1", "--checkpoint.steps", "2"]
    options += ["--checkpoint.keep", "3"]
    faults = {"signal_after": {"number": _TERM, "steps": 7}}
    words = [*options, "--data-root", folder / "set" / "all.csv", "--runs", folder / "runs"]
    training = server.start(*words, log=folder / "log", faults=faults)
    assert training.wait() == 75, training.output
    return folder, options, rows


def write_list(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])


@pytest.fixture
def resume(server, stopped_table, tmp_path):
    """Resumes a copy of that run; returns status and last line."""
    folder, options, rows = stopped_table
    for name in ("set", "runs"):
        shutil.copytree(folder / name, tmp_path / name)

    numbers = []

    def resume(*argv):
        given = [*options, "--data-root", tmp_path / "set" / "all.csv", "--runs", tmp_path / "runs"]
        numbers.append(None)
        training = server.start(*given, *argv, log=tmp_path / f"log{len(numbers)}")
        status = training.wait()
        assert "Traceback" not in training.output
        return status, training.output.splitlines()

    return SimpleNamespace(
        resume=resume, rows=list(rows), table=tmp_path / "set" / "all.csv", runs=tmp_path / "runs"
    )


def refused(answer, *parts):
    status, lines = answer
    assert status == 2, lines
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    for part in parts:
        assert part in errors[0]


def test_other_classes_are_refused(resume):
    rows = [(path, "d" if label == "c" else label, split) for path, label, split in resume.rows]
    write_list(resume.table, rows)
    refused(resume.resume("--resume", "auto"), "was made with 3 classes (a, b, c)", "--data-root")


@pytest.mark.parametrize("change", ["another file", "another order", "fewer"])
def test_other_samples_are_refused(resume, change):
    rows = resume.rows
    if change == "another file":
        old = resume.table.parent / rows[3][0]
        old.rename(old.with_name("zzz.png"))
        rows[3] = ("train/a/zzz.png", *rows[3][1:])
    elif change == "another order":
        rows[2], rows[3] = rows[3], rows[2]
    else:
        del rows[2]
    write_list(resume.table, rows)
    refused(resume.resume("--resume", "auto"), "was made with other training samples")


def test_other_labels_are_refused_or_wanted(resume):
    rows = resume.rows
    rows[2] = (rows[2][0], "b", "train")
    write_list(resume.table, rows)
    refused(
        resume.resume("--resume", "auto"),
        "other given labels of the same samples",
        "--checkpoint.other_labels true",
    )
    status, lines = resume.resume(
        *("--resume", "auto", "--checkpoint.other_labels", "true", "--checkpoint.steps", "1")
    )
    assert status == 0, lines
    assert any("alr: goes on in epoch 3 after step 1" in line for line in lines)
    saved = load_file(run_folder(resume.runs) / "alr_bank.safetensors")
    assert saved["given_labels"][2] == 1
    # What was noted down of the label before is forgotten.
    last = saved_tensors(newest_checkpoint(checkpoints(resume.runs)))
    passes = dict(zip(last["bank.ids"].tolist(), last["history.passes"].tolist(), strict=True))
    assert passes[2] < min(passes[i] for i in passes if i != 2)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "manifest"])
@pytest.mark.parametrize("asked", ["auto", slow("run"), slow("checkpoint")])
def test_a_damaged_checkpoint_is_refused_and_an_older_one_offered(resume, damage, asked):
    *_, older, newest = list_checkpoints(checkpoints(resume.runs))
    name = "manifest.json" if damage == "manifest" else sorted(newest.files)[-1]
    path = newest.path / name
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        path.unlink()
    else:
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    word = {"auto": "auto", "run": run_folder(resume.runs), "checkpoint": newest.path}[asked]
    said = {"truncated": "is truncated", "missing": "is missing"}.get(damage, "was changed")
    refused(resume.resume("--resume", word), str(path), said, f"--resume {older.path}")
    status, lines = resume.resume("--resume", older.path)
    assert status == 0, lines
    assert any(line.endswith(f"from {older.path}") for line in lines)


def test_an_older_checkpoint_gives_the_same_end(resume, undisturbed, stopped_table):
    folder, options, _ = stopped_table
    expected = undisturbed(*options, "--data-root", folder / "set" / "all.csv")
    oldest, *_ = list_checkpoints(checkpoints(resume.runs))
    assert resume.resume("--resume", oldest.path)[0] == 0
    same(outcome(resume.runs), expected)


def test_another_option_is_refused(resume):
    run = run_folder(resume.runs)
    refused(
        resume.resume("--resume", run, "--optim.lr", "0.03"),
        "--optim.lr 0.03",
        "has 0.05",
        str(run),
    )


def test_auto_starts_a_run_of_its_own_with_another_option(resume):
    (before,) = [path for path in resume.runs.iterdir() if not path.is_symlink()]
    content = {path: path.read_bytes() for path in before.rglob("*") if path.is_file()}
    status, lines = resume.resume("--resume", "auto", "--optim.lr", "0.03")
    assert status == 0, lines
    assert not any("goes on" in line for line in lines)
    assert len([path for path in resume.runs.iterdir() if not path.is_symlink()]) == 2
    assert {path: path.read_bytes() for path in before.rglob("*") if path.is_file()} == content


def test_a_path_that_is_none_is_refused(resume, tmp_path):
    refused(resume.resume("--resume", tmp_path / "none"), "none: no such folder")
    refused(resume.resume("--resume", resume.table), "all.csv: no such folder")
    (tmp_path / "empty").mkdir()
    refused(resume.resume("--resume", tmp_path / "empty"), str(tmp_path / "empty"))
    run = run_folder(resume.runs)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    refused(resume.resume("--resume", run), "has no complete checkpoint")


def test_auto_without_a_checkpoint_starts_a_new_run(resume):
    shutil.rmtree(run_folder(resume.runs))
    status, lines = resume.resume("--resume", "auto")
    assert status == 0, lines
    assert not any("goes on" in line for line in lines)
    assert (run_folder(resume.runs) / "summary.json").is_file()
