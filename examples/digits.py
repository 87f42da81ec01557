"""What the examples share: digits with wrong labels, a small model, and the result."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


def noisy_digits(rate: float = 0.4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images [1797, 1, 8, 8] in [0, 1], labels of which a share `rate` is wrong, true labels."""
    images, clean = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(clean)) < rate
    labels = np.where(wrong, (clean + rng.integers(1, 10, len(clean))) % 10, clean)
    images = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    return images, torch.from_numpy(labels), torch.from_numpy(clean)


def small_model() -> nn.Module:
    """An MLP that can memorise the digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def label_accuracy(labels: Tensor, refined: Tensor, clean: Tensor) -> tuple[float, float]:
    """Share of right labels before and after training, which it prints, too."""
    before, after = ((y.cpu() == clean).float().mean().item() for y in (labels, refined))
    print(f"right labels: {before:.1%} given, {after:.1%} refined")
    return before, after
