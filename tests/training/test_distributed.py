"""Several processes equal one process with the same batches, and raise the same errors."""

import gc
import multiprocessing
import re
import socket
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from alr_fast.bank import LabelBank
from alr_fast.bank.file import BankFileWriter
from alr_fast.bank.history import SampleHistory
from alr_fast.data.broken import BrokenSamples
from alr_fast.data.datasets import Split
from alr_fast.data.images.sources import ArrayImages
from alr_fast.data.layouts.base import new_index
from alr_fast.data.loaders.choose import LoaderChoice
from alr_fast.data.loaders.memory import Decoded, MemoryLoader
from alr_fast.data.loaders.transform import Transform
from alr_fast.data.sampler import SequentialSampler, ShuffledSampler
from alr_fast.errors import SharedError, UserError, naming_options
from alr_fast.losses import ALRLoss, ELRLoss, SATLoss
from alr_fast.training.config.schema import Config, ModelConfig, OptimConfig
from alr_fast.training.distributed import World, choose_device, process_group
from alr_fast.training.evaluation import evaluate
from alr_fast.training.loaders import Loaders
from alr_fast.training.sharded_bank import common_share, export_bank, label_statistics
from alr_fast.training.trainer import Trainer

CPU = torch.device("cpu")
# Rounding depends on the order of the sums; a wrong divisor or a lost sample differs by 1e-3.
TOLERANCE = {"atol": 2e-6, "rtol": 2e-5}
SAMPLES, CLASSES, BATCH, EPOCHS = 103, 5, 24, 3  # 103: shards and last batches of unequal length
BROKEN = 11  # a row with an unreadable image: its rank has one valid sample less


def in_processes(number, function, *args):
    """Runs ``function(world, *args)`` in a number of processes; returns the results by rank."""
    gc.collect()  # a child must not destroy the process groups of earlier tests
    context = multiprocessing.get_context("fork")  # importing torch again takes seconds
    queue = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_work, args=(rank, number, port, queue, function, args))
        for rank in range(number)
    ]
    for process in processes:
        process.start()
    results = {}
    for _ in processes:
        rank, results[rank] = queue.get(timeout=120)
        if isinstance(results[rank], BaseException):
            raise results[rank]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return [results[rank] for rank in range(number)]


def _work(rank, number, port, queue, function, args):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=number
    )
    try:
        result = function(World(rank, number, number, CPU), *args)
    except BaseException as error:
        queue.put((rank, error))
        raise
    queue.put((rank, result))
    queue.close()
    queue.join_thread()
    dist.destroy_process_group()


class NamedImages(ArrayImages):
    """Images in memory with names, so that they can be reported as broken."""

    root = Path("memory")

    def name(self, row):
        return f"image {row}"


def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=SAMPLES)
    pixels = rng.integers(256, size=(SAMPLES, 1, 6, 6)).astype(np.uint8)
    index = new_index(
        [f"p{i}" for i in range(SAMPLES)], labels, tuple(str(k) for k in range(CLASSES))
    )
    return Split(index, NamedImages(pixels))


def loader_of(rank, size):
    split = data()
    sampler = ShuffledSampler(SAMPLES, BATCH // size, seed=4, rank=rank, world_size=size)
    broken = {place: "test" for place in np.flatnonzero(sampler.rows == BROKEN).tolist()}
    decoded = Decoded(split.images.array[sampler.rows], broken)
    return MemoryLoader(split, sampler, Transform(6, mean=(0.5,)), decoded=decoded, device=CPU)


class JoinedLoader:
    """Concatenates the batches of all ranks of a run, for a run of one process."""

    def __init__(self, size):
        self.parts = [loader_of(rank, size) for rank in range(size)]
        self.sampler = ShuffledSampler(SAMPLES, BATCH, seed=4)

    def __len__(self):
        return len(self.parts[0])

    def set_epoch(self, *progress):
        for part in self.parts:
            part.set_epoch(*progress)

    def __iter__(self):
        for batches in zip(*self.parts, strict=True):
            index = [
                torch.where(batch["index"] < 0, -1, batch["index"] + part.sampler.offset)
                for part, batch in zip(self.parts, batches, strict=True)
            ]
            yield {
                "image": torch.cat([batch["image"] for batch in batches]),
                "label": torch.cat([batch["label"] for batch in batches]),
                "index": torch.cat(index),
            }


def new_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, CLASSES))


