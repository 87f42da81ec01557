"""Saves the state of a method to checkpoints and restores it."""

import time
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from alr_fast.bank import LabelBank
from alr_fast.errors import SharedError
from alr_fast.training.checkpoint.dcp import on_all_ranks
from alr_fast.training.checkpoint.manifest import Checkpoint
from alr_fast.training.checkpoint.shards import shard
from alr_fast.training.checkpoint.store import load, saved_tensors
from alr_fast.training.progress import class_counts_to_json
from alr_fast.training.resume import describe_data
from alr_fast.training.run import Run
from alr_fast.training.run_paths import CONFIG
from alr_fast.training.sharded_bank import common_share
from alr_fast.training.signals import Stopped
from alr_fast.training.trainer import Trainer
from alr_fast.utils.shell import python_command


class Checkpointer:
    """Checkpoints of one method of a run.

    Args:
        run: The run.
        trainer: Trainer of the method.
        method: Name of the method.
    """

    def __init__(self, run: Run, trainer: Trainer, method: str) -> None:
        self._run, self._trainer, self._method = run, trainer, method
        self._own: set[int] = set()  # numbers of its checkpoints
        self._restored_steps = -1
        self._sample_ids = torch.from_numpy(run.index.sample_ids[run.rows])

    @property
    def steps_due(self) -> bool:
        """Whether a checkpoint is due by the number of steps."""
        every = self._run.config.checkpoint.steps
        return every is not None and self._trainer.steps_made % every == 0

    @property
    def look_now(self) -> bool:
        """Whether `save_if_due` should be called after this step.

        Several processes have to agree on a signal, which they do every ``log.every`` steps; a
        single one stops after the step.
        """
        run, steps = self._run, self._trainer.steps_made
        stopping = run.world.size == 1 and run.stop.received is not None
        return stopping or self.steps_due or steps % run.config.log.every == 0

    def save_if_due(self, seconds: float) -> None:
        """Writes a checkpoint if one is due by steps, time or a signal.

        Args:
            seconds: Duration of the current epoch so far.

        Raises:
            Stopped: A signal came; the checkpoint is complete.
            SharedError: A signal came and the checkpoint could not be written, or too many images
                are unreadable.
        """
        run, trainer = self._run, self._trainer
        signal, minutes = run.stop.received, run.config.checkpoint.minutes
        late = minutes is not None and time.monotonic() - run.saved_at >= 60 * minutes
        late, stopping, too_many_broken = run.world.any(
            late and run.world.main, signal is not None, run.loaders.train.broken.too_many
        )
        due = late or stopping or self.steps_due
        if due or too_many_broken:
            run.loaders.share_broken(run.world)
        if not due:
            return
        self._save(seconds, wait=stopping)
        if stopping:
            where = f"in epoch {trainer.epoch + 1} after step {trainer.step}"
            if trainer.epoch == run.config.optim.epochs:
                where = "after its last epoch"
            if run.store.last_error is not None:
                raise SharedError(f"stopped {where}, but {run.store.last_error}")
            by = {None: "a signal", "SIGINT": "Ctrl-C"}.get(signal, signal)
            raise Stopped(
                f"stopped by {by} {where} ({self._method}); checkpoint {run.last_checkpoint} "
                f"resumes there: {run.resume_command}"
            )

    def complete(self, *, written: bool) -> None:
        """Sees to it, after the last epoch, that missing files of the method can be made later.

        If there are any, its last state stays in a checkpoint. So does that of the methods after
        it, because it contains the figures of all methods.

        Args:
            written: Whether weights and label bank of the method are written.
        """
        run, method, store = self._run, self._method, self._run.store
        source = run.checkpoint_of(method)
        if written and source is not None:
            store.pinned.discard(source.number)
        if not written:
            run.incomplete[method] = ""
        stepped = self._trainer.steps_made != self._restored_steps
        if run.incomplete and stepped:
            self.save_last()
        if written:
            return
        number = source.number if source is not None else None
        if store.written in self._own:
            number = store.written
        command = run.resume_command
        if number is None:
            again = ("--config", run.path.absolute() / CONFIG, "--methods", method)
            advice = f"they are lost; train again with: {python_command('alr_fast.train', *again)}"
        elif stepped and store.last_error is not None:
            advice = f"checkpoint {number} remains; to train again from there: {command}"
        else:
            advice = f"checkpoint {number} has them; to write them: {command}"
        if number is not None:
            store.pinned.add(number)
        run.incomplete[method] = f"{method}: its weights or its label bank are missing; {advice}"
        run.console.warn(run.incomplete[method])

    def save_last(self) -> None:
        """Writes a checkpoint after the last epoch."""
        self._save(0.0, wait=True)

    def _save(self, seconds: float, *, wait: bool) -> None:
        run, trainer = self._run, self._trainer
        run.check_folder()
        trainer.share_statistics()
        progress = {
            "method": self._method,
            "position": trainer.position(),
            "seconds": seconds,
            "records": [record.to_json() for record in run.records],
            "finished": run.finished,
            "class_counts": class_counts_to_json(run.class_counts),
            "incomplete": list(run.incomplete),
            "broken": run.loaders.train.broken.reasons,
            "device": run.world.device.type,
            "data": self._data_facts,
        }
        # Increases even after an epoch that another number of processes has started again.
        earlier = len(run.finished) * run.config.optim.epochs * len(run.loaders.train)
        run.last_checkpoint = max(earlier + trainer.steps_made, run.last_checkpoint + 1)
        self._own.add(run.last_checkpoint)
        tensors, bank = trainer.tensors(), trainer.criterion.bank
        if bank is not None:
            progress["given_share"] = common_share(bank, trainer.history, run.world)
            given = {"bank.ids": self._sample_ids, "bank.given": bank.given_labels}
            tensors |= self._sharded({**given, **self._learned(bank)})
            # A bank in a file may be larger than the memory: it is written without a copy.
            wait = wait or bank.placement == "file"
        with nullcontext() if bank is None else bank.host_access():
            run.store.save(run.last_checkpoint, tensors, progress, wait=wait)
        run.saved_at = time.monotonic()

    @cached_property
    def _data_facts(self) -> dict[str, Any]:
        return describe_data(self._run.index)

    def restore(self) -> float:
        """Loads the checkpoint that the run resumes from, if it is of this method.

        Returns:
            Duration of the current epoch before the checkpoint, in seconds.

        Raises:
            SharedError: It does not fit the run.
        """
        run, trainer, checkpoint = self._run, self._trainer, self._run.checkpoint_of(self._method)
        if checkpoint is None:
            return 0.0
        position, rank = checkpoint.progress["position"], f"rank{run.world.rank}."
        change, same_size = run.start.change, checkpoint.world_size == run.world.size
        same_batches = same_size and change is None
        trainer.warm_up_ddp()
        tensors, bank = trainer.tensors(), trainer.criterion.bank
        if not same_batches:
            tensors = {name: t for name, t in tensors.items() if not name.startswith(rank)}
        elif checkpoint.progress["device"] != "cuda":
            tensors.pop(f"{rank}random.cuda", None)  # written on a CPU, resumed on a GPU
        if bank is None:
            load(checkpoint, tensors)
        else:
            status = f"{rank}bank_status"
            if status in tensors:
                # Earlier versions saved scratch of the kernels behind the counters.
                tensors[status] = _as_saved(checkpoint, status, bank.status)
            self._load_with_bank(checkpoint, tensors, bank)
            if status in tensors:
                bank.status.copy_(tensors[status][: len(bank.status)])
        own = {n.removeprefix(rank): t for n, t in tensors.items() if n.startswith(rank)}
        trainer.restore(position, own if same_batches else None)
        self._restored_steps = trainer.steps_made
        where = f"in epoch {trainer.epoch + 1} after step {trainer.step}"
        if trainer.epoch == run.config.optim.epochs:
            where = "after its last epoch"
        run.console.log(f"{self._method}: resumes {where}, from {checkpoint.path}")
        if change is not None:
            again = f"; epoch {trainer.epoch + 1} starts anew" if position["step"] else ""
            held_out = run.config.data.validation > 0
            drawn = "; the held-out samples are drawn anew" if held_out else ""
            run.console.warn(f"{change}{again}{drawn}")
        elif not same_size and position["step"]:
            run.console.warn(
                "the checkpoint was written in the middle of an epoch by another number of "
                f"processes ({checkpoint.world_size}, now {run.world.size}); that epoch starts "
                "again"
            )
        return checkpoint.progress["seconds"] if same_batches else 0.0

    def _load_with_bank(
        self, checkpoint: Checkpoint, tensors: dict[str, Tensor], bank: LabelBank
    ) -> None:
        run, learned = self._run, self._learned(bank)
        if run.start.change is not None:
            with bank.host_access():
                given = run.start.change.load(checkpoint, learned, run.rows, run.world)
            load(checkpoint, tensors)
        else:
            ids, given = torch.empty_like(self._sample_ids), torch.empty_like(self._sample_ids)
            load(checkpoint, self._sharded({"bank.ids": ids, "bank.given": given}))
            if not all(run.world.gather(torch.equal(ids, self._sample_ids))):
                raise SharedError(
                    f"{checkpoint.path}: its label bank has its rows in another order than this "
                    "run; leave --resume out to start a new run"
                )
            with bank.host_access():
                load(checkpoint, {**tensors, **self._sharded(learned)})
        if self._trainer.history is not None:
            self._trainer.history.forget(given != bank.given_labels)

    def _learned(self, bank: LabelBank) -> dict[str, Tensor]:
        history = {} if self._trainer.history is None else self._trainer.history.tensors()
        return {"bank.rows": bank.rows, **{f"history.{name}": t for name, t in history.items()}}

    def _sharded(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        sampler, world = self._run.loaders.train.sampler, self._run.world
        return {
            name: shard(t, sampler.offset, sampler.num_samples, world.mesh(t.device.type))
            for name, t in tensors.items()
        }


def _as_saved(checkpoint: Checkpoint, name: str, tensor: Tensor) -> Tensor:
    """A vector for the saved one of that name: `tensor`, or a longer one where that is longer."""
    saved = on_all_ranks(lambda: saved_tensors(checkpoint)).get(name)
    if saved is None or len(saved[0]) != 1 or saved[0][0] <= len(tensor):
        return tensor
    return tensor.new_zeros(saved[0])
