"""Injects label noise: checks the request, applies a model, describes the result."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alr_fast.errors import UserError
from alr_fast.noise import models
from alr_fast.noise.instance import instance
from alr_fast.noise.models import NoiseModel, NoiseRequest

# By the names that configurations use.
NOISE_MODELS: dict[str, NoiseModel] = {
    "none": models.none,
    "symmetric": models.symmetric,
    "symmetric-exclusive": models.symmetric_exclusive,
    "asymmetric": models.asymmetric,
    "asymmetric-blocks5": models.asymmetric_blocks5,
    "asymmetric-superclass": models.asymmetric_superclass,
    "pair": models.pair,
    "instance": instance,
    "matrix": models.matrix,
}
ROW_SUM_TOLERANCE = 1e-6  # what decimals in a file leave of a row that sums to one


def needs_features(kind: str) -> bool:
    """Whether `inject` must be given the samples' features for this kind of noise."""
    return kind == "instance"


@dataclass(frozen=True, eq=False)
class InjectedNoise:
    """Labels after noise, and what is needed to say what was done to them.

    Attributes:
        labels: Noisy labels, int64 [N].
        original: Labels before, int64 [N].
        kind: Name of the noise model.
        requested_rate: The rate that was asked for; for ``matrix`` the share of wrong labels to
            expect from the matrix and the original labels.
        realised_rate: Share of the labels that differ from what they were.
        seed: Seed of the generator.
        counts: How many samples went from class i to class j, int64 [K, K] indexed ``[i, j]``.
    """

    labels: NDArray[np.int64]
    original: NDArray[np.int64]
    kind: str
    requested_rate: float
    realised_rate: float
    seed: int
    counts: NDArray[np.int64]


def inject(
    labels: ArrayLike,
    *,
    num_classes: int,
    kind: str,
    rate: float,
    seed: int,
    class_names: Sequence[str] | None = None,
    features: ArrayLike | None = None,
    matrix: ArrayLike | None = None,
) -> InjectedNoise:
    """Applies a noise model to true labels; the input arrays are left as they were.

    Args:
        labels: True labels, integers [N], in ``[0, num_classes)``.
        num_classes: Number of classes K.
        kind: Key of `NOISE_MODELS`.
        rate: Requested rate, 0 to 1; has no effect on ``none`` and ``matrix``.
        seed: Seed of numpy's default generator: the same seed gives the same labels.
        class_names: Names of the K classes, for kinds that go by name.
        features: Numbers [N, ...], uint8 pixels for instance, for kinds that look at the samples
            (`needs_features`).
        matrix: Transition probabilities [K, K], rows sum to one, for kind ``matrix``.

    Raises:
        UserError: Unknown kind, a rate outside [0, 1], labels outside [0, K), too few classes, or
            names, features or a matrix that are missing or do not fit.
    """
    check_noise(kind, rate)
    if num_classes < 1:
        raise UserError(f"num_classes {num_classes}: must be 1 or more")
    if seed < 0:
        raise UserError(f"--noise.seed {seed}: must be 0 or more")
    original = _checked_labels(labels, num_classes)
    if class_names is not None and len(class_names) != num_classes:
        raise UserError(
            f"class_names: {len(class_names)} names for {num_classes} classes; give one for each"
        )
    if matrix is not None:
        if kind != "matrix":
            raise UserError(
                f"--noise.kind {kind}: takes no transition matrix; choose kind matrix or leave "
                "the matrix out"
            )
        matrix = _checked_matrix(matrix, num_classes)
        rate = float(np.mean(1.0 - np.diag(matrix)[original])) if len(original) else 0.0
    request = NoiseRequest(
        labels=original,
        num_classes=num_classes,
        kind=kind,
        rate=rate,
        rng=np.random.default_rng(seed),
        class_names=None if class_names is None else tuple(class_names),
        features=None if features is None else np.asarray(features),
        matrix=matrix,
    )
    return describe(
        NOISE_MODELS[kind](request),
        original,
        num_classes=num_classes,
        kind=kind,
        requested_rate=rate,
        seed=seed,
    )


def describe(
    labels: NDArray[np.int64],
    original: NDArray[np.int64],
    *,
    num_classes: int,
    kind: str,
    requested_rate: float,
    seed: int,
) -> InjectedNoise:
    """The report on noisy labels, int64 [N], that once were ``original``, int64 [N]."""
    counts = np.bincount(original * num_classes + labels, minlength=num_classes**2)
    return InjectedNoise(
        labels=labels,
        original=original,
        kind=kind,
        requested_rate=requested_rate,
        realised_rate=float(np.mean(labels != original)) if len(labels) else 0.0,
        seed=seed,
        counts=counts.reshape(num_classes, num_classes),
    )


def check_noise(kind: str, rate: float) -> None:
    """Raises `UserError` for an unknown kind or a rate outside [0, 1]."""
    if kind not in NOISE_MODELS:
        raise UserError(f"--noise.kind {kind}: no such noise; there is {', '.join(NOISE_MODELS)}")
    if not 0.0 <= rate <= 1.0:
        raise UserError(f"--noise.rate {rate}: must lie between 0 and 1")


def _checked_labels(labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise UserError(
            f"labels: {labels.dtype} of shape {labels.shape}; give one whole number a sample"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"labels: row {wrong[0]} holds {labels[wrong[0]]}; must lie between 0 and "
            f"{num_classes - 1}"
        )
    return labels.astype(np.int64)  # a copy: the report keeps it


def _checked_matrix(matrix: ArrayLike, num_classes: int) -> NDArray[np.float64]:
    try:
        matrix = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError("--noise.matrix: holds values that are no numbers") from error
    if matrix.shape != (num_classes, num_classes):
        shape = " x ".join(map(str, matrix.shape)) or "a single number"
        raise UserError(
            f"--noise.matrix: {shape}; must be {num_classes} x {num_classes}, one row for each "
            "true class"
        )
    wrong = np.flatnonzero(~(matrix >= 0).all(axis=1))  # catches NaN too
    if len(wrong):
        raise UserError(
            f"--noise.matrix: row {wrong[0]} holds {matrix[wrong[0]].min()}; probabilities must "
            "be 0 or more"
        )
    sums = matrix.sum(axis=1)
    wrong = np.flatnonzero(~(np.abs(sums - 1.0) <= ROW_SUM_TOLERANCE))
    if len(wrong):
        raise UserError(
            f"--noise.matrix: row {wrong[0]} sums to {sums[wrong[0]]:.8g}; every row must sum to "
            "one, so divide it by its sum"
        )
    return matrix
