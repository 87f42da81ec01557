"""The suites of `benchmarks.kernels` and their tasks.

A suite is a function of a task: it creates the inputs, compiles and checks, and returns a function
that measures and returns the rows.
"""

import torch

from benchmarks.kernels.bandwidth import bandwidth, pinned
from benchmarks.kernels.latency import latency
from benchmarks.kernels.problem import Case
from benchmarks.kernels.task import Task

LATENCY_BATCHES = (64, 128, 256, 512, 1024)
LATENCY_CLASSES = (10, 14, 50, 100, 1000)
BANDWIDTH_SHAPES = ((65536, 256), (16384, 1000), (4096, 4096), (1024, 21841), (128, 131072))
SIXTEEN_BIT_CLASSES = 1000  # K for which 16-bit logits and banks are measured, too
PINNED_SHAPE = (1024, 1000)
TINY_SHAPE = (8, 40)

SUITES = {"latency": latency, "bandwidth": bandwidth, "pinned": pinned}


def tasks(suite: str, *, tiny: bool, **options) -> list[Task]:
    """The tasks of a suite; ``options`` are those of `Task`."""
    if suite == "latency":
        batches, classes = ((4, 8), (3,)) if tiny else (LATENCY_BATCHES, LATENCY_CLASSES)
        cases = [tuple(Case(batch, k) for batch in batches) for k in classes]
    elif suite == "bandwidth":
        shapes = (TINY_SHAPE,) if tiny else BANDWIDTH_SHAPES
        cases = [(Case(*shape), *_sixteen_bit(*shape)) for shape in shapes]
    else:
        cases = [(Case(*(TINY_SHAPE if tiny else PINNED_SHAPE)),)]
    return [Task(suite=suite, cases=some, tiny=tiny, **options) for some in cases]


def _sixteen_bit(batch: int, classes: int) -> tuple[Case, ...]:
    if classes != SIXTEEN_BIT_CLASSES:
        return ()
    banks = (torch.float32, torch.bfloat16)
    return tuple(Case(batch, classes, torch.bfloat16, bank) for bank in banks)
