"""Data sets by name: what is trained and tested on, before any batch is made."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from alr_fast.config import DataConfig
from alr_fast.data.digits import read_digits
from alr_fast.data.folder import read_folder
from alr_fast.data.images import LARGEST_DEFAULT_SIZE, FileImages, Images, open_image
from alr_fast.data.index import SampleIndex, balanced_rows

__all__ = ["SampleIndex", "Split", "load_data"]

Track = Callable[..., Iterable]  # track(iterable, description=str, total=int) shows progress


@dataclass(frozen=True)
class Split:
    """Samples of one split and their pixels, row by row.

    Attributes:
        index: Ids, labels and names.
        images: Pixels, uint8 (C, S, S) each.
    """

    index: SampleIndex
    images: Images

    def __len__(self) -> int:
        return len(self.index)


def load_data(config: DataConfig, root: str | None, *, track: Track) -> tuple[Split, Split]:
    """Reads the training and the test split that a configuration asks for; writes nothing.

    Args:
        config: Which data set, how much of it and how it is read.
        root: Folder of images, for data sets that are not embedded.
        track: Shows the progress of the one pass that decodes every image.

    Returns:
        Training split, with the labels as the data set gives them, and test split.

    Raises:
        UserError: The data cannot be used; the message names the input and the way out.
    """
    if config.name == "digits":
        (train, train_images), (test, test_images) = read_digits()
        train_rows, test_rows = _limited_rows(config, train, test)
        return (
            Split(train.take(train_rows), train_images.take(train_rows)),
            Split(test.take(test_rows), test_images.take(test_rows)),
        )

    train, test = read_folder(root)
    train_rows, test_rows = _limited_rows(config, train, test)
    train, test = train.take(train_rows), test.take(test_rows)
    size = config.image_size or _default_size(Path(root) / train.paths[0])
    train_images = FileImages(Path(root), train.paths, size)
    test_images = FileImages(Path(root), test.paths, size)
    if config.verify:
        keep = train_images.nbytes + test_images.nbytes <= config.cache_mb << 20
        for what, images in (("training", train_images), ("test", test_images)):
            progress = partial(track, description=f"Reading {what} images", total=len(images))
            images.verify(keep=keep, workers=config.workers, progress=progress)
    return Split(train, train_images), Split(test, test_images)


def _limited_rows(config: DataConfig, train: SampleIndex, test: SampleIndex):
    return (
        balanced_rows(train.labels, train.num_classes, config.limit, option="data.limit"),
        balanced_rows(test.labels, test.num_classes, config.test_limit, option="data.test_limit"),
    )


def _default_size(path: Path) -> int:
    return min(*open_image(str(path)).size, LARGEST_DEFAULT_SIZE)
