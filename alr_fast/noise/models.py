"""Label-noise models by name, and what they really did to a list of labels.

A noise rate means several things in the literature:

- ``symmetric`` redraws ``int(rate * N)`` labels from all K classes, the true one included, so that
  about ``rate * (K - 1) / K`` of them become wrong (ELR, DivideMix, SELC);
- ``symmetric-exclusive`` draws from the other K - 1, so that ``rate`` of them do (CIFAR-N, JoCoR);
- ``asymmetric*`` and ``pair`` send a class to one other class; the rate is that of each such class.
  It is exact, ``int(rate * n)`` of its n samples as in ELR's code, not a draw for each sample as in
  Co-teaching's. Classes that go nowhere stay right: ``asymmetric`` on balanced CIFAR-10 makes
  ``rate / 2`` of all labels wrong;
- ``instance`` and ``matrix`` draw for each sample, so that their rates hold on average.

`inject` therefore reports the rate that came out.

A new model is one function under ``@noise_model("name")``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alr_fast.errors import UserError

# Wrong labels that people would give too (Patrini et al., CVPR 2017), by class names: CIFAR-10, and
# handwritten digits.
LOOK_ALIKES = {
    "CIFAR-10": {
        "truck": "automobile",
        "bird": "airplane",
        "deer": "horse",
        "cat": "dog",
        "dog": "cat",
    },
    "digits": {"2": "7", "3": "8", "5": "6", "6": "5", "7": "1"},
}

# The superclasses of CIFAR-100 in the order of their ids, the classes of each in the order of
# theirs, both alphabetical (Krizhevsky 2009, names as in the data set's file "meta").
CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}

INSTANCE_SPREAD = 0.1  # standard deviation of the samples' own rates, the value of the paper
ROW_SUM_TOLERANCE = 1e-6  # what decimals in a file leave of a row that sums to one
BLOCK_BYTES = 32 << 20  # features that are widened to float64 at a time


@dataclass(frozen=True, eq=False)
class NoiseRequest:
    """What a noise model is given; `inject` has checked all of it.

    Attributes:
        labels: True labels, int64 [N], in ``[0, num_classes)``; not to be written to.
        num_classes: Number of classes K.
        kind: Name of the model.
        rate: Requested rate, 0 to 1.
        rng: Generator, the only source of chance.
        class_names: Names of the K classes, or None.
        features: Numbers [N, ...] that describe the samples, or None.
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

NOISE_MODELS: dict[str, NoiseModel] = {}


def noise_model(name: str) -> Callable[[NoiseModel], NoiseModel]:
    """Enters a function into `NOISE_MODELS` under the name used in configurations."""

    def register(model: NoiseModel) -> NoiseModel:
        NOISE_MODELS[name] = model
        return model

    return register


def needs_features(kind: str) -> bool:
    """Whether `inject` must be given the samples' features for this kind of noise."""
    return kind == "instance"


@noise_model("none")
def none(request: NoiseRequest) -> NDArray[np.int64]:
    """Labels as they are."""
    return request.labels.copy()


@noise_model("symmetric")
def symmetric(request: NoiseRequest) -> NDArray[np.int64]:
    """Exactly ``int(rate * N)`` samples get a label uniform over all K classes."""
    labels, rng = request.labels, request.rng
    noisy = labels.copy()
    chosen = rng.permutation(len(labels))[: int(request.rate * len(labels))]
    noisy[chosen] = rng.integers(request.num_classes, size=len(chosen))
    return noisy


@noise_model("symmetric-exclusive")
def symmetric_exclusive(request: NoiseRequest) -> NDArray[np.int64]:
    """Exactly ``int(rate * N)`` samples get a label uniform over the K - 1 wrong classes."""
    _need_two_classes(request)
    labels, rng = request.labels, request.rng
    noisy = labels.copy()
    chosen = rng.permutation(len(labels))[: int(request.rate * len(labels))]
    shift = rng.integers(1, request.num_classes, size=len(chosen))
    noisy[chosen] = (labels[chosen] + shift) % request.num_classes
    return noisy


@noise_model("asymmetric")
def asymmetric(request: NoiseRequest) -> NDArray[np.int64]:
    """Look-alikes. CIFAR-10: truck to automobile, bird to airplane, deer to horse, cat to dog and
    back. Digits: 2 to 7, 3 to 8, 7 to 1, 5 to 6 and back.

    Classes are found by name, whatever their order; classes of other names are left alone.
    """
    ids = _ids_by_name(request)
    for flips in LOOK_ALIKES.values():
        if {*flips, *flips.values()} <= ids.keys():
            target = np.arange(request.num_classes)
            for source, destination in flips.items():
                target[ids[source]] = ids[destination]
            return _flip_classes(request, target)
    raise UserError(
        f"--noise.kind {request.kind}: made for the classes of {' and of '.join(LOOK_ALIKES)}, "
        f"the data set has others; {_kinds_that_fit(request)}"
    )


