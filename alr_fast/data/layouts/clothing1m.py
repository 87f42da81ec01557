"""Clothing1M: a million images from shops, labelled by the shops, and a few labelled by hand.

``{noisy,clean}_label_kv.txt``, ``noisy_train_key_list.txt``,
``clean_{train,val,test}_key_list.txt`` and ``category_names_eng.txt``, beside the folders ``0`` to
``9``, or in ``annotations/`` beside ``images/``.
"""

import os
from pathlib import Path

from alr_fast.data.layouts.base import Found, Layout, Listing, new_index, present
from alr_fast.data.layouts.lists import (
    SampleList,
    checked_names,
    labelled_lines,
    numbered_lines,
    shown,
)
from alr_fast.errors import UserError

NUM_CLASSES = 14
_IMAGES = b"images/"
_NAMES = "category_names_eng.txt"
# split -> list of its images, file of their labels
_LISTS = {
    "train": ("noisy_train_key_list.txt", "noisy_label_kv.txt"),
    "clean_train": ("clean_train_key_list.txt", "clean_label_kv.txt"),
    "val": ("clean_val_key_list.txt", "clean_label_kv.txt"),
    "test": ("clean_test_key_list.txt", "clean_label_kv.txt"),
}


def find(root: Path) -> Found | None:
    """A root with the text files in it or in ``annotations/``; one of the files is enough."""
    folder = _text_folder(root)
    return None if folder is None else Found(root, f"Clothing1M, lists in {folder}")


def read(found: Found, split: str) -> Listing:
    """Lists one split in the order of its key list; a million lines take seconds.

    The labels of ``train`` are those of the shops, and its ``clean_labels`` are None: only a few of
    these images were labelled by hand, too. In the other splits both are the labels by hand.

    Raises:
        UserError: A file or the folder of the images is missing, an image has no label or two
            different ones, is listed twice or leaves the root, or a label is out of range.
    """
    folder = _text_folder(found.root) or found.root
    keys, kv, names = (present(folder / name) for name in (*_LISTS[split], _NAMES))
    cut = _cut(found.root)
    lines = tuple(line.decode("utf-8", "replace") for _, line in numbered_lines(names))
    class_names = checked_names(lines, names, NUM_CLASSES)

    label_of: dict[bytes, int] = {}
    for number, name, label in labelled_lines(kv, NUM_CLASSES):
        earlier = label_of.setdefault(name, label)
        if earlier != label:
            raise UserError(
                f"{kv}, line {number}: {shown(name)} has label {label} here and {earlier} on an "
                "earlier line; remove one of the two"
            )
    samples = SampleList(keys, root=found.root)
    for number, name in numbered_lines(keys):
        if name not in label_of:
            raise UserError(
                f"{keys}, line {number}: {shown(name)} has no label in {kv}; restore both from the "
                "download"
            )
        path = name[cut:] if name.startswith(_IMAGES) else name
        samples.add(path, label_of[name], number)
    clean = None if split == "train" else samples.labels()
    index = new_index(samples.paths(), samples.labels(), class_names, clean)
    # The root decides whether the paths begin with images/, see `_cut`.
    return Listing(index, (keys, kv, names, found.root))


def _text_folder(root: Path) -> Path | None:
    files = {name for pair in _LISTS.values() for name in pair}
    for folder in (root, root / "annotations"):
        if any((folder / name).is_file() for name in files):
            return folder
    return None


def _cut(root: Path) -> int:
    """Length of the prefix ``images/`` of a path if the folders lack it, else 0."""
    if (root / "images").is_dir():
        return 0
    if any((root / str(digit)).is_dir() for digit in range(10)):
        return len(_IMAGES)
    raise UserError(
        f"{root}: no images of Clothing1M; looked for the folders images/ and 0 to 9, found "
        f"{', '.join(sorted(os.listdir(root))[:5])}; unpack the images there"
    )


LAYOUT = Layout(
    "clothing1m",
    "noisy_label_kv.txt and the other lists beside folders 0 to 9, or in annotations/ beside "
    "images/",
    find,
    read,
    tuple(_LISTS),
)
