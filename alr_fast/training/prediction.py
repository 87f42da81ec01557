"""Predictions of a trained model for samples without labels."""

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from alr_fast.data.broken import BrokenSamples
from alr_fast.data.datasets import Split
from alr_fast.data.images.sources import FeatureRows, FileImages
from alr_fast.data.index import PathTable, SampleIndex
from alr_fast.data.layouts.features import is_vectors, read_unlabelled
from alr_fast.data.loaders.base import Loader
from alr_fast.data.loaders.choose import LoaderChoice, has_dali, make_loader
from alr_fast.data.sampler import SequentialSampler
from alr_fast.data.tables.writing import Columns, save_table
from alr_fast.data.unlabelled import find_images
from alr_fast.errors import UserError
from alr_fast.training.config.schema import WEIGHTS, DataConfig, words
from alr_fast.training.description import Description
from alr_fast.training.distributed import choose_device
from alr_fast.training.loaders import evaluation_batch_size
from alr_fast.training.models import precision_of
from alr_fast.training.output.run_folder import read_config
from alr_fast.training.run_data import num_workers
from alr_fast.training.run_paths import actual_path
from alr_fast.training.trained_model import described, load_described, weights_in, with_channels
from alr_fast.utils.text import is_utf8, is_utf8_bytes, printable

_FEW = 32  # samples that are read sooner than worker processes have started
_WARNINGS = 5  # about single images that cannot be read


