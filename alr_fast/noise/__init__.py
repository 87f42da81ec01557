"""Label noise: models by name, the realised noise in a list of labels, files of noisy labels.

    noise = inject(labels, num_classes=10, kind="symmetric", rate=0.4, seed=0)
    noise.labels, noise.realised_rate, noise.counts
    save_labels("noisy.npz", noise, index)
    labels = load_labels("noisy.npz", index)

    alr-fast noise --data-root DIR --kind pair --rate 0.45 --output noisy.npz

`models` describes the noise models and the meaning of their rates, `files` the file format.
"""

from alr_fast.noise.files import (
    check_output,
    load_labels,
    load_noise,
    read_matrix,
    save_labels,
)
from alr_fast.noise.injection import (
    NOISE_MODELS,
    InjectedNoise,
    check_noise,
    class_numbers_line,
    inject,
    needs_features,
)

__all__ = [
    "NOISE_MODELS",
    "InjectedNoise",
    "check_noise",
    "check_output",
    "class_numbers_line",
    "inject",
    "load_labels",
    "load_noise",
    "needs_features",
    "read_matrix",
    "save_labels",
]
