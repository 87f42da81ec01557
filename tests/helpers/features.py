"""The digits of scikit-learn as features, in a file."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def write_digits(path: Path, samples: int = 1797, **arrays) -> Path:
    """Writes the pixels of the digits as features, float32 [samples, 64], and their labels.

    Args:
        path: File to write, .npz.
        samples: Number of samples, the first ones.
        arrays: Further arrays, or other ones instead of X and y.
    """
    digits = load_digits()
    x, y = digits.data[:samples].astype(np.float32), digits.target[:samples]
    np.savez(path, **{"X": x, "y": y, **arrays})
    return path
