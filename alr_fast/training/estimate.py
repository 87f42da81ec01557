"""How long a run will take, from a few images and a few steps, and what would take less."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from alr_fast.data.images.decode import decode_square, prepare
from alr_fast.data.images.sources import BrokenImage
from alr_fast.data.loaders.transform import Transform, for_evaluation
from alr_fast.errors import UserError
from alr_fast.training.config.schema import Config
from alr_fast.training.distributed import World
from alr_fast.training.dry_pass import SAMPLES, random_batch
from alr_fast.training.models import precision_of
from alr_fast.training.optim import make_optimizer
from alr_fast.training.random_state import random_state, set_random_state
from alr_fast.training.run_data import RunData, num_workers
from alr_fast.utils.machine import usable_cores

LONG_EPOCH = 60.0  # seconds, above which a faster option is named
_IMAGES = 16  # that are decoded
_LOADING_SECONDS, _STEP_SECONDS = 0.5, 0.3  # spent on each measurement, about
_STEP_SHARE, _MOST_STEP_SECONDS = 0.01, 4.0  # or this share of a longer run, at most
_REPEATS = 3  # of a step; the first one prepares
_FORWARD = 1 / 3  # of the time of a step
_SMALLEST = 48  # size in pixels that is proposed: fewer images are better than smaller ones


@dataclass(frozen=True)
class Estimate:
    """Seconds that parts of a run take.

    Attributes:
        once: Decoding all images into memory; 0 if there is none.
        loading: Decoding the images of an epoch; 0 if they are in memory.
        steps: Training steps of an epoch, and the tests after it.
        epochs: Epochs of all methods together.
        overlap: Whether images are decoded while a GPU makes the steps.
        faster: An option that makes an epoch shorter, and the seconds of that; None if there is
            none, or no need.
    """

    once: float
    loading: float
    steps: float
    epochs: int
    overlap: bool = False
    faster: tuple[str, float] | None = None

    @property
    def epoch(self) -> float:
        """Seconds of an epoch."""
        return max(self.loading, self.steps) if self.overlap else self.loading + self.steps

    @property
    def total(self) -> float:
        """Seconds of the run."""
        return self.once + self.epochs * self.epoch

    def __str__(self) -> str:
        parts = ""
        if self.loading > self.epoch / 10:
            parts = f" (loading {rough(self.loading)}, steps {rough(self.steps)})"
        once = ""
        if self.once > self.total / 10:
            once = f" with {rough(self.once)} of decoding"
        text = f"{rough(self.epoch)} an epoch{parts}, {rough(self.total)} in all{once}"
        if self.faster is not None:
            option, seconds = self.faster
            text += f"; {option} would take {rough(seconds)} an epoch"
        return f"about {text}"


def rough(seconds: float) -> str:
    """A time in one number: ``0.2 s``, ``5 s``, ``14 min``, ``7 h``, ``3 days``."""
    if seconds < 9.5:
        return f"{max(seconds, 0.1):.1g} s"
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"


def estimate_time(
    model: nn.Module,
    config: Config,
    methods: Sequence[str],
    data: RunData,
    transform: Transform,
    loader: str,
    world: World,
) -> Estimate | None:
    """Estimates the time of a run on this machine, as it is loaded now; waits for no process.

    The steps are those of the model alone, on made-up images; the weights of the model change.

    Args:
        model: A model that has passed `dry_pass`, on the training device.
        config: Resolved configuration.
        methods: Its methods that are still to be trained.
        data: Samples to train and test on.
        transform: Transform of training images.
        loader: Name of the loader of the training images.
        world: The processes.

    Returns:
        None if the model will be compiled: its speed is not known before.

    Raises:
        UserError: A batch does not fit into the memory.
    """
    if config.model.compile != "none":
        return None
    states = random_state(world.device)
    try:
        probe = _Probe(model, config, data, transform, loader, world)
        return probe.estimate(config.optim.epochs * len(methods))
    finally:
        set_random_state(states, world.device)


class _Probe:
    """Measures loading and steps; arguments as of `estimate_time`."""

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        data: RunData,
        transform: Transform,
        loader: str,
        world: World,
    ) -> None:
        self._model, self._config, self._data = model, config, data
        self._transform, self._loader, self._world = transform, loader, world
        self._optimizer = make_optimizer(model, config.optim)
        self._autocast = precision_of(config.precision, world.device)
        batch = max(config.optim.batch_size // world.size, 1)
        self._micro_batches = max(min(config.optim.accumulate, batch // 2), 1)
        samples = len(data.train)
        if config.data.epoch_samples is not None:
            samples = min(samples, config.data.epoch_samples)
        self._samples = samples / world.size  # of this process in an epoch
        self._batch = min(batch, max(math.ceil(self._samples), SAMPLES))
        tests = sum(map(len, data.tests))
        validation = 0 if data.validation is None else len(data.validation)
        self._tested = (tests + validation) / world.size
        self._on_gpu = world.device.type == "cuda"

    def estimate(self, epochs: int) -> Estimate:
        """The estimate for this number of epochs, of all methods together."""
        once = loading = 0.0
        if self._data.train.values is None:
            image = self._seconds_per_image()
            everything = len(self._data.train) / self._world.size + self._tested
            if self._loader == "memory":
                once = everything * image
            elif not (self._loader == "dali" and self._on_gpu):
                loading = (self._samples + self._tested) * image
        steps = self._epoch_of_steps(self._transform.size, epochs)
        found = Estimate(once, loading, steps, epochs, overlap=self._on_gpu)
        if found.epoch <= LONG_EPOCH:
            return found
        return replace(found, faster=self._faster(found))

    def _faster(self, found: Estimate) -> tuple[str, float] | None:
        """The option that makes a long epoch shorter."""
        size = self._transform.size // 2
        small = size >= _SMALLEST and self._data.train.values is None
        if small and found.steps >= found.loading:
            try:
                steps = self._epoch_of_steps(size, found.epochs)
            except (UserError, RuntimeError, ValueError, AssertionError):
                pass  # a model of one size
            else:
                loading = 0.0 if self._on_gpu else found.loading
                if loading + steps < 0.7 * found.epoch:
                    return f"--data.image_size {size}", loading + steps
        half = len(self._data.train) // 2
        if self._config.data.epoch_samples is not None:
            half = self._config.data.epoch_samples // 2
        if half < self._data.train.index.num_classes * self._world.size:
            return None
        return f"--data.epoch_samples {half}", found.epoch / 2

    # Loading.

    def _seconds_per_image(self) -> float:
        """Seconds for an image, while all workers decode."""
        split, transform = self._data.train, self._transform
        if self._loader == "memory":
            transform = for_evaluation(transform)
        rows = np.linspace(0, len(split) - 1, min(len(split), _IMAGES)).astype(np.int64)
        draws = transform.draw(np.random.default_rng(0), len(rows))
        # DALI decodes whole images.
        reduce = self._loader != "dali"
        began, done = time.perf_counter(), 0
        for row, place, shape in zip(rows.tolist(), draws.place, draws.shape, strict=True):
            try:
                encoded = prepare(split.images.read(row))
                box = transform.box(encoded.height, encoded.width, place, shape)
                decode_square(encoded, box, transform.size, reduce=reduce)
            except BrokenImage:
                continue
            if done == 0:  # the first call imports a decoder
                began = time.perf_counter()
            done += 1
            if time.perf_counter() - began > _LOADING_SECONDS:
                break
        seconds = (time.perf_counter() - began) / max(done - 1, 1)
        workers = max(num_workers(self._config.data, self._world.local_size), 1)
        cores = max(usable_cores() // self._world.local_size, 1)
        return seconds / min(workers, cores)

    # Steps.

    def _epoch_of_steps(self, size: int, epochs: int) -> float:
        """Seconds of the steps of an epoch with images of a size, and of the tests after it."""
        per_sample, fixed = self._step(size, epochs)
        steps = math.ceil(self._samples / self._batch)
        return self._samples * per_sample + steps * fixed + self._tested * per_sample * _FORWARD

    def _step(self, size: int, epochs: int) -> tuple[float, float]:
        """Seconds of a step for each sample of a batch, and for the weights.

        The larger the batch, the closer is its time to that of a whole one.
        """
        largest = max(self._batch // self._micro_batches, SAMPLES)
        shape = self._data.train.input_shape(size)
        samples, seconds = min(largest, 8), 0.0
        if self._on_gpu:  # its time is no multiple of that of few samples
            samples = largest
        while True:
            measured = [self._one_step(shape, samples) for _ in range(_REPEATS)][1:]
            forward = sum(part for part, _ in measured) / len(measured)
            seconds = sum(part for _, part in measured) / len(measured)
            per_sample = max(forward, 1e-9) / samples
            run = epochs * self._samples * per_sample
            spent = max(min(_STEP_SHARE * run, _MOST_STEP_SECONDS), _STEP_SECONDS)
            affordable = int(spent / per_sample / _REPEATS)
            if samples == largest or affordable < 2 * samples:
                return forward / samples, seconds
            samples = min(largest, affordable)

    def _one_step(self, shape: tuple[int, ...], samples: int) -> tuple[float, float]:
        """Seconds of forward and backward pass, and of the optimizer."""
        device, classes = self._world.device, self._data.train.index.num_classes
        labels = torch.arange(samples, device=device) % classes
        try:
            batch = random_batch(shape, samples, self._config.precision, device)
            self._model.train()
            self._optimizer.zero_grad(set_to_none=True)
            forward = self._timed(lambda: self._forward_and_backward(batch, labels))
            return forward, self._timed(self._optimizer.step)
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise UserError(
                f"a batch of {samples} does not fit into the memory of "
                f"{'the GPU' if self._on_gpu else 'this machine'}; pass --optim.accumulate "
                f"{2 * self._micro_batches}, which splits it, or a smaller batch",
                argument="batch_size",
                value=self._config.optim.batch_size,
            ) from error

    def _forward_and_backward(self, batch: torch.Tensor, labels: torch.Tensor) -> None:
        with self._autocast:
            logits = self._model(batch)
        F.cross_entropy(logits.float(), labels).backward()

    def _timed(self, action: Callable[[], object]) -> float:
        if self._on_gpu:
            torch.cuda.synchronize(self._world.device)
        began = time.perf_counter()
        action()
        if self._on_gpu:
            torch.cuda.synchronize(self._world.device)
        return time.perf_counter() - began
