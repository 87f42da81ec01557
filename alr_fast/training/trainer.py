"""One training method at work: net, loss, optimizer and the step that they make together."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alr_fast.bank.history import SampleHistory
from alr_fast.data.loaders.base import Loader
from alr_fast.errors import SharedError
from alr_fast.training.config.schema import Config
from alr_fast.training.distributed import World
from alr_fast.training.optim import learning_rate_factor, make_optimizer
from alr_fast.training.random_state import random_state, set_random_state

# What `Trainer.sums` adds up over an epoch, in this process; the last four where true labels are
# known: samples with a right given label, those of them predicted so, those with a wrong one
# predicted as their true class, and as their given label.
_LOSS, _LOSS_SAMPLES, _RIGHT, _SAMPLES = range(4)
_CLEAN, _CLEAN_CORRECT, _MISLABELLED_CORRECT, _MEMORISED = range(4, 8)
# What `Trainer.skipped` counts, the same in every process.
_IN_EPOCH, _IN_A_ROW = range(2)


class Trainer:
    """Trains one net with one loss.

    A step never waits for the device: loss, accuracy and the number of steps that were left out
    stay there until `progress` is asked for.

    A step whose gradients are not finite leaves the weights as they are: the optimizers are the
    fused ones, which look at the scaler's found-inf tensor by themselves. The rows of the label
    bank that had finite logits keep their update; the others were never touched.

    Args:
        model: Fresh net on the training device.
        criterion: Loss with reduction "sum" (`alr_fast.training.methods`).
        config: Resolved configuration.
        loader: Training batches of this process.
        world: The processes of the run.
        true_labels: int64 [n], of the samples of this process in the order of its bank's rows;
            None where nobody knows them.
        history: Takes what each sample's logits say; None to keep none.

    Attributes:
        model: The net; `evaluated` is what is tested and saved.
        criterion: The loss, which owns the label bank where the method has one.
        optimizer: Holds its state for every weight from the start.
        scheduler: Learning rate by the number of steps made.
        scaler: Factor of float16 gradients, 1 with the other types, and the check for finite ones.
        epoch: Epoch under way, from 0.
        step: Steps made in it.
        steps_made: Steps made in all.
        phase: ``phase(name)`` is entered around each part of a step; the profiler replaces it.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        config: Config,
        loader: Loader,
        world: World,
        *,
        true_labels: Tensor | None = None,
        history: SampleHistory | None = None,
    ) -> None:
        optim = config.optim
        self.model = model
        self.criterion = criterion
        self.history = history
        self.loader = loader
        self.world = world
        self.net = _wrapped(model, config, world)
        self.optimizer = make_optimizer(model, optim)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, learning_rate_factor(optim, steps_per_epoch=len(loader))
        )
        self._half = config.precision == "float16"
        self.scaler = torch.amp.GradScaler(
            world.device.type, init_scale=65536.0 if self._half else 1.0
        )
        self.autocast = torch.autocast(
            world.device.type,
            dtype=getattr(torch, config.precision),
            enabled=config.precision != "float32",
        )
        self.ema = None
        if config.model.ema_decay is not None:
            # With the warm-up it follows the weights from the start, in short runs too.
            self.ema = ModelEmaV3(
                model, decay=config.model.ema_decay, use_warmup=True, exclude_buffers=True
            )
        self.epoch = self.step = self.steps_made = 0
        self.sums = torch.zeros(8, dtype=torch.float64, device=world.device)
        self.skipped = torch.zeros(2, device=world.device)
        # Of the tensor alone: with the trainer itself the net would outlive its method.
        self.optimizer.register_step_pre_hook(partial(_count_skipped, self.skipped))
        self.phase: Callable[[str], AbstractContextManager] = lambda name: nullcontext()
        self._optim = optim
        self._true = None if true_labels is None else true_labels.to(world.device)
        self._replays = config.model.compile in ("reduce-overhead", "max-autotune")
        self._statistics = [b for b in model.buffers() if b.is_floating_point()]
        self._good_statistics = [b.clone() for b in self._statistics]

    @property
    def evaluated(self) -> nn.Module:
        """The net that is tested and saved: the average of the weights where one is kept."""
        return self.model if self.ema is None else self.ema.module

    def begin_epoch(self) -> None:
        """Gets loader, loss and net ready for what is left of the epoch."""
        self.loader.set_epoch(self.epoch, self.step)
        self.criterion.set_epoch(self.epoch)
        self.net.train()

    def end_epoch(self) -> None:
        """Goes on to the next epoch; the sums start anew."""
        self.epoch += 1
        self.step = 0
        self.sums.zero_()
        self.skipped[_IN_EPOCH] = 0

    def train_step(self, batch: dict[str, Tensor]) -> None:
        """One step of the optimizer, on the mean loss over the valid samples of all processes.

        Args:
            batch: See `alr_fast.data.loaders.base`.
        """
        # All processes divide by the number of samples that they have together: their batches may
        # differ in size, and a sample whose file gave no image counts for nothing.
        samples = (batch["label"] >= 0).sum()
        total = samples.clone()
        finish_total = self.world.start_sum(total)
        self.optimizer.zero_grad(set_to_none=True)
        pieces = self._pieces(batch)
        for number, piece in enumerate(pieces, start=1):
            with self._gradients(last=number == len(pieces)):
                if self._replays:
                    torch.compiler.cudagraph_mark_step_begin()
                with self.phase("forward"), self.autocast:
                    logits = self.net(piece["image"])
                if number == 1:
                    finish_total()
                with self.phase("loss"):
                    loss, grad = self._loss_and_grad(logits.detach(), piece, total)
                with self.phase("backward"):
                    logits.backward(grad)
            with torch.no_grad():
                self._add(loss, logits, piece)
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
        self.sums[_SAMPLES] += samples

    def _pieces(self, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        # The same number in every process, whose batches may differ in size.
        number = self._number_of_pieces(self.loader.sampler.smallest_batch(self.step))
        split = {key: tensor.tensor_split(number) for key, tensor in batch.items()}
        return [
            dict(zip(split, tensors, strict=True)) for tensors in zip(*split.values(), strict=True)
        ]

    def _number_of_pieces(self, samples: int) -> int:
        # Two samples or more in each, for batch normalisation.
        return max(min(self._optim.accumulate, samples // 2), 1)

    def _gradients(self, *, last: bool) -> AbstractContextManager:
        # Gradients travel once a step, after the last piece.
        if isinstance(self._ddp, DistributedDataParallel) and not last:
            return self._ddp.no_sync()
        return nullcontext()

    @property
    def _ddp(self) -> nn.Module:
        return getattr(self.net, "_orig_mod", self.net)  # what torch.compile wrapped

    def _loss_and_grad(
        self, logits: Tensor, piece: dict[str, Tensor], total: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and the gradient of the mean over all processes, scaled."""
        # DDP takes the mean over the processes of what is their sum here. Inside of the operation
        # the scaler's factor saves what float16 would flush to 0.
        factor = self.scaler.scale(self.world.size / total.clamp(min=1).float())
        loss, grad = self.criterion.loss_and_grad(
            logits, piece["label"], piece["index"], row_weight=factor.expand(len(logits))
        )
        return loss / factor, grad

    def _add(self, loss: Tensor, logits: Tensor, piece: dict[str, Tensor]) -> None:
        # A loss that is not finite would hide the others for the rest of the epoch.
        if self.history is not None:
            self.history.add(logits, piece["label"], piece["index"])
        finite, labels, predicted = loss.isfinite(), piece["label"], logits.argmax(1)
        as_given = predicted == labels
        self.sums[_LOSS] += torch.where(finite, loss, 0)
        self.sums[_LOSS_SAMPLES] += (labels >= 0).sum() * finite
        self.sums[_RIGHT] += as_given.sum()
        if self._true is not None:
            true = self._true[piece["index"].clamp(min=0)]
            clean, wrong = true == labels, (true != labels) & (labels >= 0)
            counts = (clean, clean & as_given, wrong & (predicted == true), wrong & as_given)
            self.sums[_CLEAN:] += torch.stack(counts).sum(1)

    def prediction_shares(self) -> dict[str, float | None]:
        """What the net predicted in this epoch, over all processes, which must all call this.

        Returns:
            The fields ``clean_correct``, ``mislabelled_correct`` and ``mislabelled_memorised`` of
            an `EpochRecord`; waits for the device.
        """
        sums = self.world.sum(self.sums.clone()).tolist()
        clean, wrong = sums[_CLEAN], sums[_SAMPLES] - sums[_CLEAN]

        def share(count: int, total: float) -> float | None:
            return sums[count] / total if self._true is not None and total else None

        return {
            "clean_correct": share(_CLEAN_CORRECT, clean),
            "mislabelled_correct": share(_MISLABELLED_CORRECT, wrong),
            "mislabelled_memorised": share(_MEMORISED, wrong),
        }

    def progress(self, *, everywhere: bool = False) -> tuple[float, float, int]:
        """Mean loss, accuracy and number of samples of the epoch so far; waits for the device.

        Args:
            everywhere: Over all processes, which must all call this; else over this one.
        """
        sums = self.world.sum(self.sums.clone()) if everywhere else self.sums
        loss, loss_samples, right, samples = sums.tolist()[:_CLEAN]
        mean = loss / loss_samples if loss_samples else math.nan
        return mean, right / max(samples, 1), int(samples)

    def check_skipped(self) -> int:
        """Number of steps of this epoch that were left out; waits for the device.

        Raises:
            SharedError: It were too many, one after the other.
        """
        in_epoch, in_a_row = (int(count) for count in self.skipped.tolist())
        if in_a_row >= self._optim.max_skipped:
            raise SharedError(
                f"the gradients of the last {in_a_row} steps, up to step {self.step} of epoch "
                f"{self.epoch + 1}, were not finite and the weights stand still; " + self.nan_advice
            )
        # Steps that were left out have run through batch normalisation all the same.
        if in_epoch and not all(b.isfinite().all() for b in self._statistics):
            torch._foreach_copy_(self._statistics, self._good_statistics)
            if self.ema is not None:
                for average, buffer in zip(
                    self.ema.module.buffers(), self.model.buffers(), strict=True
                ):
                    average.copy_(buffer)
        elif self._statistics:
            torch._foreach_copy_(self._good_statistics, self._statistics)
        return in_epoch

    @property
    def nan_advice(self) -> str:
        """What a user can try against losses that are not finite."""
        return (
            f"try a lower --optim.lr (now {self._optim.lr}), more --optim.warmup_steps, "
            "--optim.clip_norm 1, or --precision bfloat16 instead of float16"
        )

    def share_statistics(self) -> None:
        """Gives every process the running statistics of process 0, which stand for all.

        DistributedDataParallel does so before each forward pass in training.
        """
        self.world.broadcast_tensors(list(self.model.buffers()))
        if self.ema is not None:
            self.world.broadcast_tensors(list(self.ema.module.buffers()))

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the bank that goes on from step to step, by name; in place.

        Names that begin with ``rank`` belong to one process, the others are the same in all.
        """
        named = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        if self.ema is not None:
            named |= {f"ema.{name}": t for name, t in self.ema.module.state_dict().items()}
        for name, weight in self.model.named_parameters():
            for key, value in self.optimizer.state[weight].items():
                named[f"optimizer.{name}.{key}"] = value
        own = {"sums": self.sums, "skipped": self.skipped, **random_state(self.world.device)}
        bank = self.criterion.bank
        if bank is not None:
            own["bank_status"] = bank.status
            if bank.rounding_state is not None:
                own["bank_rounding"] = bank.rounding_state
        return named | {f"rank{self.world.rank}.{name}": t for name, t in own.items()}

    def position(self) -> dict:
        """Where the method stands, beside `tensors`: JSON-able."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "steps_made": self.steps_made,
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def warm_up_ddp(self) -> None:
        """Brings a fresh trainer into the shape that it has after a first step; changes its state.

        DistributedDataParallel sends gradients in another grouping from the second step on, and
        sums of more than two processes depend on it: a run that goes on would differ in the last
        bits. So this comes before a checkpoint is loaded.
        """
        if self.world.size == 1:
            return
        channels, size = self.loader.split.channels, self.loader.transform.size
        samples = self.loader.sampler.batch_size
        images = torch.zeros(
            # As many as in a piece: a whole batch may not fit into memory.
            (math.ceil(samples / self._number_of_pieces(samples)), channels, size, size),
            dtype=self.loader.dtype,
            device=self.world.device,
        )
        with self.autocast:
            logits = self.net(images.to(memory_format=torch.channels_last))
        logits.backward(torch.zeros_like(logits))
        self.optimizer.zero_grad(set_to_none=True)

    def restore(self, position: dict, own: dict[str, Tensor] | None) -> None:
        """Goes on from a position; `tensors` hold their values already.

        Args:
            position: What `position` gave.
            own: The tensors of this process, without their prefix; None where another number of
                processes wrote them: then the epoch is begun anew.
        """
        self.epoch, self.step, self.steps_made = (
            position[key] for key in ("epoch", "step", "steps_made")
        )
        if own is None:
            self.steps_made = self.epoch * len(self.loader)
            self.step = 0
        else:
            set_random_state(own, self.world.device)
        self.scheduler.load_state_dict({**position["scheduler"], "last_epoch": self.steps_made - 1})
        self.scheduler.step()
        self.scaler.load_state_dict(position["scaler"])
        self._good_statistics = [b.clone() for b in self._statistics]


def _count_skipped(skipped: Tensor, optimizer: torch.optim.Optimizer, *_: object) -> None:
    found = optimizer.found_inf  # set by the scaler for optimizers that leave a step out
    skipped[_IN_EPOCH] += found
    skipped[_IN_A_ROW] += 1
    skipped[_IN_A_ROW] *= found


def _wrapped(model: nn.Module, config: Config, world: World) -> nn.Module:
    net = model
    if world.size > 1:
        net = DistributedDataParallel(
            net,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
    if config.model.compile != "none":
        net = torch.compile(net, mode=config.model.compile, dynamic=False)
    return net