def trained(world, config, loader, method="alr"):
    """Trains a few epochs; returns weights or their EMA, the bank by sample, and the progress."""
    rows = loader.sampler.rows
    labels = torch.from_numpy(data().index.labels[rows])
    bank = LabelBank.from_labels(labels, CLASSES, one_hot=method != "elr")
    options = {"momentum": 0.8, "reduction": "sum", "unique_index": True}
    if method == "alr":
        criterion = ALRLoss(bank, warmup_epochs=1, **options)
    elif method == "sat":
        criterion = SATLoss(bank, warmup_epochs=1, all_sum=world.sum, **options)
    else:
        criterion = ELRLoss(bank, **options)
    true = torch.where(torch.from_numpy(rows) % 3 == 0, (labels + 1) % CLASSES, labels)
    trainer = Trainer(new_model(), criterion, config, loader, world, true_labels=true)
    progress = []
    for _ in range(EPOCHS):
        trainer.begin_epoch()
        for batch in loader:
            trainer.train_step(batch)
        progress.append(astuple(trainer.progress(everywhere=True)))
        trainer.end_epoch()
    table = np.full((SAMPLES, CLASSES), np.nan, np.float32)
    table[rows] = bank.rows.numpy()
    weights = [w.detach().numpy() for w in trainer.evaluated.parameters()]
    return weights, table, progress


CONFIG = Config(optim=OptimConfig(epochs=EPOCHS, batch_size=BATCH, lr=0.1))
CASES = {
    "sgd": CONFIG,
    "micro-batches": replace(CONFIG, optim=replace(CONFIG.optim, accumulate=3)),
    "clipped": replace(CONFIG, optim=replace(CONFIG.optim, clip_norm=0.05)),
    "adamw": replace(CONFIG, optim=replace(CONFIG.optim, optimizer="adamw", lr=0.01)),
    "ema": replace(CONFIG, model=ModelConfig(ema_decay=0.9)),
}


@pytest.mark.parametrize(
    ("case", "size", "method"),
    [
        *((case, 2, "alr") for case in CASES),
        ("micro-batches", 4, "alr"),
        ("sgd", 2, "sat"),  # normalises its weights over the batches of all ranks
        ("sgd", 4, "sat"),
        ("sgd", 2, "elr"),
    ],
)
def test_equal_to_one_process_with_the_same_batches(case, size, method):
    config = CASES[case]
    parts = in_processes(size, _train_part, config, method)
    with process_group():
        weights, table, progress = trained(World(0, 1, 1, CPU), config, JoinedLoader(size), method)
    assert not np.isnan(table).any()
    start = np.eye(CLASSES, dtype=np.float32)[data().index.labels] * (method != "elr")
    changed = (table != start).any(1)
    assert changed.sum() == SAMPLES - 1
    assert not changed[BROKEN]
    for theirs, their_table, their_progress in parts:
        for a, b in zip(theirs, weights, strict=True):
            np.testing.assert_allclose(a, b, **TOLERANCE)
        for a, b in zip(their_progress, progress, strict=True):
            assert a[0] == pytest.approx(b[0], rel=1e-5)
            assert a[1:] == b[1:]
            assert a[2] == SAMPLES - 1
        own = ~np.isnan(their_table)
        np.testing.assert_allclose(their_table[own], table[own], **TOLERANCE)
    # Each row is in exactly one process.
    assert (sum((~np.isnan(part[1])).astype(int) for part in parts) == 1).all()


def _train_part(world, config, method="alr"):
    return trained(world, config, loader_of(world.rank, world.size), method)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_do_not_change_the_result(size):
    whole, parts = (
        in_processes(size, _train_part, CASES[case])[0][0] for case in ("sgd", "micro-batches")
    )
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, **TOLERANCE)


