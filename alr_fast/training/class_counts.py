"""Accuracy of each class."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ClassCounts:
    """Samples of each class, and those of them that are predicted correctly.

    Attributes:
        samples: [K].
        correct: [K].
    """

    samples: list[int]
    correct: list[int]

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """Share of the samples of each class that are predicted correctly (its recall), [K]; NaN
        for a class without samples."""
        samples = np.array(self.samples, dtype=np.float64)
        return np.array(self.correct) / np.where(samples > 0, samples, np.nan)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the accuracies of the classes that occur; NaN if none does."""
        accuracies = self.accuracies
        found = accuracies[~np.isnan(accuracies)]
        return float(found.mean()) if len(found) else float("nan")
