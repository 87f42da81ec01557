"""A training method at work: model, loss, optimizer and their training step."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol, cast

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alr_fast.bank.history import SampleHistory
from alr_fast.data.loaders.base import Loader
from alr_fast.errors import SharedError
from alr_fast.losses import Loss
from alr_fast.training.config.schema import Config
from alr_fast.training.distributed import World
from alr_fast.training.epoch_sums import EpochResult, EpochSums
from alr_fast.training.models import precision_of
from alr_fast.training.optim import learning_rate_factor, make_optimizer
from alr_fast.training.random_state import random_state, set_random_state

# Entries of `Trainer.skipped`, which is the same in all processes.
_IN_EPOCH, _CONSECUTIVE = range(2)


class Trainer:
    """Trains one model with one loss.

    A step never waits for the device: loss, accuracy and the number of skipped steps stay there
    until `progress` reads them.

    A step with gradients that are not finite leaves the weights unchanged: the optimizers are the
    fused ones, which check the scaler's found-inf tensor themselves. Label bank rows with finite
    logits keep their update; the others were never changed.

    Args:
        model: Fresh model on the training device.
        criterion: Loss with reduction "sum" (`alr_fast.training.methods`).
        config: Resolved configuration.
        loader: Training batches of this process.
        world: The processes of the run.
        true_labels: int64 [n], clean labels of the samples of this process in the order of its
            bank; None if unknown.

    Attributes:
        model: The model without the wrappers for processes and compilation.
        criterion: The loss, which owns the label bank if the method has one.
        history: Training history of each sample of the label bank; None without a bank.
        optimizer: Has its state for every weight from the start.
        scheduler: Learning rate as a function of the steps made.
        scaler: Scales float16 gradients (factor 1 in other precisions) and checks that gradients
            are finite.
        epoch: Current epoch, from 0.
        step: Steps made in it.
        steps_made: Steps made in all epochs.
        sums: Sums over the current epoch.
        skipped: float32 [2], skipped steps: in the current epoch, and consecutive ones up to now.
        phase: ``phase(name)`` is entered around each part of a step; the profiler replaces it.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Loss,
        config: Config,
        loader: Loader,
        world: World,
        *,
        true_labels: Tensor | None = None,
    ) -> None:
        self.model = net = model
        self.criterion = criterion
        self.loader = loader
        self.world = world
        self.history = None
        if criterion.bank is not None:
            self.history = SampleHistory(criterion.bank.given_labels, world.device)
        self._no_sync: Callable[[], AbstractContextManager] = nullcontext
        if world.size > 1:
            gpu = [world.device] if world.device.type == "cuda" else None
            net = DistributedDataParallel(model, device_ids=gpu, gradient_as_bucket_view=True)
            self._no_sync = net.no_sync
        if config.model.compile != "none":
            # Annotated as a function; of a module torch.compile makes a module.
            net = cast(nn.Module, torch.compile(net, mode=config.model.compile, dynamic=False))
        self._net = net
        self._optim = config.optim
        self.optimizer = make_optimizer(model, config.optim)
        factor = learning_rate_factor(config.optim, steps_per_epoch=len(loader))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self._half = config.precision == "float16"
        scale = 65536.0 if self._half else 1.0
        self.scaler = torch.amp.GradScaler(world.device.type, init_scale=scale)
        self.autocast = precision_of(config.precision, world.device)
        self.ema, decay = None, config.model.ema_decay
        if decay is not None:
            # With the warm-up the EMA follows the weights from the start, in short runs too.
            self.ema = ModelEmaV3(model, decay=decay, use_warmup=True, exclude_buffers=True)
        self.epoch = self.step = self.steps_made = 0
        self.sums = EpochSums(world.device)
        self.skipped = torch.zeros(2, device=world.device)
        # The hook gets the tensor alone: a reference to the trainer would be a cycle, which would
        # keep the model in memory after its method has ended.
        self.optimizer.register_step_pre_hook(partial(_count_skipped, self.skipped))
        self.phase: Callable[[str], AbstractContextManager] = lambda name: nullcontext()
        self._true = None if true_labels is None else true_labels.to(world.device)
        self._replays = config.model.compile in ("reduce-overhead", "max-autotune")
        self._statistics = [b for b in model.buffers() if b.is_floating_point()]
        self._good_statistics = [b.clone() for b in self._statistics]

    @property
    def evaluated(self) -> nn.Module:
        """The model that is tested and saved: the EMA of the weights if there is one."""
        return self.model if self.ema is None else self.ema.module

    def begin_epoch(self) -> None:
        """Prepares loader, loss and model for the remaining steps of the epoch."""
        self.loader.set_epoch(self.epoch, self.step)
        self.criterion.set_epoch(self.epoch)
        self._net.train()

    def end_epoch(self) -> None:
        """Advances to the next epoch and resets the sums."""
        self.epoch += 1
        self.step = 0
        self.sums.values.zero_()
        self.skipped[_IN_EPOCH] = 0

    def train_step(self, batch: dict[str, Tensor]) -> None:
        """One optimizer step on the mean loss over the valid samples of all processes.

        Args:
            batch: See `alr_fast.data.loaders.base`.
        """
        # All processes divide by their common number of valid samples: their batches may differ
        # in size, and a sample without a readable image does not count.
        samples = (batch["label"] >= 0).sum()
        total = samples.clone()
        finish_total = self.world.start_sum(total)
        self.optimizer.zero_grad(set_to_none=True)
        micro_batches = self._micro_batches(batch)
        for number, micro_batch in enumerate(micro_batches, start=1):
            # Gradients are averaged over the processes once a step, after the last micro-batch.
            with nullcontext() if number == len(micro_batches) else self._no_sync():
                if self._replays:
                    torch.compiler.cudagraph_mark_step_begin()
                with self.phase("forward"), self.autocast:
                    logits = self._net(micro_batch["image"])
                if number == 1:
                    finish_total()
                with self.phase("loss"):
                    loss, grad = self._loss_and_grad(logits.detach(), micro_batch, total)
                with self.phase("backward"):
                    logits.backward(grad)
            with torch.no_grad():
                self._add(loss, logits, micro_batch)
        with self.phase("optimizer"):
            if self._optim.clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self._optim.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update(None if self._half else 1.0)
            self.scheduler.step()
            self.step += 1
            self.steps_made += 1
            if self.ema is not None:
                self.ema.update(self.model, step=self.steps_made)
        self.sums.samples += samples

    def _micro_batches(self, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        # The same number in all processes, although their batches may differ in size.
        number = self._num_micro_batches(self.loader.sampler.smallest_batch(self.step))
        split = {key: tensor.tensor_split(number) for key, tensor in batch.items()}
        return [{key: parts[part] for key, parts in split.items()} for part in range(number)]

    def _num_micro_batches(self, samples: int) -> int:
        # Batch normalisation needs two samples or more in each.
        return max(min(self._optim.accumulate, samples // 2), 1)

    def _loss_and_grad(
        self, logits: Tensor, micro_batch: dict[str, Tensor], total: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and the scaled gradient of the mean over all processes."""
        # DDP averages gradients over the processes; they have to be added up here. The scaler's
        # factor is applied inside the operation, before small float16 values are flushed to 0.
        factor = self.scaler.scale(self.world.size / total.clamp(min=1).float())
        given, index = micro_batch["label"], micro_batch["index"]
        weight = factor.expand(len(logits))
        loss, grad = self.criterion.loss_and_grad(logits, given, index, row_weight=weight)
        return loss / factor, grad

    def _add(self, loss: Tensor, logits: Tensor, micro_batch: dict[str, Tensor]) -> None:
        given, index = micro_batch["label"], micro_batch["index"]
        if self.history is not None:
            self.history.add(logits, given, index)
        clean = None if self._true is None else self._true[index.clamp(min=0)]
        self.sums.add(loss, logits.argmax(1), given, clean)

    def progress(self, *, everywhere: bool = False) -> EpochResult:
        """Training figures of the epoch so far; waits for the device.

        Args:
            everywhere: Whether to include all processes, which must then all call this; else the
                figures are those of this process.
        """
        sums = self.sums.values
        if everywhere:
            sums = self.world.sum(sums.clone())
        return EpochResult.from_sums(sums.tolist(), clean_labels=self._true is not None)

    def check_skipped(self) -> int:
        """Number of skipped steps of this epoch; waits for the device.

        Raises:
            SharedError: Too many consecutive skipped steps.
        """
        in_epoch, consecutive = (int(count) for count in self.skipped.tolist())
        if consecutive >= self._optim.max_skipped:
            raise SharedError(
                f"the gradients of the last {consecutive} steps, up to step {self.step} of epoch "
                f"{self.epoch + 1}, were not finite and the weights did not change; "
                + self.nan_advice
            )
        # Skipped steps have updated the running statistics of batch normalisation all the same.
        if in_epoch and not all(b.isfinite().all() for b in self._statistics):
            torch._foreach_copy_(self._statistics, self._good_statistics)
            if self.ema is not None:
                torch._foreach_copy_(list(self.ema.module.buffers()), list(self.model.buffers()))
        elif self._statistics:
            torch._foreach_copy_(self._good_statistics, self._statistics)
        return in_epoch

    @property
    def nan_advice(self) -> str:
        """Advice to the user against losses that are not finite."""
        return (
            f"try a lower --optim.lr (now {self._optim.lr}), more --optim.warmup_steps, "
            "--optim.clip_norm 1, or --precision bfloat16 instead of float16"
        )

    def share_statistics(self) -> None:
        """Copies the running statistics of process 0 to all processes.

        DistributedDataParallel does so before each forward pass in training.
        """
        self.world.broadcast_tensors(list(self.model.buffers()))
        if self.ema is not None:
            self.world.broadcast_tensors(list(self.ema.module.buffers()))

    def tensors(self) -> dict[str, Tensor]:
        """State of the method except for bank and history, by name; loaded in place.

        Names that begin with ``rank`` belong to one process, the others are the same in all.
        """
        named = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        if self.ema is not None:
            named |= {f"ema.{name}": t for name, t in self.ema.module.state_dict().items()}
        for name, weight in self.model.named_parameters():
            for key, value in self.optimizer.state[weight].items():
                named[f"optimizer.{name}.{key}"] = value
        own = random_state(self.world.device)
        own |= {"sums": self.sums.values, "skipped": self.skipped}
        bank = self.criterion.bank
        if bank is not None:
            own["bank_status"] = bank.status
            if bank.rounding_state is not None:
                own["bank_rounding"] = bank.rounding_state
        return named | {f"rank{self.world.rank}.{name}": t for name, t in own.items()}

    def position(self) -> dict[str, Any]:
        """The part of the state that is not in `tensors`: JSON-able."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "steps_made": self.steps_made,
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, position: dict[str, Any], own: dict[str, Tensor] | None) -> None:
        """Resumes from a position; `tensors` already have the saved values.

        Args:
            position: Result of `position`.
            own: The tensors of this process, without their prefix; None if another number of
                processes wrote them: the epoch then starts again.
        """
        self.epoch = position["epoch"]
        if own is None:
            self.step, self.steps_made = 0, self.epoch * len(self.loader)
        else:
            self.step, self.steps_made = position["step"], position["steps_made"]
            set_random_state(own, self.world.device)
        self.scheduler.load_state_dict({**position["scheduler"], "last_epoch": self.steps_made - 1})
        self.scheduler.step()
        self.scaler.load_state_dict(position["scaler"])
        self._good_statistics = [b.clone() for b in self._statistics]
        if self.criterion.bank is not None:
            trained = self.epoch + (self.step > 0)
            self.criterion.bank.announce(trained, self.criterion.given_share(trained))

    def warm_up_ddp(self) -> None:
        """Brings a fresh DistributedDataParallel into its state after a first step.

        From the second step on it groups gradients differently, and sums over more than two
        processes depend on the grouping: a resumed run would differ in the last bits. This changes
        the state of the trainer, so it comes before a checkpoint is loaded.
        """
        if self.world.size == 1:
            return
        samples = self.loader.sampler.batch_size
        # The size of a micro-batch: a whole batch may not fit into memory.
        samples = math.ceil(samples / self._num_micro_batches(samples))
        with self.autocast:
            logits = self._net(self.loader.zeros(samples))
        logits.backward(torch.zeros_like(logits))
        self.optimizer.zero_grad(set_to_none=True)


class _ScaledOptimizer(Protocol):
    found_inf: Tensor  # set by the scaler for optimizers that skip a step by themselves


def _count_skipped(skipped: Tensor, optimizer: _ScaledOptimizer, *_: object) -> None:
    skipped[_IN_EPOCH] += optimizer.found_inf
    skipped[_CONSECUTIVE] += 1
    skipped[_CONSECUTIVE] *= optimizer.found_inf
