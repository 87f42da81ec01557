"""The handwritten digits of scikit-learn: 1,797 real images of 8x8 pixels, without a download."""

from pathlib import Path

import numpy as np

from alr_fast.data.images.sources import ArrayImages
from alr_fast.data.index import PathTable
from alr_fast.data.layouts.base import Found, Layout, Listing, new_index

TEST_SHARE = 0.2
SPLIT_SEED = 0  # the same split for every seed of a run, so that results can be compared


def read_digits(split: str) -> Listing:
    """Train or test split, stratified by class: 1,437 and 360 images, uint8 [N, 1, 8, 8].

    The given labels are the true ones; noise is injected later, and only into the training labels.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # 0..16 -> 0..255
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=labels
    )
    chosen = np.sort({"train": train, "test": test}[split])
    index = new_index(
        PathTable.of(f"digits/{number:04d}" for number in chosen),
        labels[chosen],
        tuple("0123456789"),
        clean_labels=labels[chosen],
    )
    return Listing(index, images=ArrayImages(images[chosen]))


LAYOUT = Layout(
    "digits",
    "nothing: the images come with scikit-learn",
    lambda root: None,
    lambda found, split: read_digits(split),
)
FOUND = Found(Path(), "the handwritten digits of scikit-learn")
