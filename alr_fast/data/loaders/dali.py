"""The loader on NVIDIA DALI: decoding, cropping and normalising on the GPU, or on the CPU without
a GPU.

DALI's readers can neither leave out a broken file nor continue after an error. So the order comes
from the sampler, threads here read and check the bytes of each file, and the pipeline receives
bytes, boxes and flips, nothing else: it holds no position in the epoch. If decoding fails
nevertheless, the samples in flight are decoded one by one to find the broken files, the pipeline is
rebuilt, and the batches in flight are fed again.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.data.images.decode import Box, decode_square, prepare
from alr_fast.data.images.sources import BrokenImage
from alr_fast.data.loaders.base import Loader, SamplerT
from alr_fast.data.loaders.transform import Draws

_IN_FLIGHT = 3  # batches that DALI works on while the model trains
_READ_AHEAD = 2  # further batches that are being read
_BLANK = np.frombuffer(b"P6 1 1 255\n\0\0\0", np.uint8)  # replaces a broken file


@dataclass
class _Input:
    """Input of the pipeline for one batch."""

    index: NDArray[np.int64]  # [B], indices of the samples
    data: list[NDArray[np.uint8]]  # encoded bytes of each image
    boxes: NDArray[np.int32]  # [B, 4], top, left, height and width of the part of each image
    flip: NDArray[np.int32]  # [B], which images are mirrored
    offsets: NDArray[np.int32]  # [B, 2], top and left in the padded square
    broken: dict[int, str]  # position in the batch -> reason

    @classmethod
    def join(cls, parts: list["_Input"]) -> "_Input":
        broken: dict[int, str] = {}
        before = 0
        for part in parts:
            broken |= {before + position: reason for position, reason in part.broken.items()}
            before += len(part.index)
        return cls(
            index=np.concatenate([part.index for part in parts]),
            data=list(chain.from_iterable(part.data for part in parts)),
            boxes=np.concatenate([part.boxes for part in parts]),
            flip=np.concatenate([part.flip for part in parts]),
            offsets=np.concatenate([part.offsets for part in parts]),
            broken=broken,
        )

    def one(self, position: int) -> "_Input":
        """The sample at a position as a batch."""
        only = slice(position, position + 1)
        boxes, offsets = self.boxes[only], self.offsets[only]
        return _Input(self.index[only], self.data[only], boxes, self.flip[only], offsets, {})

    def leave_out(self, position: int, reason: str) -> None:
        self.broken[position] = reason
        self.data[position] = _BLANK
        self.boxes[position] = (0, 0, 1, 1)


class DaliLoader(Loader[SamplerT]):
    """Batches decoded by DALI; see `Loader` for the arguments.

    RandAugment draws its random numbers inside DALI: its choices are not repeated when an epoch is
    resumed or run again.
    """

    _pipeline: Any = None  # built when the first batch is fed

    @cached_property
    def _undecodable(self) -> dict[int, str]:
        return {}  # row -> reason, filled by `_find_undecodable`

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        epoch = self.epoch
        in_flight: deque[_Input] = deque()
        # Reading waits for the disk more than it computes: twice as many threads as for decoding.
        with ThreadPoolExecutor(max(2 * self.workers, 1)) as pool:
            batches = self.sampler.batches(epoch, self.start)
            submitted = (self._submit(pool, epoch, *batch) for batch in batches)
            reading = deque(islice(submitted, _READ_AHEAD + _IN_FLIGHT))
            try:
                while reading or in_flight:
                    while reading and len(in_flight) < _IN_FLIGHT:
                        batch = _Input.join([part.result() for part in reading.popleft()])
                        in_flight.append(batch)
                        self._feed(batch)
                        reading.extend(islice(submitted, 1))
                    image = self._take(in_flight)
                    batch = in_flight.popleft()
                    yield self._batch(image, batch.index, batch.broken)
            finally:
                for part in chain.from_iterable(reading):
                    part.cancel()
                if in_flight:  # left early: these batches must not appear in the next pass
                    self._pipeline = None

    # Reading.

    def _submit(
        self, pool: ThreadPoolExecutor, epoch: int, step: int, index: NDArray[np.int64]
    ) -> list[Future]:
        """Starts to read a batch, in as many parts as there are threads."""
        rng = self.sampler.augmentation_rng(epoch, step)
        place, shape, flip = self.transform.draw(rng, len(index))
        parts = max(min(2 * self.workers, len(index)), 1)
        bounds = np.linspace(0, len(index), parts + 1).astype(int).tolist()
        return [
            pool.submit(self._read, index[a:b], Draws(place[a:b], shape[a:b], flip[a:b]))
            for a, b in pairwise(bounds)
        ]

    def _read(self, index: NDArray[np.int64], draws: Draws) -> _Input:
        batch = _Input(
            index=index,
            data=[np.empty(0, np.uint8)] * len(index),
            boxes=np.empty((len(index), 4), dtype=np.int32),
            flip=draws.flip.astype(np.int32),
            offsets=self.transform.offsets(draws.place).astype(np.int32),
            broken={},
        )
        for position, row in enumerate(self.sampler.rows[index].tolist()):
            try:
                if row in self._undecodable:
                    raise BrokenImage(self._undecodable[row])
                data = self.split.images.read(row)
                batch.data[position], batch.boxes[position] = self._input(
                    data, draws.place[position], draws.shape[position]
                )
            except BrokenImage as error:
                batch.leave_out(position, str(error))
        return batch

    def _input(
        self, data: bytes, place: NDArray[np.float64], shape: NDArray[np.float64]
    ) -> tuple[NDArray[np.uint8], Box]:
        """Encoded image and box for the pipeline.

        An image that decoders treat differently is decoded and cut here: the pipeline receives the
        finished square, which needs less memory than its pixels.
        """
        encoded = prepare(data)
        box = self.transform.box(encoded.height, encoded.width, place, shape)
        if not encoded.simple:
            size = self.transform.size
            square = decode_square(encoded, box, size).permute(1, 2, 0)
            ppm = b"P6 %d %d 255\n" % (size, size) + square.contiguous().numpy().tobytes()
            return np.frombuffer(ppm, np.uint8), (0, 0, size, size)
        return np.frombuffer(encoded.data, np.uint8), box

    # Decoding.

    def _feed(self, batch: _Input) -> None:
        if self._pipeline is None:
            self._pipeline = self._build(self.sampler.largest_batch, self.workers)
        _run(self._pipeline, batch, self._pads)

    def _take(self, in_flight: deque[_Input]) -> Tensor:
        """Images of the first batch in flight, [B, 3, S, S]."""
        while True:
            try:
                (output,) = self._pipeline.share_outputs()
                image = torch.from_dlpack(output.as_tensor())
                self._pipeline.release_outputs()
            except RuntimeError as error:
                self._pipeline = None  # unusable after an error
                self._find_undecodable(in_flight, error)
                for batch in in_flight:
                    self._feed(batch)
            else:
                # DALI writes rows of pixels; viewed as [B, C, H, W] they are channels last.
                return image.to(self.device, self.dtype, non_blocking=True).permute(0, 3, 1, 2)

    def _find_undecodable(self, in_flight: deque[_Input], error: RuntimeError) -> None:
        """Decodes the samples in flight one by one, and leaves out those that fail.

        Raises:
            RuntimeError: All of them can be decoded: the error had another cause.
        """
        probe, found = None, False
        for batch in in_flight:
            for position, row in enumerate(self.sampler.rows[batch.index].tolist()):
                probe = probe or self._build(1, 1)
                try:
                    _run(probe, batch.one(position), self._pads)
                    probe.share_outputs()
                    probe.release_outputs()
                except RuntimeError as failure:
                    probe, found = None, True
                    self._undecodable[row] = f"the decoder failed ({_cause(failure)})"
                    batch.leave_out(position, self._undecodable[row])
        if not found:
            raise error

    @property
    def _pads(self) -> bool:
        return self.transform.crop == "pad" and self.transform.padding > 0

    def _build(self, batch_size: int, threads: int) -> Any:
        on_gpu = self.device.type == "cuda"
        pipeline = _pipeline_definition()(
            transform=self.transform,
            pads=self._pads,
            on_gpu=on_gpu,
            half=self.dtype == torch.float16,
            batch_size=batch_size,
            num_threads=max(threads, 1),
            device_id=(self.device.index or 0) if on_gpu else None,
            seed=self.sampler.seed,
            # Outputs own their memory, so they need no copy; with depth 1 a batch runs when it is
            # fed, not when a queue is full.
            exec_dynamic=True,
            prefetch_queue_depth=1,
        )
        pipeline.build()
        return pipeline


def _run(pipeline: Any, batch: _Input, pads: bool) -> None:
    """Feeds a batch to a pipeline, which starts to work on it."""
    pipeline.feed_input("data", batch.data)
    pipeline.feed_input("start", np.ascontiguousarray(batch.boxes[:, :2]))
    pipeline.feed_input("shape", np.ascontiguousarray(batch.boxes[:, 2:]))
    pipeline.feed_input("flip", batch.flip)
    if pads:
        pipeline.feed_input("offset", batch.offsets)
    pipeline.schedule_run()


def _cause(error: RuntimeError) -> str:
    """The message of DALI without the trace of the pipeline, as one line."""
    text = str(error).split("encountered:")[-1].split("Current pipeline")[0]
    return " ".join(text.split())[:200]


def _pipeline_definition():
    # DALI takes a second to import, so other loaders must not import it.
    from nvidia.dali import fn, pipeline_def, types

    def source(name: str, dtype, ndim: int):
        return fn.external_source(name=name, batch=True, dtype=dtype, ndim=ndim)

    @pipeline_def(enable_conditionals=True)
    def pipeline(transform, pads, on_gpu, half):
        images = fn.decoders.image_slice(
            source("data", types.UINT8, 1),
            start=source("start", types.INT32, 1),
            shape=source("shape", types.INT32, 1),
            axes=(0, 1),
            adjust_orientation=False,  # what is turned does not come here
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
        )
        images = fn.resize(
            images,
            size=(transform.size, transform.size),
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        if pads:
            images = fn.slice(
                images,
                start=source("offset", types.INT32, 1) - transform.padding,
                shape=(transform.size, transform.size),
                axes=(0, 1),
                out_of_bounds_policy="pad",
                fill_values=0,
            )
        flip = source("flip", types.INT32, 0)
        if transform.randaugment is not None:
            from nvidia.dali.auto_aug.rand_augment import rand_augment

            number, magnitude = transform.randaugment
            images = fn.flip(images, horizontal=flip)
            # With the size, translations are shares of it; without, up to 100 pixels.
            square = (transform.size, transform.size)
            images = rand_augment(images, n=number, m=magnitude, shape=square, fill_value=128)
            flip = 0
        return fn.crop_mirror_normalize(
            images,
            mirror=flip,
            dtype=types.FLOAT16 if half else types.FLOAT,
            output_layout="HWC",
            mean=[255 * value for value in transform.mean],
            std=[255 * value for value in transform.std],
        )

    return pipeline
