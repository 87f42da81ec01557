"""A folder of images with one sub-folder a class.

``root/{train,test|val}/<class>/*.{jpg,jpeg,png,webp}``
"""

import os
from pathlib import Path

import numpy as np

from alr_fast.data.images import IMAGE_SUFFIXES
from alr_fast.data.index import SampleIndex
from alr_fast.errors import UserError

LAYOUT = "ROOT/train/<class>/* and ROOT/test/<class>/* (or val), files " + " ".join(IMAGE_SUFFIXES)


def read_folder(root: str | os.PathLike) -> tuple[SampleIndex, SampleIndex]:
    """Lists the training and the test images; opens none of them.

    Classes are the sub-folders of ``train`` in sorted order. Test images are taken from ``test``,
    or from ``val`` where there is no ``test``. Whether a folder's labels are right is not known, so
    ``clean_labels`` is None.

    Args:
        root: Folder that holds ``train`` and ``test`` or ``val``.

    Returns:
        Index of the training images and of the test images; paths start from ``root``.

    Raises:
        UserError: The folder is missing or empty, matches no known layout, has fewer than two
            classes, a class without images, or a test class that is not in train.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(f"--data-root {root}: no such folder")
    if not root.is_dir():
        raise UserError(f"--data-root {root}: is not a folder; pass the folder that holds train/")
    found = sorted(os.listdir(root))
    if not found:
        raise UserError(f"--data-root {root}: the folder is empty; looked for {LAYOUT}")
    tests = [name for name in ("test", "val") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not tests:
        missing = "train/" if not (root / "train").is_dir() else "test/ or val/"
        listing = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise UserError(
            f"--data-root {root}: no {missing} in it (found: {listing}); looked for {LAYOUT}"
        )

    class_names = _class_names(root / "train")
    test_names = _class_names(root / tests[0])
    unknown = sorted(set(test_names) - set(class_names))
    if unknown:
        raise UserError(
            f"{root / tests[0] / unknown[0]}: this class is not in {root / 'train'}; "
            "remove it or add training images of it"
        )
    if len(class_names) < 2:
        raise UserError(
            f"{root / 'train'}: only one class ({class_names[0]}); training needs two or more"
        )
    return (
        _list_split(root, "train", class_names, class_names),
        _list_split(root, tests[0], class_names, test_names),
    )


def _class_names(split: Path) -> tuple[str, ...]:
    names = sorted(e.name for e in os.scandir(split) if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise UserError(f"{split}: no class folders in it; looked for {LAYOUT}")
    return tuple(names)


def _list_split(
    root: Path, split: str, class_names: tuple[str, ...], present: tuple[str, ...]
) -> SampleIndex:
    paths: list[tuple[str, int]] = []
    for name in present:
        label = class_names.index(name)
        files = [
            e.name
            for e in os.scandir(root / split / name)
            if e.name.lower().endswith(IMAGE_SUFFIXES)
            and not e.name.startswith(".")
            and e.is_file()
        ]
        if not files:
            raise UserError(
                f"{root / split / name}: no images in this class folder; looked for "
                f"{' '.join(IMAGE_SUFFIXES)}; remove it or add images"
            )
        paths += [(f"{split}/{name}/{file}", label) for file in files]
    paths.sort()
    return SampleIndex(
        ids=np.arange(len(paths)),
        paths=[path for path, _ in paths],
        labels=np.array([label for _, label in paths], dtype=np.int64),
        clean_labels=None,
        class_names=class_names,
    )
