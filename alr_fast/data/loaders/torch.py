"""The loader in plain PyTorch: torchvision decodes and transforms in the workers of a DataLoader.

For systems without NVIDIA DALI. Its batches equal those of the DALI loader up to the rounding of
decoder and resize filter.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from alr_fast.data.images.decode import decode_square, prepare
from alr_fast.data.images.sources import BrokenImage, Images
from alr_fast.data.loaders.base import Loader, Normalise, SamplerT
from alr_fast.data.loaders.transform import Transform
from alr_fast.data.sampler import Sampler
from alr_fast.errors import UserError

_LONGEST_WAIT = 900  # seconds for a batch: a file server that is away for longer may not come back


class TorchLoader(Loader[SamplerT]):
    """Batches decoded by worker processes; see `Loader` for the arguments."""

    _told = False  # that shared memory is short

    @cached_property
    def _pass(self) -> "_Pass":
        return _Pass(self.sampler, self.transform)

    @cached_property
    def _decoder(self) -> DataLoader:
        if self.workers:
            multiprocessing.Lock()  # a DataLoader without locks prints a traceback at its end, too
        return DataLoader(
            _DecodingDataset(self.split.images, self.transform),
            batch_sampler=self._pass,
            num_workers=self.workers,
            collate_fn=partial(_collate, size=self.transform.size),
            worker_init_fn=_leave_signals_to_parent,
            pin_memory=self.device.type == "cuda",
            persistent_workers=self.workers > 0,
            timeout=_LONGEST_WAIT if self.workers else 0,
            # Each pass draws a seed for its workers. Taken from the global generator, it would
            # change the random numbers of the model in a resumed run.
            generator=torch.Generator(),
            # A forked worker shares the paths and labels; a spawned one would copy them.
            multiprocessing_context="fork" if self.workers and sys.platform == "linux" else None,
        )

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        normalise = Normalise(self.transform, self.input_shape[0], self.device, self.dtype)
        self._pass.epoch, self._pass.start = self.epoch, self.start
        with self._naming_workers():
            decoded = iter(self._decoder)
        for _, index in self.sampler.batches(self.epoch, self.start):
            with self._naming_workers():
                pixels, broken = next(decoded)
            image = normalise(self._tensor(pixels).to(self.device, non_blocking=True))
            yield self._batch(image, index, broken)

    @contextmanager
    def _naming_workers(self) -> Iterator[None]:
        """Turns what the system refuses to the workers, or their end, into a `UserError`."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            if isinstance(error, OSError):  # no more processes, or no /dev/shm for semaphores
                problem = (
                    f"worker processes cannot be started ({reason}; locks need a writable "
                    "/dev/shm); use fewer, or 0"
                )
            elif "timed out" in reason:
                problem = (
                    f"no batch came for {_LONGEST_WAIT // 60} minutes: the worker processes hang, "
                    f"or files below {self.split.images.root} cannot be read; check that folder, "
                    "or use 0"
                )
            elif "worker" in reason:
                problem = f"a worker process of the loader died ({reason}); use fewer"
            else:
                raise
            raise UserError(problem, argument="workers", value=self.workers) from error

    def _tensor(self, pixels: Tensor | NDArray[np.uint8]) -> Tensor:
        if isinstance(pixels, Tensor):
            return pixels
        if not self._told:
            self._told = True
            self.broken.log(
                "shared memory: /dev/shm has no room for a batch, which now comes through a pipe, "
                "more slowly; enlarge it (docker run --shm-size 2g), or use fewer workers"
            )
        return torch.from_numpy(pixels)


def _leave_signals_to_parent(worker: int) -> None:
    """Keeps a worker alive when all processes receive a signal, as from Slurm or a shell.

    The training process decides how to react, and needs its workers until the next checkpoint. They
    end when it terminates them, and on their own when it is gone.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return
    # Blocked, not ignored: the parent ends a hanging worker with SIGTERM, and waits without limit.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class _Pass:
    """Input of the workers: for each batch a list of (row, place, shape, flip, seed)."""

    def __init__(self, sampler: Sampler, transform: Transform) -> None:
        self._sampler = sampler
        self._transform = transform
        self.epoch = self.start = 0

    def __iter__(self) -> Iterator[list[tuple]]:
        for step, index in self._sampler.batches(self.epoch, self.start):
            rng = self._sampler.augmentation_rng(self.epoch, step)
            draws = self._transform.draw(rng, len(index))
            seeds = rng.integers(2**63, size=len(index)).tolist()
            yield list(zip(self._sampler.rows[index].tolist(), *draws, seeds, strict=True))


class _DecodingDataset(Dataset):
    def __init__(self, images: Images, transform: Transform) -> None:
        self._images = images
        self._transform = transform
        self._randaugment = None
        if transform.randaugment is not None:
            from torchvision.transforms.v2 import RandAugment

            number, magnitude = transform.randaugment
            self._randaugment = RandAugment(number, magnitude, fill=128)

    def __getitem__(self, item: tuple) -> Tensor | str:
        row, place, shape, flip, seed = item
        transform = self._transform
        try:
            encoded = prepare(self._images.read(row))
            box = transform.box(encoded.height, encoded.width, place, shape)
            image = decode_square(encoded, box, transform.size)
        except BrokenImage as error:
            return str(error)  # an exception would end the whole pass
        if transform.crop == "pad" and transform.padding:
            top, left = transform.offsets(place).tolist()
            image = F.pad(image, (transform.padding,) * 4)
            image = image[:, top : top + transform.size, left : left + transform.size]
        if flip:
            image = image.flip(-1)
        if self._randaugment is not None:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(seed)
                image = self._randaugment(image)
        return image


def _collate(
    images: list[Tensor | str], size: int
) -> tuple[Tensor | NDArray[np.uint8], dict[int, str]]:
    """Pixels uint8 [B, S, S, 3], black for unreadable images, and position -> reason of those.

    In a worker they are moved to shared memory here: later, in a thread of the queue, an error
    would be printed, the batch lost, and the training process would wait for it. Without room there
    they are an array, whose bytes the queue sends.
    """
    broken = {position: image for position, image in enumerate(images) if isinstance(image, str)}
    black = torch.zeros((3, size, size), dtype=torch.uint8)
    whole = [black if isinstance(image, str) else image for image in images]
    pixels = torch.stack(whole).permute(0, 2, 3, 1).contiguous()
    if get_worker_info() is None:
        return pixels, broken
    try:
        return pixels.share_memory_(), broken
    except (OSError, RuntimeError):
        return pixels.numpy(), broken