@torch.no_grad()
def predicted_logits(
    model: nn.Module, loader: Loader, autocast: torch.autocast
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Batch by batch the indices of the samples that can be read, int64 [M], and their logits,
    float32 [M, K], on the device.

    Args:
        model: Model in evaluation mode, on the device of the loader.
        loader: Batches that contain every sample of this process once.
        autocast: Precision of the model.
    """
    for batch in loader:
        with autocast:
            logits = model(batch["image"])
        keep = batch["index"] >= 0
        yield batch["index"][keep], logits[keep].float()


@dataclass(eq=False)
class Prediction:
    """The predictions of a model for samples, computed in pieces.

    Attributes:
        description: Description of the model.
        model: On the device, in evaluation mode.
        loader: Batches of the samples; their labels mean nothing.
        found: Number of samples that were found.
        top: Classes of each sample in the table.
        soft: Whether the table has the probabilities of all classes.
        warn: Takes a line of text about samples that cannot be read.
    """

    description: Description
    model: nn.Module
    loader: Loader
    found: int
    top: int
    soft: bool
    warn: Callable[[str], None]

    @classmethod
    def of(
        cls,
        run: Path,
        places: Sequence[Path],
        *,
        method: str | None = None,
        root: Path | None = None,
        column: str | None = None,
        top: int = 1,
        soft: bool = False,
        device: str = "auto",
        batch_size: int | None = None,
        workers: int | None = None,
        most: int | None = None,
        log: Callable[[str], None] = lambda text: None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> "Prediction":
        """Finds the samples and loads the model; opens no image.

        Args:
            run: Folder of a run, or file of weights.
            places: Images, folders and lists, or files of features.
            method: Method of the run; None for the last one.
            root: Folder that paths in lists are relative to; None for that of the list.
            column: Array or column of features; None for the only one.
            top, soft, warn: See the attributes.
            device: See `choose_device`.
            batch_size: Samples at a time; None for the size of test batches.
            workers: Processes or threads that read; None for one for each core.
            most: Samples to predict, the first ones; None for all.
            log: Takes a line of text.

        Raises:
            UserError: A wrong input.
        """
        for name, value, least in (
            ("top", top, 1),
            ("batch_size", batch_size, 1),
            ("workers", workers, 0),
        ):
            if value is not None and value < least:
                raise UserError(f"must be {least} or more", argument=name, value=value)
        weights = find_weights(run, method)
        description = described(weights)
        split = _samples(description, places, root, column, log)
        found = len(split)
        split = split if most is None else split.take(np.arange(min(most, found)))
        chosen = choose_device(device)
        model = load_described(weights, description)
        if description.input_shape[0] == 1 and not description.of_features:
            model = _Gray(model)
        loader = make_loader(
            _loader(description, log),
            split,
            SequentialSampler(
                len(split), batch_size or evaluation_batch_size(description.transform.size)
            ),
            description.transform,
            device=chosen,
            dtype=getattr(torch, description.precision),
            workers=0
            if workers is None and len(split) <= _FEW
            else num_workers(DataConfig(workers=workers)),
            broken=BrokenSamples(split, 1.0),
        )
        return cls(
            description=description,
            model=model.to(chosen).to(memory_format=torch.channels_last).eval(),
            loader=loader,
            found=found,
            top=min(top, description.num_classes),
            soft=soft,
            warn=warn,
        )

    @property
    def steps(self) -> int:
        """Number of pieces."""
        return len(self.loader)

    def __len__(self) -> int:
        """Number of samples that are predicted, if they can be read."""
        return len(self.loader.split)

    def pieces(self) -> Iterator[Columns]:
        """The columns of the table, batch by batch, without samples that cannot be read.

        Raises:
            UserError: None of the samples can be read.
        """
        split = self.loader.split
        autocast = precision_of(self.description.precision, self.loader.device)
        broken = self.loader.broken.reasons
        warned = 0
        with closing(predicted_logits(self.model, self.loader, autocast)) as batches:
            for index, logits in batches:
                for path, reason in islice(broken.values(), warned, _WARNINGS):
                    self.warn(f"{path}: {reason}; left out")
                warned = min(len(broken), _WARNINGS)
                yield self._columns(split.index.paths.take(index.cpu().numpy()), logits)
        if len(broken) == len(split):
            path, reason = next(iter(broken.values()))
            raise UserError(
                f"{path}: {reason}; "
                + ("pass an image" if len(split) == 1 else "none of the images can be read")
            )
        if len(broken) > _WARNINGS:
            self.warn(f"{len(broken):,} of {len(split):,} images cannot be read and are left out")

    def _columns(self, paths: PathTable, logits: Tensor) -> Columns:
        names, probabilities = self.description.class_names, logits.softmax(1)
        # argmax and a stable order: of equal logits the first class, as in testing.
        order = logits.argmax(1)[:, None]
        if self.top > 1:
            order = logits.sort(dim=1, descending=True, stable=True).indices[:, : self.top]
        columns: Columns = {"path": list(paths)}
        for rank, classes in enumerate(order.T, start=1):
            end = "" if rank == 1 else f"_{rank}"
            columns[f"class{end}"] = [names[k] for k in classes.tolist()]
            chosen = probabilities.gather(1, classes[:, None]).squeeze(1)
            columns[f"probability{end}"] = chosen.cpu().numpy()
        if self.soft:
            columns["probabilities"] = probabilities.cpu().numpy()
        return columns

    def write(self, path: Path, pieces: Iterable[Columns]) -> None:
        """Writes `pieces` as a table, atomically; .csv or .parquet.

        Raises:
            UserError: It cannot be written, or none of the samples can be read.
        """
        names = self.description.class_names
        columns = [f"class_{rank}" for rank in range(2, self.top + 1)]
        not_utf8 = set() if all(map(is_utf8, names)) else {"class", *columns}
        if not is_utf8_bytes(b"".join(self.loader.split.index.paths.chunks())):
            not_utf8.add("path")
        # As `alr_fast.export` writes them: training compares the class names.
        metadata = {"method": self.description.method, "class_names": json.dumps(names)}
        save_table(path, pieces, not_utf8=not_utf8, metadata=metadata)


class _Gray(nn.Module):
    """A model of gray images for images in colour."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(with_channels(images, 1))


def find_weights(run: Path, method: str | None) -> Path:
    """The file of weights of a run.

    Args:
        run: Folder of the run, or the file itself.
        method: Method; None for the last one of those that it has trained.

    Raises:
        UserError: There is none.
    """
    run = actual_path(run)
    if run.is_file():
        if method is not None:
            raise UserError(f"{run} is one already; leave it out", argument="method", value=method)
        return run
    if not run.is_dir():
        raise UserError(f"{run}: no such folder or file; pass the folder of a run")
    files = weights_in(run)
    if not files:
        raise UserError(f"{run}: has no weights, METHOD{WEIGHTS}; pass a run that has finished")
    found = ", ".join(map(printable, files))
    if method is not None and method not in files:
        raise UserError(f"not trained by {run}; it has {found}", argument="method", value=method)
    names = list(files) if method is None else [method]
    if len(names) > 1:
        names = [name for name in _methods(run) if name in files]
    if not names:
        raise UserError(f"{run}: has the weights of {found}; name one", argument="method")
    return files[names[-1]]


def _methods(run: Path) -> list[str]:
    """The methods of a run in the order of training; none if its options cannot be read."""
    try:
        methods = read_config(run)["methods"]
        return (
            words(methods) if isinstance(methods, str) else [m for m in methods if type(m) is str]
        )
    except (UserError, KeyError, TypeError):
        return []


def _samples(
    description: Description,
    places: Sequence[Path],
    root: Path | None,
    column: str | None,
    log: Callable[[str], None],
) -> Split:
    """The samples at some places; they have the label 0."""
    features = [place for place in places if _has_features(place)]
    what = description.model
    if not description.of_features:
        if features:
            raise UserError(
                f"is a file of features, the model {what} takes images",
                argument="images",
                value=features[0],
            )
        if column is not None:
            raise UserError("is for files of features", argument="column", value=column)
        paths = find_images(places, root, log)
        return _split(description, paths, FileImages(Path(), paths))
    others = [place for place in places if place not in features]
    if others:
        missing = "" if others[0].exists() else "no such file; "
        raise UserError(
            f"{missing}the model {what} takes features: pass .npz or .parquet files",
            argument="images",
            value=others[0],
        )
    read = [read_unlabelled(place, column) for place in places]
    for rows, _ in read:
        if rows.features.shape[1] != description.input_shape[0]:
            raise UserError(
                f"has {rows.features.shape[1]} features, the model takes "
                f"{description.input_shape[0]}",
                argument="images",
                value=rows.file,
            )
    values = read[0][0].features
    if len(read) > 1:
        values = np.concatenate([rows.features for rows, _ in read])
    paths = PathTable.of(path for _, of_file in read for path in of_file)
    return _split(description, paths, FeatureRows(places[0], values))


def _has_features(place: Path) -> bool:
    return place.suffix.lower() in (".npz", ".npy") or is_vectors(place)


def _split(description: Description, paths: PathTable, images: FileImages | FeatureRows) -> Split:
    n = len(paths)
    labels = np.zeros(n, dtype=np.int64)
    index = SampleIndex(np.arange(n), paths, labels, None, description.class_names)
    return Split(index, images)


def _loader(description: Description, log: Callable[[str], None]) -> LoaderChoice:
    """The loader that decodes as that of the test images did."""
    if description.loader == "dali" and not has_dali():
        log("loader: torch; pixels may differ by rounding from those of the test, by DALI")
    dali = description.loader == "dali" and has_dali()
    return LoaderChoice("dali" if dali else "torch", "as in the test")
