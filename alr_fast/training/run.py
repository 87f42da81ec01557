"""A run under way: its folder, its checkpoints, and how a method goes on from one."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alr_fast.bank import LabelBank
from alr_fast.data.index import SampleIndex
from alr_fast.errors import SharedError
from alr_fast.training.checkpoint.manifest import Checkpoint, check_files, last_number
from alr_fast.training.checkpoint.shards import shard
from alr_fast.training.checkpoint.store import CheckpointStore, load
from alr_fast.training.checkpointer import steps_due
from alr_fast.training.config.schema import Config
from alr_fast.training.distributed import World
from alr_fast.training.loaders import Loaders
from alr_fast.training.output.display import RunDisplay
from alr_fast.training.output.loggers import make_loggers
from alr_fast.training.output.records import EpochRecord
from alr_fast.training.output.run_folder import CHECKPOINTS, RunFolder
from alr_fast.training.resume import describe_data
from alr_fast.training.signals import Stopped, StopSignals
from alr_fast.training.trainer import Trainer


class Run:
    """What the methods of a run share. A context manager; all processes make one.

    Args:
        config: Resolved configuration.
        world: The processes.
        loaders: With the labels to train on.
        console: Where progress is shown.
        stop: Signals.
        found: Folder and checkpoint to go on from, None for a new run.

    Attributes:
        config, world, loaders, console: See above.
        path: Folder of the run.
        records: Every epoch so far, of all methods.
        finished: Methods that are trained.

    Raises:
        SharedError: The folder cannot be written, or the checkpoint is damaged.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        loaders: Loaders,
        console: RunDisplay,
        stop: StopSignals,
        found: tuple[Path, Checkpoint] | None,
    ) -> None:
        self.config = config
        self.world = world
        self.loaders = loaders
        self.console = console
        self.records: list[EpochRecord] = []
        self.finished: list[str] = []
        self._stop = stop
        self._folder: RunFolder | None = None  # in process 0
        self._restored: Checkpoint | None = None
        self._number = 0  # of the last checkpoint
        self._saved_at = time.monotonic()
        if found is not None:
            self._load_progress(found[1])

        def open_folder() -> Path | None:
            if world.main:
                folder = RunFolder.create(config) if found is None else RunFolder.open(found[0])
                self._folder = folder
                folder.log_to(make_loggers(config, folder.path, self.records))
                return folder.path
            return None

        # Last things first: what is being written, then the list of broken files, then the folder.
        with ExitStack() as closing:
            self.path: Path = world.from_main(open_folder)
            if self._folder is not None:
                closing.callback(self._folder.close)
                closing.callback(self._folder.save_broken, loaders.train.broken)
            self._store = CheckpointStore(
                self.path / CHECKPOINTS,
                keep=config.checkpoint.keep,
                log=console.warn,
                background=config.checkpoint.background,
                resumed_from=None if found is None else found[1].number,
            )
            closing.callback(self._store.close)
            self._closing = closing.pop_all()

    def _load_progress(self, checkpoint: Checkpoint) -> None:
        check_files(checkpoint)
        self._restored = checkpoint
        # Above a newer one that was passed over, too, because it is damaged.
        self._number = last_number(checkpoint.path.parent)
        progress = checkpoint.progress
        self.records = [EpochRecord.from_json(plain) for plain in progress["records"]]
        self.finished = progress["finished"]
        self.loaders.train.broken.reasons.update(
            {int(sample): tuple(what) for sample, what in progress["broken"].items()}
        )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    @property
    def index(self) -> SampleIndex:
        """The training samples."""
        return self.loaders.train.split.index

    def in_folder(self, write: Callable[..., None], *what: Any) -> None:
        """Calls ``write(folder, *what)`` in process 0.

        Raises:
            SharedError: It cannot be written.
        """
        self.world.on_all_ranks(lambda: write(self._folder, *what) if self.world.main else None)

    def save_if_due(self, trainer: Trainer, method: str, seconds: float) -> None:
        """Writes a checkpoint where steps, time or a signal ask for one.

        Args:
            trainer: The method under way.
            method: Its name.
            seconds: What the epoch under way has taken so far.

        Raises:
            Stopped: A signal came; the checkpoint is complete.
            SharedError: A signal came, and the checkpoint could not be written; or too many samples
                give no image.
        """
        minutes = self.config.checkpoint.minutes
        late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        signal = self._stop.received
        late, stopping, too_many_broken = self.world.any(
            late and self.world.main, signal is not None, self.loaders.train.broken.too_many
        )
        due = late or stopping or steps_due(trainer, self.config)
        if due or too_many_broken:
            self.loaders.share_broken(self.world)
        if not due:
            return
        trainer.share_statistics()
        progress = {
            "method": method,
            "position": trainer.position(),
            "seconds": seconds,
            "records": [record.to_json() for record in self.records],
            "finished": self.finished,
            "broken": self.loaders.train.broken.reasons,
            "device": self.world.device.type,
            "data": self._description,
        }
        # Also after another number of processes began an epoch anew, the newest has the highest.
        earlier = len(self.finished) * self.config.optim.epochs * len(self.loaders.train)
        self._number = max(earlier + trainer.steps_made, self._number + 1)
        tensors, bank = trainer.tensors(), trainer.criterion.bank
        if bank is None:
            self._store.save(self._number, tensors, progress, wait=stopping)
        else:
            tensors |= {
                "bank.rows": self._shard(bank.rows),
                "bank.ids": self._shard(self._ids),
                "bank.given": self._shard(bank.given_labels),
                **self._history(trainer),
            }
            # A bank in a file may be larger than the memory: no copy to write from.
            with bank.host_access():
                wait = stopping or bank.placement == "file"
                self._store.save(self._number, tensors, progress, wait=wait)
        self._saved_at = time.monotonic()
        if stopping:
            where = f"in epoch {trainer.epoch + 1} after step {trainer.step}"
            if self._store.last_error is not None:
                raise SharedError(f"stopped {where}, but {self._store.last_error}")
            raise Stopped(f"stopped by {signal or 'a signal'} {where}; --resume auto goes on there")

    def restore(self, trainer: Trainer, method: str) -> float:
        """Puts the checkpoint that the run goes on from, if there is one, into a fresh trainer.

        Returns:
            Seconds that the epoch under way has taken before.

        Raises:
            SharedError: It does not fit.
        """
        if self._restored is None:
            return 0.0
        checkpoint, self._restored = self._restored, None
        position, rank = checkpoint.progress["position"], f"rank{self.world.rank}."
        same = checkpoint.world_size == self.world.size
        trainer.warm_up_ddp()
        tensors, bank = trainer.tensors(), trainer.criterion.bank
        if not same:
            tensors = {name: t for name, t in tensors.items() if not name.startswith(rank)}
        elif checkpoint.progress["device"] != "cuda":
            tensors.pop(f"{rank}random.cuda", None)  # taken up on a GPU
        if bank is None:
            load(checkpoint, tensors)
        else:
            self._load_with_bank(checkpoint, tensors | self._history(trainer), bank)
            trainer.history.forget(self._given_then(checkpoint) != bank.given_labels)
        own = {n.removeprefix(rank): t for n, t in tensors.items() if n.startswith(rank)}
        trainer.restore(position, own if same else None)
        where = f"in epoch {trainer.epoch + 1} after step {trainer.step}"
        if trainer.epoch == self.config.optim.epochs:
            where = "after its last epoch"
        self.console.log(f"{method}: goes on {where}, from {checkpoint.path}")
        if not same and position["step"]:
            self.console.warn(
                f"the checkpoint is from the middle of an epoch with {checkpoint.world_size} as "
                f"the number of processes; it is {self.world.size} now, and that epoch is begun "
                "anew"
            )
        return checkpoint.progress["seconds"] if same else 0.0

    def _load_with_bank(
        self, checkpoint: Checkpoint, tensors: dict[str, Tensor], bank: LabelBank
    ) -> None:
        ids = torch.empty_like(self._ids)
        load(checkpoint, {"bank.ids": self._shard(ids)})
        if not all(self.world.gather(torch.equal(ids, self._ids))):
            raise SharedError(
                f"{checkpoint.path}: its label bank has its rows in another order than this run; "
                "leave --resume out to start a new run"
            )
        with bank.host_access():
            load(checkpoint, {**tensors, "bank.rows": self._shard(bank.rows)})

    @cached_property
    def _ids(self) -> Tensor:
        """Ids of the samples that this process owns, int64, in the order of its bank's rows."""
        return torch.from_numpy(self.index.sample_ids[self.loaders.train.sampler.rows])

    @cached_property
    def _description(self) -> dict[str, Any]:
        return describe_data(self.index)

    def _given_then(self, checkpoint: Checkpoint) -> Tensor:
        """The given labels that a checkpoint was trained with, in the order of the bank's rows."""
        given = torch.empty_like(self._ids)
        load(checkpoint, {"bank.given": self._shard(given)})
        return given

    def _history(self, trainer: Trainer) -> dict[str, Tensor]:
        named = trainer.history.tensors().items()
        return {f"history.{name}": self._shard(entries) for name, entries in named}

    def _shard(self, rows: Tensor) -> Tensor:
        sampler = self.loaders.train.sampler
        mesh = self.world.mesh(rows.device.type)
        return shard(rows, sampler.offset, sampler.num_samples, mesh)
