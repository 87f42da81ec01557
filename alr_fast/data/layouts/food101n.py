"""Food-101N: 310k images of 101 dishes, labelled by web searches, and Food-101 for testing.

``meta/imagelist.tsv``, ``meta/classes.txt``, ``images/<class>/``; and ``meta/test.txt`` and images
of Food-101, in the same folders, or in ``food-101/`` in the root or beside it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from alr_fast.data.layouts.base import IMAGE_SUFFIXES, Found, Layout, Listing, new_index, present
from alr_fast.data.layouts.lists import SampleList, checked_names, numbered_lines, shown
from alr_fast.errors import UserError

_TRAIN = "meta/imagelist.tsv"
_CLASSES = "meta/classes.txt"
_TEST = "meta/test.txt"
_TEST_ROOTS = ("", "food-101/", "../food-101/")


def find(root: Path) -> Found | None:
    """The root with the lists of Food-101N in ``meta/``."""
    if not (root / _TRAIN).is_file() or not (root / _CLASSES).is_file():
        return None
    return Found(root, f"Food-101N in {root}")


def read(found: Found, split: str) -> Listing:
    """Lists one split in the order of its list; classes are numbered as in ``classes.txt``.

    Raises:
        UserError: A file or folder is missing, or a line names no class of ``classes.txt``, leaves
            the root or repeats an earlier one; the message names list and line.
    """
    root = found.root
    names = [os.fsdecode(line) for _, line in numbered_lines(root / _CLASSES)]
    class_names = checked_names(tuple(names[1:]), root / _CLASSES, None)
    if split == "train":
        path, images, suffix = root / _TRAIN, "images/", b""
        lines = _without_header(path)
    else:
        base = _test_base(root)
        path, images, suffix = root / base / _TEST, f"{base}images/", b".jpg"
        lines = numbered_lines(path)
    present(root / images, "unpack the images there")

    label_of = {os.fsencode(name): k for k, name in enumerate(class_names)}
    prefix = os.fsencode(images)
    samples = SampleList(path, prefix=prefix, root=root)
    for number, line in lines:
        name = line.split(b"\t", 1)[0].rstrip()
        label = label_of.get(name.split(b"/", 1)[0]) if b"/" in name else None
        if label is None:
            raise UserError(
                f"{path}, line {number}: {shown(line)} does not begin with a class of "
                f"{root / _CLASSES}; restore both from the download"
            )
        samples.add(prefix + name + suffix, label, number)
    index = new_index(samples.paths(), samples.labels(), class_names)
    return Listing(index, (path, root / _CLASSES, root))  # Food-101 may lie in the root


def _without_header(path: Path) -> Iterator[tuple[int, bytes]]:
    lines = numbered_lines(path)
    number, header = next(lines)
    if os.fsdecode(header).lower().endswith(IMAGE_SUFFIXES):
        raise UserError(
            f"{path}, line {number}: expected a header, found {shown(header)}; restore it from the "
            "download"
        )
    return lines


def _test_base(root: Path) -> str:
    for base in _TEST_ROOTS:
        if (root / base / _TEST).is_file():
            return base
    raise UserError(
        f"{root / _TEST}: no such file; Food-101N is tested on Food-101: unpack food-101 into "
        f"{root} or beside it"
    )


LAYOUT = Layout(
    "food101n",
    f"{_TRAIN}, {_CLASSES} and images/<class>/; for testing Food-101, the same or a folder "
    "food-101 in or beside it",
    find,
    read,
    marks=(_TRAIN, _CLASSES, "images"),
)