@pytest.mark.parametrize("samples", [1, 7, 50])
def test_evaluation_counts_every_sample_once(samples):
    """Even with more processes than samples."""
    parts = in_processes(3, _evaluate, samples)
    with process_group() as world:
        alone = _evaluate(world, samples)
    for part in parts:
        assert part.loss == pytest.approx(alone.loss, rel=1e-6)
        assert part.accuracy == pytest.approx(alone.accuracy, abs=1e-7)
        assert (part.classes, part.balanced_accuracy) == (alone.classes, alone.balanced_accuracy)
    split, model = data().take(np.arange(samples)), new_model().eval()
    pixels = torch.from_numpy(split.images.array).float() / 255 - 0.5
    logits, labels = model(pixels * 2), torch.from_numpy(split.index.labels)
    expected = nn.functional.cross_entropy(logits, labels).item()
    assert alone.loss == pytest.approx(expected, rel=1e-5)
    assert alone.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert sum(alone.classes.samples) == samples


def _evaluate(world, samples):
    split = data().take(np.arange(samples))
    sampler = SequentialSampler(samples, 4, rank=world.rank, world_size=world.size)
    loader = MemoryLoader(split, sampler, Transform(6), device=CPU)
    return evaluate(new_model(), loader, torch.autocast("cpu", enabled=False))


def test_rows_are_collected_in_process_0(monkeypatch):
    monkeypatch.setattr("alr_fast.training.distributed._CHUNK_BYTES", 100)  # 5 rows of 20 bytes
    parts = in_processes(3, _collect)
    assert parts[1:] == [[], []]
    table = np.full((17, 5), np.nan)
    for positions, rows in parts[0]:
        assert len(rows) <= 5
        assert np.isnan(table[positions]).all()
        table[positions] = rows
    assert np.array_equal(table, np.arange(17)[:, None] * np.ones(5))


def _collect(world):
    positions = torch.arange(world.rank, 17, world.size)
    rows = (positions[:, None] * torch.ones(5)).to(torch.bfloat16).repeat(1, 2)[:, ::2].float()
    return [(p.numpy(), r.numpy()) for p, r in world.collect_rows(positions, rows)]


def test_processes_agree():
    parts = in_processes(3, _agree)
    assert [part[:5] for part in parts] == [
        ([True, True, False], [0, 1, 2], "from 0", [3.0, 3.0], {"first": [0]})
    ] * 3
    for rank, part in enumerate(parts):
        own = "ZeroDivisionError" if rank == 2 else "process 2 failed: ZeroDivisionError: "
        assert part[5:7] == ("--world.rank 1: cannot", "--world.rank 0: cannot")
        assert part[7].startswith(own)


def _agree(world):
    def fails_in(rank, message):
        if world.rank == rank:
            raise UserError(message, argument="rank", value=rank)

    flags = world.any(world.rank == 2, world.main, False)
    gathered = world.gather(world.rank)
    sent = world.broadcast(f"from {world.rank}")
    sums = world.sum(torch.ones(2)).tolist()
    started = torch.full((2,), float(world.rank))
    world.start_sum(started)()
    assert started.tolist() == [3.0, 3.0]
    first = world.from_main(lambda: {"first": [world.rank]})
    messages = []
    for action in (
        lambda: world.on_all_ranks(lambda: fails_in(1, "cannot")),
        lambda: world.main_first(lambda: fails_in(0, "cannot")),
        lambda: world.on_all_ranks(lambda: 1 / (2 - world.rank)),
    ):
        try:
            with naming_options(rank="world.rank"):
                action()
        except SharedError as error:
            messages.append(str(error))
        except ZeroDivisionError:
            messages.append("ZeroDivisionError")
    return flags, gathered, sent, sums, first, *messages


def test_all_processes_fail_if_the_bank_cannot_be_written(tmp_path):
    path = tmp_path / "no such folder" / "alr_bank.safetensors"
    messages = in_processes(2, _export, path)
    assert re.search(rf"{path}.*No such file or directory", messages[0])
    assert messages == messages[:1] * 2
    assert in_processes(2, _export, tmp_path / "alr_bank.safetensors") == ["written"] * 2
    saved = load_file(tmp_path / "alr_bank.safetensors")
    assert torch.equal(saved["rows"].argmax(1), saved["given_labels"])
    assert saved["ids"].tolist() == list(range(SAMPLES))


def test_a_share_of_given_labels_is_that_of_all_processes():
    """The samples of process 1 were not trained on in the last epoch."""
    assert in_processes(2, _share, 2) == [0.81] * 2
    assert in_processes(2, _share, 1) == [None] * 2


