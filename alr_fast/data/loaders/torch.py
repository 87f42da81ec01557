"""The loader in plain PyTorch: torchvision decodes and transforms in the workers of a DataLoader.

For systems without NVIDIA DALI. It gives the same batches as the DALI loader, up to the rounding of
decoder and resize filter.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from alr_fast.data.decode import decode_rgb, prepare, resize_part
from alr_fast.data.images import BrokenImage
from alr_fast.data.loaders.base import Loader, Normalise
from alr_fast.errors import UserError


class TorchLoader(Loader):
    """Batches decoded by worker processes; see `Loader` for the arguments."""

    def __init__(self, split, sampler, transform, **options) -> None:
        super().__init__(split, sampler, transform, **options)
        self._normalise = Normalise(transform, split.channels, self.device, self.dtype)
        self._pass = _Pass(self)
        self._loader = torch.utils.data.DataLoader(
            _Decoding(split.images, transform),
            batch_sampler=self._pass,
            num_workers=self.workers,
            collate_fn=partial(_collate, size=transform.size),
            worker_init_fn=_leave_signals_to_parent,
            pin_memory=self.device.type == "cuda",
            persistent_workers=self.workers > 0,
            # A pass draws a seed for its workers: not from the random numbers of the net, which
            # would go on differently in a resumed run.
            generator=torch.Generator(),
            # A forked worker shares the paths and the labels; a spawned one would copy them.
            multiprocessing_context="fork" if self.workers and sys.platform == "linux" else None,
        )

    def _batches(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        self._pass.epoch, self._pass.start = epoch, start
        decoded = iter(self._loader)
        for _, positions in self.sampler.batches(epoch, start):
            try:
                pixels, broken = next(decoded)
            except RuntimeError as error:
                if "worker" not in str(error):
                    raise
                raise UserError(
                    f"--data.loader torch: a worker process died ({' '.join(str(error).split())}); "
                    f"try fewer --data.workers than {self.workers}"
                ) from error
            image = self._normalise(pixels.to(self.device, non_blocking=True))
            yield self._batch(image, positions, broken)


def _leave_signals_to_parent(worker: int) -> None:
    """Keeps a worker alive when a signal goes to all processes at once, as from Slurm or a shell.

    The training decides what a signal means, and needs its workers until it has come to a
    checkpoint. They end when it tells them to, and by themselves when it is gone.

    Args:
        worker: Its number.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return
    # Not ignored: with it the parent ends a worker that hangs, and waits for it without a limit.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class _Pass:
    """What the workers decode: for each batch a list of (row, place, shape, flip, seed)."""

    def __init__(self, loader: TorchLoader) -> None:
        self._sampler = loader.sampler
        self._transform = loader.transform
        self.epoch = self.start = 0

    def __iter__(self):
        for step, positions in self._sampler.batches(self.epoch, self.start):
            rng = self._sampler.augmentation_rng(self.epoch, step)
            draws = self._transform.draw(rng, len(positions))
            seeds = rng.integers(2**63, size=len(positions)).tolist()
            yield list(zip(self._sampler.rows[positions].tolist(), *draws, seeds, strict=True))


class _Decoding(torch.utils.data.Dataset):
    def __init__(self, images, transform) -> None:
        self._images = images
        self._transform = transform
        self._randaugment = None
        if transform.randaugment is not None:
            from torchvision.transforms.v2 import RandAugment

            number, magnitude = transform.randaugment
            self._randaugment = RandAugment(number, magnitude, fill=128)

    def __getitem__(self, item) -> Tensor | str:
        row, place, shape, flip, seed = item
        transform = self._transform
        try:
            encoded = prepare(self._images.read(row))
            image = decode_rgb(encoded)
        except BrokenImage as error:
            # As a value: an exception would end the whole pass.
            return str(error)
        box = transform.box(encoded.height, encoded.width, place, shape)
        image = resize_part(image, box, transform.size)
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


def _collate(images: list[Tensor | str], size: int) -> tuple[Tensor, dict[int, str]]:
    """uint8 [B, S, S, 3], black where there is no image, and the reasons."""
    broken = {place: image for place, image in enumerate(images) if isinstance(image, str)}
    black = torch.zeros((3, size, size), dtype=torch.uint8)
    whole = [black if isinstance(image, str) else image for image in images]
    return torch.stack(whole).permute(0, 2, 3, 1).contiguous(), broken