@noise_model("asymmetric-blocks5")
def asymmetric_blocks5(request: NoiseRequest) -> NDArray[np.int64]:
    """Every class to the next one in its block of five ids, the fifth to the first.

    This is what papers run on CIFAR-100. Its ids are alphabetical: no block is one of its
    superclasses, and 6 of the 100 flips stay inside one.
    """
    k = request.num_classes
    if k % 5:
        raise UserError(
            f"--noise.kind {request.kind}: needs a number of classes divisible by five, the data "
            f"set has {k}; {_kinds_that_fit(request)}"
        )
    ids = np.arange(k)
    return _flip_classes(request, ids // 5 * 5 + (ids + 1) % 5)


@noise_model("asymmetric-superclass")
def asymmetric_superclass(request: NoiseRequest) -> NDArray[np.int64]:
    """CIFAR-100: every class to the next one in its superclass, the fifth to the first.

    Classes are found by name, whatever their order.
    """
    ids = _ids_by_name(request)
    known = {name for members in CIFAR100_SUPERCLASSES.values() for name in members}
    strange = sorted(ids.keys() ^ known)
    if strange:
        raise UserError(
            f"--noise.kind {request.kind}: made for the 100 classes of CIFAR-100, those of the "
            f"data set differ (first: {strange[0]}); {_kinds_that_fit(request)}"
        )
    target = np.arange(request.num_classes)
    for members in CIFAR100_SUPERCLASSES.values():
        for position, name in enumerate(members):
            target[ids[name]] = ids[members[(position + 1) % len(members)]]
    return _flip_classes(request, target)


@noise_model("pair")
def pair(request: NoiseRequest) -> NDArray[np.int64]:
    """Every class k to ``(k + 1) % K`` (Han et al., NeurIPS 2018)."""
    _need_two_classes(request)
    return _flip_classes(request, (np.arange(request.num_classes) + 1) % request.num_classes)


@noise_model("instance")
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


@noise_model("matrix")
def matrix(request: NoiseRequest) -> NDArray[np.int64]:
    """A sample of class y gets the label j with probability ``matrix[y, j]``; ignores the rate."""
    if request.matrix is None:
        raise UserError(
            f"--noise.kind {request.kind}: needs a transition matrix, "
            f"{request.num_classes} x {request.num_classes} probabilities; give one"
        )
    noisy = request.labels.copy()
    uniform = request.rng.random(len(noisy))
    cumulative = _cumulative(request.matrix)
    for k, members in enumerate(_members_by_class(request.labels, request.num_classes)):
        noisy[members] = np.searchsorted(cumulative[k], uniform[members], side="right")
    return noisy


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


def _need_two_classes(request: NoiseRequest) -> None:
    if request.num_classes < 2:
        raise UserError(
            f"--noise.kind {request.kind}: needs at least two classes; choose kind none"
        )


def _ids_by_name(request: NoiseRequest) -> dict[str, int]:
    if request.class_names is None:
        raise UserError(f"--noise.kind {request.kind}: goes by class names; give class_names")
    # Folders are named by hand: "Aquarium fish" is the class that the data set calls aquarium_fish.
    names = [name.casefold().replace(" ", "_").replace("-", "_") for name in request.class_names]
    return {name: k for k, name in enumerate(names)}


def _kinds_that_fit(request: NoiseRequest) -> str:
    kinds = ["symmetric", "symmetric-exclusive", "pair", "instance", "matrix"]
    if request.num_classes % 5 == 0:
        kinds.insert(2, "asymmetric-blocks5")
    return f"kinds that fit: {', '.join(kinds)}"


def _flip_classes(request: NoiseRequest, target: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exactly ``int(rate * n)`` of the n samples of every class k get the label ``target[k]``."""
    noisy = request.labels.copy()
    for k, members in enumerate(_members_by_class(request.labels, request.num_classes)):
        chosen = request.rng.permutation(members)[: int(request.rate * len(members))]
        noisy[chosen] = target[k]
    return noisy


def _members_by_class(labels: NDArray[np.int64], num_classes: int) -> list[NDArray[np.int64]]:
    """For each class the ascending rows, int64 [n], of its samples."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1])


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


def _cumulative(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cumulative probabilities [M, K] of the rows [M, K], the last one exactly 1.

    A uniform number u in [0, 1) then stands for the class j with ``c[j - 1] <= u < c[j]``, which
    is never one of probability 0.
    """
    c = np.cumsum(p, axis=1)
    return c / c[:, -1:]