def _share(world, passes_of_last):
    bank = LabelBank.from_labels(torch.arange(3), CLASSES)
    bank.announce(2, 0.81)
    history = SampleHistory(bank.given_labels, CPU)
    history.passes.fill_(2 if world.main else passes_of_last)
    return common_share(bank, history, world)


@pytest.mark.parametrize("function", ["write", "__init__"])
def test_no_process_waits_for_one_that_cannot_write_the_bank(tmp_path, function):
    path = tmp_path / "alr_bank.safetensors"
    assert in_processes(2, _export_without_memory, path, function) == [
        "MemoryError: too large",
        "process 0 failed: MemoryError: too large",
    ]
    assert list(tmp_path.iterdir()) == []


def _export_without_memory(world, path, function):
    def fail(*args, **options):
        raise MemoryError("too large")

    setattr(BankFileWriter, function, fail)  # in this process, which ends with the test
    try:
        return _export(world, path)
    except MemoryError as error:
        return f"MemoryError: {error}"


def _export(world, path):
    loader = loader_of(world.rank, world.size)
    split, rows = loader.split, loader.sampler.rows
    bank = LabelBank.from_labels(torch.from_numpy(split.index.labels[rows]), CLASSES)
    try:
        export_bank(path, bank, SampleHistory(bank.given_labels, CPU), split, rows, world)
    except SharedError as error:
        return str(error)
    return "written"


def test_the_labels_of_all_processes_count():
    parts = in_processes(3, _look)
    for right, changed, nonfinite, counts in parts:
        # Process r moves r + 1 labels from a wrong class to the right one.
        assert changed == pytest.approx(6 / SAMPLES)
        assert right == pytest.approx(6 / SAMPLES)
        assert nonfinite == 0 + 10 + 20
        assert sum(counts) == SAMPLES


def _look(world):
    loader = loader_of(world.rank, world.size)
    given = loader.split.index.labels
    index = replace(loader.split.index, clean_labels=(given + 1) % CLASSES)
    rows = loader.sampler.rows
    bank = LabelBank.from_labels(torch.from_numpy(given[rows]), CLASSES)
    moved = world.rank + 1
    bank.rows[:moved] = bank.rows[:moved].roll(1, dims=1)
    bank.status[0] = 10 * world.rank
    found = label_statistics(bank, index, rows, world)
    return (
        found.accuracy,
        found.changed,
        found.nonfinite_rows,
        found.histograms["confidence"].counts,
    )


def test_broken_samples_of_all_processes_count_together():
    assert in_processes(2, _break, 1) == [({0, 1}, False)] * 2
    messages = in_processes(2, _break, 2)  # 4 of 103, where 3 may be
    assert messages[0] == messages[1]
    assert "4 of 103 files are broken" in messages[0]


def _break(world, each):
    loader = loader_of(world.rank, world.size)
    loader.broken = BrokenSamples(loader.split, 0.03, alone=False)
    for number in range(each):
        loader.broken.report(world.size * number + world.rank, "test")
    try:
        Loaders(loader, (), None, LoaderChoice("memory", "")).share_broken(world)
    except SharedError as error:
        return str(error)
    return set(loader.broken.reasons), loader.broken.too_many


def test_process_0_goes_first(tmp_path):
    assert in_processes(3, _go_first, tmp_path) == [True, True, True]


def _go_first(world, folder: Path):
    def action():
        before = (folder / "cache").exists()
        (folder / "cache").touch()
        return before

    return world.main_first(action) is not world.main


def test_one_gpu_for_each_process(monkeypatch):
    with pytest.raises(UserError, match="device cuda:1: 2 processes cannot share one GPU"):
        choose_device("cuda:1", local_size=2)
    assert choose_device("cpu:3") == CPU
    with pytest.raises(UserError, match="device meta: not usable on this machine; try cpu"):
        choose_device("meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="start at most 2 processes here"):
        choose_device("auto", local_rank=2, local_size=3)


def test_the_group_is_left_as_it_was_found():
    with process_group("cpu") as world:
        assert (world.rank, world.size, world.main, world.device) == (0, 1, True, CPU)
        with process_group("cpu"):
            pass
        assert dist.is_initialized()
    assert not dist.is_initialized()
