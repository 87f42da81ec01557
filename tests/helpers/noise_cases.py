"""Labels and arguments of each kind of noise, for the tests of noise."""

import numpy as np

from alr_fast.noise import classes, inject

N, K = 20_000, 10
CLEAN = np.random.default_rng(7).integers(K, size=N)
CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR100 = tuple(sorted(name for names in classes.CIFAR100_SUPERCLASSES.values() for name in names))
# Arguments of each kind beside labels and rate, for 20,000 samples of the classes of CIFAR-10.
FEATURES = np.random.default_rng(8).integers(256, size=(N, 2, 3), dtype=np.uint8)
MATRIX = np.full((K, K), 0.05) + np.eye(K) * 0.5
NEEDS = {
    "asymmetric": {"class_names": CIFAR10},
    "asymmetric-superclass": {"class_names": CIFAR100, "num_classes": 100},
    "instance": {"features": FEATURES},
    "matrix": {"matrix": MATRIX},
}


def noise_of(kind, rate, seed=0, labels=CLEAN):
    options = {"num_classes": K, **NEEDS.get(kind, {})}
    return inject(labels, kind=kind, rate=rate, seed=seed, **options)
