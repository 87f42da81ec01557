"""The usual size of the images of a split."""

import numpy as np

from alr_fast.data.datasets import Split
from alr_fast.data.images.decode import prepare
from alr_fast.data.images.sources import BrokenImage
from alr_fast.errors import UserError

_SAMPLE = 64  # images that are looked at


def median_side(split: Split) -> tuple[int, int]:
    """The median of the shorter side of images in pixels, and the number of images looked at.

    It is the size that they are best resized to if nobody chose one. Looked at are up to 64 images
    that can be read, spread evenly over the split: classes and sources lie one after another there.
    The same split has the same result.

    Args:
        split: Samples with images in files or shards.

    Raises:
        UserError: None of these images can be read.
    """
    sides, reason = [], ""
    rows = np.linspace(0, len(split) - 1, min(len(split), _SAMPLE)).astype(np.int64)
    for row in rows.tolist():
        try:
            encoded = prepare(split.images.read(row))
        except BrokenImage as error:
            reason = reason or f"{split.images.name(row)} cannot be read as an image ({error})"
        else:
            sides.append(min(encoded.height, encoded.width))
    if not sides:
        others = ", nor can the others that were tried" if len(rows) > 1 else ""
        missing = reason.endswith("(no such file)")
        remedy = "correct the paths or the folder" if missing else "replace or remove the files"
        raise UserError(f"{reason}{others}; {remedy}")
    return sorted(sides)[(len(sides) - 1) // 2], len(sides)
