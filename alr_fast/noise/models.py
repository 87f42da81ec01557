"""The label-noise models.

"Noise rate" has several meanings in the literature:

- ``symmetric`` redraws ``int(rate * N)`` labels from all K classes, the true one included, so that
  about ``rate * (K - 1) / K`` of all labels become wrong (ELR, DivideMix, SELC);
- ``symmetric-exclusive`` draws from the other K - 1 classes, so that ``rate`` of all labels become
  wrong (CIFAR-N, JoCoR);
- ``asymmetric*`` and ``pair`` flip labels of a class to one other class, and the rate applies to
  each such class. It is exact: ``int(rate * n)`` of its n samples flip, as in ELR's code, whereas
  Co-teaching draws for each sample. The other classes keep their labels: on balanced CIFAR-10
  ``asymmetric`` makes ``rate / 2`` of all labels wrong;
- ``instance`` and ``matrix`` draw for each sample, so that their rates hold on average.

`inject` therefore reports the realised rate, too.

A new model is a function of a `NoiseRequest` and an entry in `injection.NOISE_MODELS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alr_fast.errors import UserError
from alr_fast.noise.classes import CIFAR100_SUPERCLASSES, LOOK_ALIKES


@dataclass(frozen=True, eq=False)
class NoiseRequest:
    """Input of a noise model, checked by `inject`.

    Attributes:
        labels: True labels, int64 [N], in ``[0, num_classes)``; read-only.
        num_classes: Number of classes K.
        kind: Name of the model.
        rate: Requested rate, 0 to 1.
        rng: Random generator, the only source of randomness.
        class_names: Names of the K classes, or None.
        features: Features [N, ...] of the samples, or None.
        matrix: Row-stochastic float64 [K, K], or None.
    """

    labels: NDArray[np.int64]
    num_classes: int
    kind: str
    rate: float
    rng: np.random.Generator
    class_names: tuple[str, ...] | None
    features: NDArray[Any] | None
    matrix: NDArray[np.float64] | None


NoiseModel = Callable[[NoiseRequest], NDArray[np.int64]]  # noisy labels, int64 [N], a new array


def none(request: NoiseRequest) -> NDArray[np.int64]:
    """Unchanged labels."""
    return request.labels.copy()


def symmetric(request: NoiseRequest) -> NDArray[np.int64]:
    """Exactly ``int(rate * N)`` samples get a label uniform over all K classes."""
    labels, rng = request.labels, request.rng
    noisy = labels.copy()
    chosen = rng.permutation(len(labels))[: int(request.rate * len(labels))]
    noisy[chosen] = rng.integers(request.num_classes, size=len(chosen))
    return noisy


def symmetric_exclusive(request: NoiseRequest) -> NDArray[np.int64]:
    """Exactly ``int(rate * N)`` samples get a label uniform over the K - 1 wrong classes."""
    need_two_classes(request)
    labels, rng = request.labels, request.rng
    noisy = labels.copy()
    chosen = rng.permutation(len(labels))[: int(request.rate * len(labels))]
    shift = rng.integers(1, request.num_classes, size=len(chosen))
    noisy[chosen] = (labels[chosen] + shift) % request.num_classes
    return noisy


def asymmetric(request: NoiseRequest) -> NDArray[np.int64]:
    """Look-alikes. CIFAR-10: truck to automobile, bird to airplane, deer to horse, cat and dog to
    each other. Digits: 2 to 7, 3 to 8, 7 to 1, 5 and 6 to each other.

    Classes are found by name, in any order; all other classes keep their labels.
    """
    ids = _ids_by_name(request)
    for flips in LOOK_ALIKES.values():
        if {*flips, *flips.values()} <= ids.keys():
            target = np.arange(request.num_classes)
            for source, destination in flips.items():
                target[ids[source]] = ids[destination]
            return _flip_classes(request, target)
    raise wrong_kind(
        request,
        f"made for the classes of {' and of '.join(LOOK_ALIKES)}, the data set has others; "
        f"{_kinds_that_fit(request)}",
    )


def asymmetric_blocks5(request: NoiseRequest) -> NDArray[np.int64]:
    """Every class to the next one in its block of five ids, the fifth to the first.

    Papers use this on CIFAR-100. Its class ids are alphabetical, so no block is a superclass: only
    6 of the 100 flips stay inside one.
    """
    k = request.num_classes
    if k % 5:
        raise wrong_kind(
            request,
            f"needs a number of classes divisible by five, the data set has {k}; "
            f"{_kinds_that_fit(request)}",
        )
    return _flip_classes(request, _next_in_block(k))


def asymmetric_superclass(request: NoiseRequest) -> NDArray[np.int64]:
    """CIFAR-100: every class to the next one in its superclass, the fifth to the first.

    Classes are found by name, in any order.
    """
    ids = _ids_by_name(request)
    known = {name for members in CIFAR100_SUPERCLASSES.values() for name in members}
    differing = sorted(ids.keys() ^ known)
    if differing:
        raise wrong_kind(
            request,
            "made for the 100 classes of CIFAR-100, those of the data set differ (first: "
            f"{differing[0]}); {_kinds_that_fit(request)}",
        )
    target = np.arange(request.num_classes)
    for members in CIFAR100_SUPERCLASSES.values():
        for position, name in enumerate(members):
            target[ids[name]] = ids[members[(position + 1) % len(members)]]
    return _flip_classes(request, target)


def pair(request: NoiseRequest) -> NDArray[np.int64]:
    """Every class k to ``(k + 1) % K`` (Han et al., NeurIPS 2018)."""
    need_two_classes(request)
    return _flip_classes(request, _next(request.num_classes))


def _next(num_classes: int) -> NDArray[np.int64]:
    return (np.arange(num_classes) + 1) % num_classes


def _next_in_block(num_classes: int) -> NDArray[np.int64]:
    ids = np.arange(num_classes)
    return ids // 5 * 5 + (ids + 1) % 5


# Kinds that go by the numbers of the classes -> the class that each one is flipped to.
FLIPS_BY_NUMBER = {"pair": _next, "asymmetric-blocks5": _next_in_block}


def matrix(request: NoiseRequest) -> NDArray[np.int64]:
    """A sample of class y gets the label j with probability ``matrix[y, j]``; ignores the rate."""
    k = request.num_classes
    if request.matrix is None:
        raise wrong_kind(request, f"needs a transition matrix, {k} x {k} probabilities; pass one")
    noisy = request.labels.copy()
    uniform = request.rng.random(len(noisy))
    bounds = cumulative(request.matrix)
    for members, bound in zip(members_by_class(request.labels, k), bounds, strict=True):
        noisy[members] = np.searchsorted(bound, uniform[members], side="right")
    return noisy


def wrong_kind(request: NoiseRequest, message: str) -> UserError:
    """The error that the requested kind of noise does not suit the data."""
    return UserError(message, argument="kind", value=request.kind)


def need_two_classes(request: NoiseRequest) -> None:
    """Raises `UserError` for data of a single class."""
    if request.num_classes < 2:
        raise wrong_kind(request, "needs at least two classes; choose kind none")


def _ids_by_name(request: NoiseRequest) -> dict[str, int]:
    if request.class_names is None:
        raise wrong_kind(request, "needs the names of the classes; pass class_names")
    # Folders are named by hand: "Aquarium fish" is the data set's class aquarium_fish.
    names = [name.casefold().replace(" ", "_").replace("-", "_") for name in request.class_names]
    for k, name in enumerate(names):
        if name in names[:k]:
            twice = request.class_names[names.index(name)], request.class_names[k]
            raise wrong_kind(
                request,
                f"finds classes by name, and {twice[0]} and {twice[1]} are the same name; rename "
                f"one; {_kinds_that_fit(request)}",
            )
    return {name: k for k, name in enumerate(names)}


def _kinds_that_fit(request: NoiseRequest) -> str:
    kinds = ["symmetric", "symmetric-exclusive", "pair", "instance", "matrix"]
    if request.num_classes % 5 == 0:
        kinds.insert(2, "asymmetric-blocks5")
    return f"kinds that fit: {', '.join(kinds)}"


def _flip_classes(request: NoiseRequest, target: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exactly ``int(rate * n)`` of the n samples of every class k get the label ``target[k]``."""
    noisy = request.labels.copy()
    for k, members in enumerate(members_by_class(request.labels, request.num_classes)):
        chosen = request.rng.permutation(members)[: int(request.rate * len(members))]
        noisy[chosen] = target[k]
    return noisy


def members_by_class(labels: NDArray[np.int64], num_classes: int) -> list[NDArray[np.int64]]:
    """For each class the rows of its samples, int64 [n], ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1])


def cumulative(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cumulative probabilities [M, K] of the rows [M, K], the last one exactly 1.

    A uniform number u in [0, 1) selects the class j with ``c[j - 1] <= u < c[j]``, which never has
    probability 0.
    """
    c = np.cumsum(p, axis=1)
    return c / c[:, -1:]
