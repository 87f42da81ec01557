"""Instance-dependent label noise."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.errors import UserError
from alr_fast.noise.models import (
    NoiseRequest,
    _cumulative,
    _members_by_class,
    _need_two_classes,
)

INSTANCE_SPREAD = 0.1  # standard deviation of the samples' own rates, the value of the paper
BLOCK_BYTES = 32 << 20  # features that are widened to float64 at a time


def instance(request: NoiseRequest) -> NDArray[np.int64]:
    """Noise that depends on the sample (Xia et al., NeurIPS 2020).

    A sample of class y with flattened features x [D] draws its own rate q from
    ``normal(rate, 0.1)`` truncated to [0, 1]. Its label stays y with probability 1 - q and becomes
    another class with probability ``q * softmax(x @ W[y])``, the softmax over the K - 1 other
    classes and W [K, D, K] standard normal.

    Features are scaled by one mean and one standard deviation over all values of the whole set, so
    that they have zero mean and unit variance; the public code scales each channel so. The
    truncation moves the mean of q where the rate is within about 0.2 of 0 or 1: a rate of 0.1
    makes 0.129 wrong. A rate of exactly 0 changes nothing.

    The generator gives, in this order: q, with those outside [0, 1] drawn again until none is; one
    uniform number for each sample; W, class by class, so that no more than ``8 * D * K`` bytes of
    it are there at a time, beside `BLOCK_BYTES` of features.
    """
    _need_two_classes(request)
    features, labels, rng = request.features, request.labels, request.rng
    if features is None:
        raise UserError(
            f"--noise.kind {request.kind}: depends on the images; give them as features"
        )
    if features.dtype.kind not in "buif" or not features.ndim:
        raise UserError(
            f"features: {features.dtype} of shape {features.shape}; give real numbers, one row for "
            "each label"
        )
    if len(features) != len(labels):
        raise UserError(
            f"features: {len(features)} rows for {len(labels)} labels; give one row for each label"
        )
    noisy = labels.copy()
    if request.rate == 0 or not len(labels):
        return noisy

    rates = _truncated_normal(request.rate, INSTANCE_SPREAD, len(labels), rng)
    uniform = rng.random(len(labels))
    mean, deviation = _mean_and_deviation(features)
    size = int(np.prod(features.shape[1:]))
    for k, members in enumerate(_members_by_class(labels, request.num_classes)):
        weights = rng.standard_normal((size, request.num_classes))  # also for an empty class
        for rows in _blocks(members, size):
            # float64: in float32 other machines would round some labels to the other side.
            x = features[rows].reshape(len(rows), size).astype(np.float64)
            x -= mean
            x /= deviation
            p = x @ weights
            p[:, k] = -np.inf
            p = np.exp(p - p.max(axis=1, keepdims=True))
            p *= (rates[rows] / p.sum(axis=1))[:, None]
            p[:, k] = 1.0 - rates[rows]
            noisy[rows] = (_cumulative(p) <= uniform[rows, None]).sum(axis=1)
    return noisy


def _truncated_normal(
    mean: float, deviation: float, size: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draws from a normal distribution cut to [0, 1], float64 [size]; the mean lies in [0, 1]."""
    values = rng.normal(mean, deviation, size)
    # At least about half of the draws are kept whatever the mean, so this ends soon.
    while len(outside := np.flatnonzero((values < 0) | (values > 1))):
        values[outside] = rng.normal(mean, deviation, len(outside))
    return values


def _mean_and_deviation(features: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation of all values, in two passes; (mean, 1) where all are equal."""
    size = int(np.prod(features.shape[1:]))
    count = features.size

    def blocks() -> Iterator[NDArray[np.float64]]:
        for rows in _blocks(np.arange(len(features)), size):
            yield features[rows[0] : rows[-1] + 1].astype(np.float64)

    mean = sum(float(block.sum()) for block in blocks()) / max(count, 1)
    if not np.isfinite(mean):
        raise UserError("features: hold values that are not finite; leave those samples out")
    variance = sum(float(np.square(block - mean).sum()) for block in blocks()) / max(count, 1)
    return mean, float(np.sqrt(variance)) or 1.0


def _blocks(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Runs of rows whose features, ``size`` float64 values a row, fit into `BLOCK_BYTES`."""
    step = max(BLOCK_BYTES // (8 * max(size, 1)), 1)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
