"""Injecting label noise: checks the request, applies a model, describes the result."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alr_fast.errors import UserError
from alr_fast.noise import models
from alr_fast.noise.classes import flips_line, rows_line
from alr_fast.noise.instance import instance
from alr_fast.noise.models import NoiseModel, NoiseRequest
from alr_fast.utils.random import stream
from alr_fast.utils.text import did_you_mean

# The keys are the names in configurations.
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
ROW_SUM_TOLERANCE = 1e-6  # for rows that a file rounds to decimals


def needs_features(kind: str) -> bool:
    """Whether this kind of noise needs the samples' features, see `inject`."""
    return kind == "instance"


def class_numbers_line(kind: str, class_names: Sequence[str]) -> str | None:
    """A line about the classes that the numbers of a kind of noise stand for.

    Args:
        kind: The kind, see `inject`.
        class_names: Names of the K classes.

    Returns:
        The line; None if the kind has no numbers, or no class has a number other than its position
        as its name.
    """
    if kind == "matrix":
        return rows_line("transition matrix", class_names)
    if kind in models.FLIPS_BY_NUMBER:
        targets = models.FLIPS_BY_NUMBER[kind](len(class_names)).tolist()
        return flips_line(kind, class_names, targets)
    return None


@dataclass(frozen=True, eq=False)
class InjectedNoise:
    """Labels with noise, and statistics of the change.

    Attributes:
        labels: Noisy labels, int64 [N].
        original: Labels before the injection, int64 [N].
        kind: Name of the noise model.
        requested_rate: Requested rate; for ``matrix`` the share of wrong labels expected from the
            matrix and the original labels.
        realised_rate: Share of labels that changed.
        seed: Seed of the random generator.
        counts: Number of samples of class i with the noisy label j, int64 [K, K] indexed
            ``[i, j]``.
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
    """Applies a noise model to true labels; does not modify its input.

    Args:
        labels: True labels, integers [N], in ``[0, num_classes)``.
        num_classes: Number of classes K.
        kind: Key of `NOISE_MODELS`.
        rate: Requested rate, 0 to 1; has no effect on ``none`` and ``matrix``.
        seed: Seed of numpy's default generator: the same seed yields the same labels.
        class_names: Names of the K classes, for kinds that find classes by name.
        features: Features [N, ...], for example uint8 pixels, for kinds that depend on the samples
            (`needs_features`).
        matrix: Transition probabilities [K, K], rows sum to one, for kind ``matrix``.

    Raises:
        UserError: Unknown kind, a rate outside [0, 1], labels outside [0, K), too few classes, or
            names, features or a matrix that are missing or do not fit.
    """
    check_noise(kind, rate)
    if num_classes < 1:
        raise UserError("must be 1 or more", argument="num_classes", value=num_classes)
    if seed < 0:
        raise UserError("must be 0 or more", argument="seed", value=seed)
    original = _checked_labels(labels, num_classes)
    if class_names is not None and len(class_names) != num_classes:
        raise UserError(
            f"{len(class_names)} names for {num_classes} classes; pass one for each",
            argument="class_names",
        )
    if matrix is not None:
        if kind != "matrix":
            raise UserError(
                "takes no transition matrix; choose kind matrix or leave the matrix out",
                argument="kind",
                value=kind,
            )
        matrix = _checked_matrix(matrix, num_classes)
        rate = float(np.mean(1.0 - np.diag(matrix)[original])) if len(original) else 0.0
    request = NoiseRequest(
        labels=original,
        num_classes=num_classes,
        kind=kind,
        rate=rate,
        rng=stream("noise", seed),
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
    """Statistics of noisy labels, int64 [N], that were ``original``, int64 [N], before."""
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
        names = ", ".join(NOISE_MODELS)
        raise UserError(
            f"no such noise; there is {names}{did_you_mean(kind, list(NOISE_MODELS))}",
            argument="kind",
            value=kind,
        )
    if not 0.0 <= rate <= 1.0:
        raise UserError("must lie between 0 and 1", argument="rate", value=rate)


def _checked_labels(labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise UserError(
            f"{labels.dtype} of shape {labels.shape}; pass one integer for each sample",
            argument="labels",
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"row {wrong[0]} holds {labels[wrong[0]]}; must lie between 0 and {num_classes - 1}",
            argument="labels",
        )
    return labels.astype(np.int64)  # a copy: `InjectedNoise` keeps it


def _checked_matrix(matrix: ArrayLike, num_classes: int) -> NDArray[np.float64]:
    try:
        matrix = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError("holds values that are not numbers", argument="matrix") from error
    if matrix.shape != (num_classes, num_classes):
        shape = " x ".join(map(str, matrix.shape)) or "a single number"
        raise UserError(
            f"{shape}; must be {num_classes} x {num_classes}, one row for each true class",
            argument="matrix",
        )
    wrong = np.flatnonzero(~(matrix >= 0).all(axis=1))  # NaN, too
    if len(wrong):
        raise UserError(
            f"row {wrong[0]} holds {matrix[wrong[0]].min()}; probabilities must be 0 or more",
            argument="matrix",
        )
    sums = matrix.sum(axis=1)
    wrong = np.flatnonzero(~(np.abs(sums - 1.0) <= ROW_SUM_TOLERANCE))
    if len(wrong):
        raise UserError(
            f"row {wrong[0]} sums to {sums[wrong[0]]:.8g}; every row must sum to one, so divide it "
            "by its sum",
            argument="matrix",
        )
    return matrix
