"""The loader on NVIDIA DALI: decoding, cropping and normalising on the GPU, or on the CPU without
one.

DALI's readers can neither leave a broken file out nor go on after an error. So the order comes
from the sampler, the bytes from threads here that check each file, and the pipeline gets bytes,
boxes and flips, nothing else: it holds no position in the epoch. If decoding fails all the same,
the culprits are found one by one, the pipeline is built anew, and the batches that were under way
are fed again.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alr_fast.data.decode import Encoded, prepare
from alr_fast.data.images import BrokenImage
from alr_fast.data.loaders.base import Loader

_IN_FLIGHT = 3  # batches that DALI works on while the net trains
_READ_AHEAD = 2  # further batches that are being read
_BLANK = Encoded(b"P6 1 1 255\n\0\0\0", 1, 1)  # stands in for a broken file


@dataclass
class _Reading:
    """One batch on its way.

    Attributes:
        positions: Positions of the samples, int64 [B].
        data: Encoded bytes of each.
        boxes: Top, left, height and width of the part of each, int32 [B, 4].
        flip: Which are mirrored, int32 [B].
        offsets: Top and left in the padded square, int32 [B, 2].
        broken: Place in the batch -> reason.
    """

    positions: NDArray[np.int64]
    data: list[NDArray[np.uint8]]
    boxes: NDArray[np.int32]
    flip: NDArray[np.int32]
    offsets: NDArray[np.int32]
    broken: dict[int, str]

    def leave_out(self, place: int, reason: str) -> None:
        self.broken[place] = reason
        self.data[place] = np.frombuffer(_BLANK.data, np.uint8)
        self.boxes[place] = (0, 0, 1, 1)


class DaliLoader(Loader):
    """Batches decoded by DALI; see `Loader` for the arguments.

    RandAugment draws inside of DALI: its choices are not repeated when an epoch is resumed or run
    again.
    """

    def __init__(self, split, sampler, transform, **options) -> None:
        super().__init__(split, sampler, transform, **options)
        self._pipeline = None
        self._undecodable: dict[int, str] = {}  # row -> reason, found the hard way

    def _batches(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        steps = self.sampler.batches(epoch, start)
        reading: deque[list[Future]] = deque()
        in_flight: deque[_Reading] = deque()
        # Reading waits for the disk more than it computes: twice as many threads as decode.
        with ThreadPoolExecutor(max(2 * self.workers, 1)) as pool:

            def read_next() -> None:
                for step, positions in steps:
                    reading.append(self._submit(pool, epoch, step, positions))
                    return

            try:
                for _ in range(_READ_AHEAD + _IN_FLIGHT):
                    read_next()
                while reading or in_flight:
                    while reading and len(in_flight) < _IN_FLIGHT:
                        batch = _join([part.result() for part in reading.popleft()])
                        in_flight.append(batch)
                        self._feed(batch)
                        read_next()
                    image = self._take(in_flight)
                    batch = in_flight.popleft()
                    yield self._batch(image, batch.positions, batch.broken)
            finally:
                for parts in reading:
                    for part in parts:
                        part.cancel()
                if in_flight:  # left early: what was fed must not come out in the next pass
                    self._pipeline = None

    # Reading.

    def _submit(self, pool, epoch: int, step: int, positions) -> list[Future]:
        """Starts to read a batch, in as many parts as there are threads."""
        draws = self.transform.draw(self.sampler.augmentation_rng(epoch, step), len(positions))
        parts = max(min(2 * self.workers, len(positions)), 1)
        bounds = np.linspace(0, len(positions), parts + 1).astype(int).tolist()
        return [
            pool.submit(
                self._read, positions[a:b], draws.place[a:b], draws.shape[a:b], draws.flip[a:b]
            )
            for a, b in pairwise(bounds)
        ]

    def _read(self, positions, places, shapes, flip) -> _Reading:
        batch = _Reading(
            positions=positions,
            data=[np.empty(0, np.uint8)] * len(positions),
            boxes=np.empty((len(positions), 4), dtype=np.int32),
            flip=flip.astype(np.int32),
            offsets=self.transform.offsets(places).astype(np.int32),
            broken={},
        )
        for number, row in enumerate(self.sampler.rows[positions].tolist()):
            try:
                if row in self._undecodable:
                    raise BrokenImage(self._undecodable[row])
                encoded = prepare(self.split.images.read(row))
            except BrokenImage as error:
                batch.leave_out(number, str(error))
                continue
            batch.data[number] = np.frombuffer(encoded.data, np.uint8)
            batch.boxes[number] = self.transform.box(
                encoded.height, encoded.width, places[number], shapes[number]
            )
        return batch

    # Decoding.

    def _feed(self, batch: _Reading) -> None:
        if self._pipeline is None:
            self._pipeline = self._build(self.sampler.largest_batch, self.workers)
        _run(self._pipeline, batch, self._pads)

    def _take(self, in_flight: deque[_Reading]) -> Tensor:
        """Image of the first batch in flight, [B, 3, S, S]."""
        while True:
            try:
                (output,) = self._pipeline.share_outputs()
                image = torch.from_dlpack(output.as_tensor())
                self._pipeline.release_outputs()
            except RuntimeError as error:
                self._pipeline = None  # an error leaves it unusable
                self._find_undecodable(in_flight, error)
                for batch in in_flight:
                    self._feed(batch)
            else:
                # DALI writes rows of pixels; seen as [B, C, H, W] they are channels last.
                return image.to(self.device, self.dtype, non_blocking=True).permute(0, 3, 1, 2)

    def _find_undecodable(self, in_flight: deque[_Reading], error: RuntimeError) -> None:
        """Decodes the samples in flight one by one, and leaves those out that fail.

        Raises:
            RuntimeError: All of them can be decoded: the error had another cause.
        """
        probe, found = None, False
        for batch in in_flight:
            for place, position in enumerate(batch.positions):
                probe = probe or self._build(1, 1)
                try:
                    _run(probe, _one(batch, place), self._pads)
                    probe.share_outputs()
                    probe.release_outputs()
                except RuntimeError as failure:
                    probe, found = None, True
                    reason = f"the decoder failed ({_cause(failure)})"
                    self._undecodable[int(self.sampler.rows[position])] = reason
                    batch.leave_out(place, reason)
        if not found:
            raise error

    @property
    def _pads(self) -> bool:
        return self.transform.crop == "pad" and self.transform.padding > 0

    def _build(self, batch_size: int, threads: int):
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
            # Outputs own their memory, so they need no copy; and depth 1, so that batches run when
            # they are fed, not when a queue has filled.
            exec_dynamic=True,
            prefetch_queue_depth=1,
        )
        pipeline.build()
        return pipeline


def _join(parts: list[_Reading]) -> _Reading:
    broken, before = {}, 0
    for part in parts:
        broken |= {before + place: reason for place, reason in part.broken.items()}
        before += len(part.positions)
    return _Reading(
        positions=np.concatenate([part.positions for part in parts]),
        data=list(chain.from_iterable(part.data for part in parts)),
        boxes=np.concatenate([part.boxes for part in parts]),
        flip=np.concatenate([part.flip for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
        broken=broken,
    )


def _one(batch: _Reading, place: int) -> _Reading:
    one = slice(place, place + 1)
    return _Reading(
        batch.positions[one],
        batch.data[one],
        batch.boxes[one],
        batch.flip[one],
        batch.offsets[one],
        {},
    )


def _run(pipeline, batch: _Reading, pads: bool) -> None:
    """Gives a batch to a pipeline, which begins to work on it."""
    pipeline.feed_input("data", batch.data)
    pipeline.feed_input("start", np.ascontiguousarray(batch.boxes[:, :2]))
    pipeline.feed_input("shape", np.ascontiguousarray(batch.boxes[:, 2:]))
    pipeline.feed_input("flip", batch.flip)
    if pads:
        pipeline.feed_input("offset", batch.offsets)
    pipeline.schedule_run()


def _cause(error: RuntimeError) -> str:
    """What DALI says below the trace of the pipeline, as one line."""
    text = str(error).split("encountered:")[-1].split("Current pipeline")[0]
    return " ".join(text.split())[:200]


def _pipeline_definition():
    # DALI takes a second to import, which those who do not use it need not wait for.
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
