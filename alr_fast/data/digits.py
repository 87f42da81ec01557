"""The handwritten digits that scikit-learn ships: 1,797 real images of 8x8 pixels, no download."""

import numpy as np

from alr_fast.data.images import ArrayImages
from alr_fast.data.index import SampleIndex

TEST_SHARE = 0.2
SPLIT_SEED = 0  # one fixed split, whatever the seed of the run: figures of different seeds compare


def read_digits() -> tuple[tuple[SampleIndex, ArrayImages], tuple[SampleIndex, ArrayImages]]:
    """Train and test split, stratified by class: 1,437 and 360 images, uint8 [N, 1, 8, 8].

    The given labels are the true ones; noise is injected later, into the training labels only.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # 0..16 -> 0..255
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=labels
    )

    def split(positions: np.ndarray) -> tuple[SampleIndex, ArrayImages]:
        positions = np.sort(positions)
        index = SampleIndex(
            ids=np.arange(len(positions)),
            paths=[f"digits/{p:04d}" for p in positions],
            labels=labels[positions],
            clean_labels=labels[positions],
            class_names=tuple("0123456789"),
        )
        return index, ArrayImages(images[positions])

    return split(train), split(test)
