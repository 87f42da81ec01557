"""A dry pass before the first epoch: model, losses and saving, each once, on two made-up samples.

What does not fit together fails here, in one line and before images are decoded, not in the first
step, with the second method, or after the last epoch. The model is a throw-away one: nothing of the
run changes.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alr_fast.errors import UserError, naming_options
from alr_fast.losses import Loss
from alr_fast.training.config.schema import Config
from alr_fast.training.distributed import World
from alr_fast.training.models import own_size, precision_of
from alr_fast.training.optim import make_optimizer
from alr_fast.training.random_state import random_state, set_random_state
from alr_fast.training.weights import weights_of
from alr_fast.utils.text import error_text, some_names

SAMPLES = 2  # batch normalisation cannot train on one
_ROUND_TRIP_BYTES = 1 << 30  # larger weights are not loaded back for a check


def random_batch(
    shape: tuple[int, ...], samples: int, precision: str, device: torch.device
) -> Tensor:
    """Standard normal numbers in the form of a batch; the same for the same shape.

    Args:
        shape: Shape of a sample, [C, S, S] or [D].
        samples: Number of samples B.
        precision: Type of images; features are float32, as `FeatureLoader` has them.
        device: Device of the batch.

    Returns:
        [B, C, S, S], channels last, or [B, D].
    """
    numbers = torch.randn((samples, *shape), generator=torch.Generator().manual_seed(0))
    if len(shape) == 1:
        return numbers.to(device)
    return numbers.to(device, getattr(torch, precision), memory_format=torch.channels_last)


def dry_pass(
    model: nn.Module,
    losses: Mapping[str, Loss],
    config: Config,
    world: World,
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
) -> None:
    """Checks that a model and each loss can train, be tested and be saved; waits for no process.

    Weights, gradients and running statistics of the model change; random numbers do not.

    Args:
        model: A model like that of the methods, on the training device, not synchronised with
            those of other processes. It is of no use afterwards.
        losses: The loss of each method, with a bank of `SAMPLES` rows.
        config: Resolved configuration.
        world: The processes.
        input_shape: Shape of a sample, see `build_model`.
        num_classes: Number of classes K.

    Raises:
        UserError: Something fails; the message names the model or the method, and how to fix it.
    """
    states = random_state(world.device)
    name = config.model.name
    check = _ModelCheck(name, model, config.precision, input_shape, num_classes, world)
    try:
        with naming_options(name="model.name", model="model.name"):
            check.evaluates()
            logits = check.trained_logits()
            labels = torch.arange(SAMPLES, device=world.device) % num_classes
            for method, loss in losses.items():
                _check_loss(method, loss, logits.detach(), labels, config.optim.epochs)
            check.learns(logits, labels)
            check.is_saved(ema=config.model.ema_decay is not None)
            check.is_optimised(config)
    finally:
        set_random_state(states, world.device)


class _ModelCheck:
    """The checks of one model."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        precision: str,
        input_shape: tuple[int, ...],
        num_classes: int,
        world: World,
    ) -> None:
        self._name, self._model, self._precision = name, model, precision
        self._shape, self._classes, self._world = input_shape, num_classes, world
        self._batch = random_batch(input_shape, SAMPLES, precision, world.device)
        self._autocast = precision_of(precision, world.device)

    def _refused(self, problem: str) -> UserError:
        return UserError(problem, argument="name", value=self._name)

    @torch.no_grad()
    def evaluates(self) -> None:
        """A forward pass as in tests."""
        self._model.eval()
        self._forward()

    def trained_logits(self) -> Tensor:
        """Logits [B, K] of a forward pass as in training."""
        self._model.train()
        return self._forward()

    def _forward(self) -> Tensor:
        try:
            with self._autocast:
                logits: Any = self._model(self._batch)
        except Exception as error:
            raise self._refused(self._cannot_process(error)) from error
        self._check_logits(logits)
        return logits

    def _cannot_process(self, error: Exception) -> str:
        images = len(self._shape) == 3
        shape = " x ".join(map(str, self._shape))
        problem = f"fails on {'images of ' if images else ''}{shape}{'' if images else ' features'}"
        remedy = "pass another model, or correct it"
        own = own_size(self._name) if images else None
        if own is not None and own != self._shape[-1]:
            remedy = f"pass --data.image_size {own}, the size that it is made for"
        elif images:
            remedy = f"pass another --data.image_size, or {remedy}"
        return f"{problem} ({type(error).__name__}: {error_text(error)}); {remedy}"

    def _check_logits(self, logits: Any) -> None:
        wanted = f"[{SAMPLES}, {self._classes}]"
        if not isinstance(logits, Tensor):
            named = hasattr(logits, "logits") or (isinstance(logits, dict) and "logits" in logits)
            part = "its logits" if named else "one tensor of logits"
            raise self._refused(
                f"returns a {type(logits).__name__}, not a tensor {wanted}; let its forward return "
                f"{part} alone"
            )
        if list(logits.shape) != [SAMPLES, self._classes]:
            raise self._refused(
                f"returns {list(logits.shape)} for {SAMPLES} samples of {self._classes} classes; "
                f"it must return logits {wanted}: build its last layer with num_classes"
            )
        if not logits.is_floating_point():
            raise self._refused(
                f"returns {logits.dtype}; it must return logits, which are not rounded"
            )
        if not logits.isfinite().all():
            lower = self._precision != "float32"
            remedy = "try --precision float32" if lower else "check its weights"
            raise self._refused(f"returns logits that are not finite; {remedy}")

    def learns(self, logits: Tensor, labels: Tensor) -> None:
        """A backward pass."""
        named = dict(self._model.named_parameters())
        trained = [name for name, weight in named.items() if weight.requires_grad]
        if not trained or not logits.requires_grad:
            what = "its logits are detached from them" if trained else "all of them are frozen"
            raise self._refused(f"has no weights that training could change: {what}; correct it")
        try:
            F.cross_entropy(logits.float(), labels).backward()
        except Exception as error:
            reason = f"{type(error).__name__}: {error_text(error)}"
            raise self._refused(f"fails in the backward pass ({reason}); correct it") from error
        missing = [name for name in trained if named[name].grad is None]
        if len(missing) == len(trained):
            raise self._refused("no weight gets a gradient; correct its forward")
        if missing and self._world.size > 1:
            raise self._refused(
                f"{len(missing)} of its weights get no gradient ({some_names(missing)}), for which "
                "several processes would wait; freeze them with requires_grad_(False), or train in "
                "one process"
            )

    def is_saved(self, *, ema: bool) -> None:
        """Writes the weights in memory and reads them back."""
        weights = weights_of(self._model)  # a module with other state is refused there
        if sum(tensor.nbytes for tensor in weights.values()) > _ROUND_TRIP_BYTES:
            return
        try:
            from safetensors.torch import load, save

            self._model.load_state_dict(load(save(weights)))
            if ema:
                copy.deepcopy(self._model)
        except Exception as error:
            reason = f"{type(error).__name__}: {error_text(error)}"
            raise self._refused(
                f"its weights cannot be saved and loaded again ({reason}); correct it, or pass "
                "another model"
            ) from error

    def is_optimised(self, config: Config) -> None:
        """Makes the optimizer."""
        try:
            make_optimizer(self._model, config.optim)
        except Exception as error:
            reason = f"{type(error).__name__}: {error_text(error)}"
            raise UserError(
                f"cannot train {self._name} ({reason}); pass another one",
                argument="optimizer",
                value=config.optim.optimizer,
            ) from error


def _check_loss(method: str, loss: Loss, logits: Tensor, labels: Tensor, epochs: int) -> None:
    """One call of a loss as in the first epoch, and one as in the last."""
    index = torch.arange(SAMPLES, device=logits.device)
    weight = torch.ones(SAMPLES, device=logits.device)
    try:
        for epoch in sorted({0, epochs - 1}):
            loss.set_epoch(epoch)
            value, grad = loss.loss_and_grad(logits, labels, index, row_weight=weight)
            if not isinstance(grad, Tensor) or grad.shape != logits.shape:
                raise ValueError("its gradient has another shape than the logits")
            if not (value.isfinite().all() and grad.isfinite().all()):
                raise ValueError("its value or its gradient is not finite")
    except Exception as error:
        raise UserError(
            f"--methods {method}: its loss fails on logits {list(logits.shape)} "
            f"({type(error).__name__}: {error_text(error)}); correct it, or leave the method out"
        ) from error
