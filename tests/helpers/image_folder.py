"""Small image folders for the tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_folder(
    root: Path,
    *,
    train: dict[str, int],
    test: dict[str, int],
    test_name: str = "test",
    size: tuple[int, int] = (8, 8),
    suffix: str = ".png",
) -> Path:
    """Writes ``root/{train,test_name}/<class>/<number><suffix>`` with random pixels.

    Args:
        root: Folder to create.
        train: Images of each training class.
        test: Images of each test class.
        test_name: Name of the test split.
        size: Width and height in pixels.
        suffix: Suffix of the files, which selects their format.
    """
    rng = np.random.default_rng(0)
    for split, classes in (("train", train), (test_name, test)):
        for k, (name, count) in enumerate(classes.items()):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                # Classes differ in brightness, so that even a short training learns something.
                pixels = rng.integers(60 * k, 60 * k + 60, size=(size[1], size[0], 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}{suffix}")
    return root
