"""Suite "ranks" of `benchmarks.scaling`: one to four processes train together on the CPU."""

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from alr_fast.bank import LabelBank
from alr_fast.losses import ALRLoss
from alr_fast.training.distributed import World
from alr_fast.training.models import build_model
from alr_fast.training.trainer import Trainer
from benchmarks.harness.averages import percentiles
from benchmarks.harness.environment import environment
from benchmarks.harness.processes import Child
from benchmarks.harness.synthetic import Batches, training_config
from benchmarks.harness.timing import take_turns

PROCESSES = (1, 2, 4)
_ANSWER_LIMIT = 300  # seconds after which a group that does not answer is stopped
_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Scale:
    """The training of the suite."""

    model: str = "conv-small"  # see `alr_fast.training.models`
    shape: tuple[int, int] = (3, 32)  # channels and side of the images
    batch: int = 128  # samples of a step, over all processes
    classes: int = 10  # K
    samples: int = 50_000  # N, over all processes
    turn: int = 4  # steps of a turn


TINY = Scale("conv-tiny", (1, 8), 16, 3, 64, 2)


class Group:
    """Processes that train together, each with its share of the batch and of the bank.

    Args:
        processes: Number of processes.
        threads: Threads of each.
        scale: The training.
        folder: Folder for the file store of the process group.
    """

    def __init__(self, processes: int, threads: int, scale: Scale, folder: Path) -> None:
        self.processes, self.threads = processes, threads
        store = os.fspath(folder / f"store-{processes}-{threads}")
        self._children = [
            Child(rank_process, rank, processes, threads, store, scale) for rank in range(processes)
        ]

    def check(self) -> int:
        """Waits for a step of all processes, together and alone, and compares the weights.

        Returns:
            Bytes of the gradients.

        Raises:
            AssertionError: After a step together the weights of the processes differ, or are equal
                to those after a step of one process alone.
        """
        answers = self._receive()
        together = {answer["together"] for answer in answers}
        assert len(together) == 1, f"{self.processes} processes: their weights differ"
        alone = {answer["alone"] for answer in answers}
        if self.processes > 1:
            assert len(alone) == self.processes, f"{self.processes} processes saw the same samples"
            assert not together & alone, f"{self.processes} processes: gradients did not travel"
        return answers[0]["gradient_bytes"]

    def turn(self) -> dict[str, float]:
        """Milliseconds of a step together, of a step alone, and of the sum of the gradients."""
        for child in self._children:
            child.send(True)
        return self._receive()[0]

    def stop(self) -> None:
        """Ends the processes."""
        for child in self._children:
            child.stop()

    def _receive(self) -> list:
        return [child.receive(_ANSWER_LIMIT) for child in self._children]


def rank_process(
    parent: Connection, rank: int, size: int, threads: int, store: str, scale: Scale
) -> None:
    """A process of a `Group`."""
    torch.set_num_threads(threads)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    try:
        work = _Rank(World(rank, size, size, torch.device("cpu")), scale)
        parent.send(work.first_steps())
        while parent.recv():
            parent.send(work.turn())
    finally:
        dist.destroy_process_group()


