"""Label-noise models by name, and what they really did to a list of labels.

A noise rate means two things in the literature. ``symmetric`` redraws labels from all K classes,
the true one included, so that about ``rate * (K - 1) / K`` of them become wrong;
``symmetric-exclusive`` draws from the other K - 1, so that ``rate`` of them do. `inject` therefore
reports the rate that came out.

A new model is one function under ``@noise_model("name")``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alr_fast.errors import UserError


class NoiseModel(Protocol):
    """Returns noisy labels, int64 [N], in a new array."""

    def __call__(
        self,
        labels: NDArray[np.int64],  # [N], true labels
        *,
        num_classes: int,
        rate: float,
        rng: np.random.Generator,
    ) -> NDArray[np.int64]: ...


NOISE_MODELS: dict[str, NoiseModel] = {}


def noise_model(name: str) -> Callable[[NoiseModel], NoiseModel]:
    """Enters a function into `NOISE_MODELS` under the name used in configurations."""

    def register(model: NoiseModel) -> NoiseModel:
        NOISE_MODELS[name] = model
        return model

    return register


@noise_model("none")
def none(labels, *, num_classes, rate, rng):
    """Labels as they are."""
    return labels.copy()


@noise_model("symmetric")
def symmetric(labels, *, num_classes, rate, rng):
    """Exactly ``int(rate * N)`` samples get a label uniform over all K classes."""
    noisy = labels.copy()
    chosen = rng.permutation(len(labels))[: int(rate * len(labels))]
    noisy[chosen] = rng.integers(num_classes, size=len(chosen))
    return noisy


@noise_model("symmetric-exclusive")
def symmetric_exclusive(labels, *, num_classes, rate, rng):
    """Exactly ``int(rate * N)`` samples get a label uniform over the K - 1 wrong classes."""
    if num_classes < 2:
        raise UserError("--noise.kind symmetric-exclusive: needs at least two classes")
    noisy = labels.copy()
    chosen = rng.permutation(len(labels))[: int(rate * len(labels))]
    shift = rng.integers(1, num_classes, size=len(chosen))
    noisy[chosen] = (labels[chosen] + shift) % num_classes
    return noisy


@dataclass(frozen=True)
class InjectedNoise:
    """Labels after noise, and what is needed to say what was done to them.

    Attributes:
        labels: Noisy labels, int64 [N].
        kind: Name of the noise model.
        requested_rate: The rate that was asked for.
        realised_rate: Share of the labels that differ from what they were.
        seed: Seed of the generator.
    """

    labels: NDArray[np.int64]
    kind: str
    requested_rate: float
    realised_rate: float
    seed: int


def inject(
    labels: NDArray[np.int64], *, num_classes: int, kind: str, rate: float, seed: int
) -> InjectedNoise:
    """Applies a noise model to true labels; the input array is left as it was.

    Args:
        labels: True labels, int64 [N], in ``[0, num_classes)``.
        num_classes: Number of classes K.
        kind: Key of `NOISE_MODELS`.
        rate: Requested rate, 0 to 1.
        seed: Seed of numpy's default generator: the same seed gives the same labels.

    Raises:
        UserError: Unknown kind, or a rate outside [0, 1].
    """
    check_noise(kind, rate)
    noisy = NOISE_MODELS[kind](
        labels, num_classes=num_classes, rate=rate, rng=np.random.default_rng(seed)
    )
    realised = float(np.mean(noisy != labels)) if len(labels) else 0.0
    return InjectedNoise(noisy, kind, rate, realised, seed)


def check_noise(kind: str, rate: float) -> None:
    """Raises `UserError` for an unknown kind or a rate outside [0, 1]."""
    if kind not in NOISE_MODELS:
        raise UserError(f"--noise.kind {kind}: no such noise; there is {', '.join(NOISE_MODELS)}")
    if not 0.0 <= rate <= 1.0:
        raise UserError(f"--noise.rate {rate}: must lie between 0 and 1")
