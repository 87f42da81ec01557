"""Pixels of files, alone and by each loader."""

import numpy as np
import torch

from alr_fast.data.datasets import Split
from alr_fast.data.images.decode import decode_rgb, prepare
from alr_fast.data.images.sources import FileImages
from alr_fast.data.layouts.base import new_index
from alr_fast.data.loaders.choose import LOADERS, LoaderChoice, has_dali, make_loader
from alr_fast.data.loaders.memory import decode_all
from alr_fast.data.loaders.transform import Transform
from alr_fast.data.sampler import SequentialSampler
from helpers.odd_images import SIDE

LOADING = [name for name in LOADERS if name != "dali" or has_dali()]
WHOLE = Transform(size=SIDE, resize=SIDE, mean=(0.0,), std=(1 / 255,))  # pixels as they are


def pixels_of(data):
    return decode_rgb(prepare(data)).permute(1, 2, 0).numpy()


def split_of(folder, files):
    """A split of these files, all called .jpg."""
    for number, data in enumerate(files):
        (folder / f"{number}.jpg").write_bytes(data)
    return split_at(folder, len(files))


def split_at(folder, count):
    index = new_index([f"{i}.jpg" for i in range(count)], np.zeros(count, np.int64), ("a",))
    return Split(index, FileImages(folder, index.paths))


def loaded(name, split, transform=WHOLE):
    """Pixels [N, H, W, 3] of all images, and the reasons of the unreadable ones."""
    decoded = {}
    if name == "memory":
        decoded["decoded"] = decode_all(split, transform.size, resize=transform.resize)
    loader = make_loader(
        LoaderChoice(name, "for the test"), split, SequentialSampler(len(split), 64), transform,
        device=torch.device("cpu"), workers=1, **decoded,
    )  # fmt: skip
    pixels = torch.cat([batch["image"] for batch in loader]).permute(0, 2, 3, 1).numpy()
    return pixels, {row: reason for row, (_, reason) in loader.broken.reasons.items()}