class _Rank:
    """One process: the same training with the others and without them."""

    def __init__(self, world: World, scale: Scale) -> None:
        self._scale, self._world = scale, world
        self._batches = Batches(
            samples=scale.samples,
            batch=scale.batch // world.size,
            classes=scale.classes,
            shape=scale.shape,
            rank=world.rank,
            world_size=world.size,
        )
        self._together = self._trainer(world)
        # The same number of processes is busy, but none waits for another.
        self._alone = self._trainer(World(0, 1, 1, world.device))
        weights = self._together.model.parameters()
        self._gradients = torch.zeros(sum(weight.numel() for weight in weights))
        self._number = 0

    def _trainer(self, world: World) -> Trainer:
        torch.manual_seed(0)
        channels, side = self._scale.shape
        model = build_model(
            self._scale.model,
            num_classes=self._scale.classes,
            input_shape=(channels, side, side),
        ).to(memory_format=torch.channels_last)
        bank = LabelBank.from_labels(self._batches.labels, self._scale.classes)
        criterion = ALRLoss(bank, warmup_epochs=0, reduction="sum", unique_index=True)
        config = training_config(self._scale.batch)
        trainer = Trainer(model, criterion, config, self._batches, world)
        trainer.begin_epoch()
        return trainer

    def first_steps(self) -> dict[str, object]:
        """Hashes of the weights after a step, see `Group.check`."""
        found: dict[str, object] = {"gradient_bytes": self._gradients.nbytes}
        for name, trainer in (("together", self._together), ("alone", self._alone)):
            trainer.train_step(self._batches.batch(0))
            weights = [weight.detach().flatten() for weight in trainer.model.parameters()]
            found[name] = hashlib.sha256(torch.cat(weights).numpy()).hexdigest()
        return found

    def turn(self) -> dict[str, float]:
        """See `Group.turn`."""
        first = self._number
        self._number += self._scale.turn
        batches = [self._batches.batch(first + n) for n in range(self._scale.turn)]
        return {
            "step_ms": self._timed(lambda n: self._together.train_step(batches[n])),
            "alone_ms": self._timed(lambda n: self._alone.train_step(batches[n])),
            "all_reduce_ms": self._timed(self._sum),
        }

    def _sum(self, number: int) -> None:
        if self._world.size > 1:
            dist.all_reduce(self._gradients)

    def _timed(self, step: Callable[[int], None]) -> float:
        """Milliseconds of a step until the last process has finished."""
        dist.barrier()
        begin = time.perf_counter()
        for number in range(self._scale.turn):
            step(number)
        dist.barrier()
        return (time.perf_counter() - begin) * 1e3 / self._scale.turn


def combinations(cpus: int) -> list[tuple[int, int]]:
    """Numbers of processes and of their threads.

    The processes divide the CPUs; for comparison there is one process with as many threads.
    """
    found = []
    for processes in PROCESSES:
        threads = max(cpus // processes, 1)
        found += [(1, threads), (processes, threads)]
    return list(dict.fromkeys(sorted(found, key=lambda pair: (pair[0], -pair[1]))))


def measure_ranks(scale: Scale, seconds: float) -> list[dict[str, object]]:
    """One row for each combination of processes and threads, which train in turn.

    Args:
        scale: The training.
        seconds: Time for all turns.
    """
    facts = environment("cpu")
    cpus = len(os.sched_getaffinity(0))
    groups: list[Group] = []
    with tempfile.TemporaryDirectory(prefix="alr_fast_") as folder:
        try:
            gradient_bytes = 0
            for processes, threads in combinations(cpus):
                groups.append(Group(processes, threads, scale, Path(folder)))
                gradient_bytes = groups[-1].check()  # one after the other: they share the CPUs
            turns = {(g.processes, g.threads): g.turn for g in groups}
            for turn in turns.values():
                turn()
            measured = take_turns(turns, seconds, at_least=_LEAST_ROUNDS)
        finally:
            for group in groups:
                group.stop()
    return [
        {
            **_row(scale, cpus, pair, measured),
            "gradient_bytes": gradient_bytes,
            "rounds": len(times),
            "steps_per_turn": scale.turn,
            "environment": facts,
        }
        for pair, times in measured.items()
    ]


def _row(
    scale: Scale,
    cpus: int,
    pair: tuple[int, int],
    measured: dict[tuple[int, int], list[dict[str, float]]],
) -> dict[str, object]:
    """Description and figures of a combination of processes and threads."""
    processes, threads = pair
    steps, alone, sums = (
        [turn[name] for turn in measured[pair]] for name in ("step_ms", "alone_ms", "all_reduce_ms")
    )
    base = [turn["step_ms"] for turn in measured[1, threads]]
    row: dict[str, object] = {
        "suite": "ranks",
        "processes": processes,
        "threads": threads,
        "cpus": cpus,
        "model": scale.model,
        "image": [scale.shape[0], scale.shape[1], scale.shape[1]],
        "batch": scale.batch,
        "batch_per_process": scale.batch // processes,
        **percentiles([scale.batch / ms * 1e3 for ms in steps], "images_per_second"),
        **percentiles(steps, "step_ms"),
        # Ratios within a round, as the speed of the machine changes.
        "times_one_process": statistics.median(a / b for a, b in zip(base, steps, strict=True)),
    }
    if processes > 1:
        row |= percentiles(alone, "alone_ms")
        row["together_ms"] = statistics.median(a - b for a, b in zip(steps, alone, strict=True))
        row |= percentiles(sums, "all_reduce_ms")
    if processes * threads > cpus:
        row["note"] = "more threads than CPUs: the processes wait for each other"
    return row
