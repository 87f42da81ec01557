"""Instance-dependent label noise."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.errors import UserError
from alr_fast.noise.models import (
    NoiseRequest,
    cumulative,
    members_by_class,
    need_two_classes,
    wrong_kind,
)

INSTANCE_SPREAD = 0.1  # standard deviation of the samples' noise rates, as in the paper
BLOCK_BYTES = 32 << 20  # of features converted to float64 at a time


def instance(request: NoiseRequest) -> NDArray[np.int64]:
    """Noise that depends on the sample (Xia et al., NeurIPS 2020).

    A sample of class y with flattened features x [D] draws its own rate q from
    ``normal(rate, 0.1)`` truncated to [0, 1]. Its label stays y with probability 1 - q and becomes
    another class with probability ``q * softmax(x @ W[y])``, the softmax over the K - 1 other
    classes and W [K, D, K] standard normal.

    Features are normalised to zero mean and unit variance by one mean and one standard deviation
    over all values of the whole set; the authors' code normalises each channel. The truncation
    shifts the mean of q if the rate is within about 0.2 of 0 or 1: a rate of 0.1 makes 12.9 % of
    the labels wrong. A rate of exactly 0 changes nothing.

    Order of the random draws: q, where values outside [0, 1] are redrawn; one uniform number for
    each sample; W, class by class, so that at most ``8 * D * K`` bytes of it are in memory, beside
    `BLOCK_BYTES` of features.
    """
    need_two_classes(request)
    features, labels, rng = request.features, request.labels, request.rng
    if features is None:
        raise wrong_kind(request, "depends on the images; pass them as features")
    if features.dtype.kind not in "buif" or not features.ndim:
        raise UserError(
            f"{features.dtype} of shape {features.shape}; pass real numbers, one row for each "
            "label",
            argument="features",
        )
    if len(features) != len(labels):
        raise UserError(
            f"{len(features)} rows for {len(labels)} labels; pass one row for each label",
            argument="features",
        )
    noisy = labels.copy()
    if request.rate == 0 or not len(labels):
        return noisy

    rates = _truncated_normal(request.rate, INSTANCE_SPREAD, len(labels), rng)
    uniform = rng.random(len(labels))
    mean, deviation = _mean_and_deviation(features)
    size = int(np.prod(features.shape[1:]))
    for k, members in enumerate(members_by_class(labels, request.num_classes)):
        weights = rng.standard_normal((size, request.num_classes))  # also for an empty class
        for rows in _blocks(members, size):
            # float64: in float32 rounding, and with it some labels, would depend on the machine.
            x = features[rows].reshape(len(rows), size).astype(np.float64)
            x -= mean
            x /= deviation
            p = x @ weights
            p[:, k] = -np.inf
            p = np.exp(p - p.max(axis=1, keepdims=True))
            p *= (rates[rows] / p.sum(axis=1))[:, None]
            p[:, k] = 1.0 - rates[rows]
            noisy[rows] = (cumulative(p) <= uniform[rows, None]).sum(axis=1)
    return noisy


def _truncated_normal(
    mean: float, deviation: float, size: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draws, float64 [size], from a normal distribution truncated to [0, 1]; 0 <= mean <= 1."""
    values = rng.normal(mean, deviation, size)
    # Each round accepts about half of the draws or more, whatever the mean.
    while len(outside := np.flatnonzero((values < 0) | (values > 1))):
        values[outside] = rng.normal(mean, deviation, len(outside))
    return values


def _mean_and_deviation(features: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation of all values, in two passes; (mean, 1) if all are equal."""
    blocks = _blocks(features, int(np.prod(features.shape[1:])))
    count = max(features.size, 1)
    mean = sum(float(block.astype(np.float64).sum()) for block in blocks) / count
    if not np.isfinite(mean):
        raise UserError("some values are not finite; leave those samples out", argument="features")
    squares = sum(float(np.square(block.astype(np.float64) - mean).sum()) for block in blocks)
    return mean, float(np.sqrt(squares / count)) or 1.0


def _blocks(array: NDArray[Any], size: int) -> list[NDArray[Any]]:
    """Views of consecutive rows, ``size`` features each, that fit into `BLOCK_BYTES` as float64."""
    step = max(BLOCK_BYTES // (8 * max(size, 1)), 1)
    return [array[start : start + step] for start in range(0, len(array), step)]
