"""Trained models from their files, and the preparation of their samples."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from alr_fast.bank.file import DIGEST, as_bytes, digest_of
from alr_fast.data.images.decode import decode_square, prepare, resize_part, to_rgb
from alr_fast.data.images.sources import read_image_file
from alr_fast.data.loaders.base import Normalise
from alr_fast.errors import UserError
from alr_fast.training.config.schema import WEIGHTS
from alr_fast.training.description import (
    REMEDY,
    Description,
    Layout,
    read_description,
    read_header_of,
    unreadable,
)
from alr_fast.training.models import build_model
from alr_fast.training.output.run_folder import classes_in_summary, read_config
from alr_fast.training.run_paths import BANK
from alr_fast.utils.files import reading
from alr_fast.utils.text import error_text, printable


class TestTransform:
    """Prepares a sample for a model, as the test samples of its run were prepared.

    Args:
        description: Description of the model.

    Attributes:
        transform: Size, mean and standard deviation.
    """

    __test__ = False  # no test of pytest

    def __init__(self, description: Description) -> None:
        self.transform = description.transform
        self._shape = description.input_shape
        if not description.of_features:
            self._normalise = Normalise(self.transform, 3, torch.device("cpu"), torch.float32)

    def __call__(self, sample: Any) -> Tensor:
        """One sample, not a batch.

        Args:
            sample: An image as a path, encoded bytes, a Pillow image, or an array or tensor, uint8
                [H, W, 3] or [H, W]; features [D] as anything that `torch.as_tensor` takes.

        Returns:
            float32 [C, S, S] or [D].

        Raises:
            UserError: A sample has another shape or type.
            BrokenImage: An image cannot be read.
        """
        if len(self._shape) == 1:
            values = torch.as_tensor(sample, dtype=torch.float32)
            if values.shape != self._shape:
                raise UserError(
                    f"has shape {list(values.shape)}, the model takes {self._shape[0]} features",
                    argument="sample",
                )
            return values
        square = self._square(sample)
        images = self._normalise(square.permute(1, 2, 0)[None].contiguous())
        return with_channels(images, self._shape[0])[0].contiguous()

    def _square(self, image: Any) -> Tensor:
        """The part of an image that the model sees, uint8 [3, S, S]."""
        transform = self.transform
        if isinstance(image, str | os.PathLike):
            image = read_image_file(image)
        if isinstance(image, bytes):
            encoded = prepare(image)
            box = transform.box(encoded.height, encoded.width)
            return decode_square(encoded, box, transform.size)
        pixels = _pixels(image)
        return resize_part(pixels, transform.box(*pixels.shape[1:]), transform.size)


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Colour images [B, 3, H, W] for a model of ``channels`` channels: in gray for one, by ITU-R
    601, where gray ones keep their values."""
    if channels != 1:
        return images
    red, green, blue = images.float().unbind(1)
    luma = green + 0.299 * (red - green) + 0.114 * (blue - green)
    return luma[:, None].to(images.dtype)


def _pixels(image: Any) -> Tensor:
    """The pixels of a Pillow image or an array, uint8 [3, H, W], upright."""
    from PIL import Image, ImageOps

    if isinstance(image, Image.Image):
        image = np.array(to_rgb(ImageOps.exif_transpose(image)))
    array = torch.as_tensor(image)
    if array.ndim == 2:
        array = array[:, :, None].expand(-1, -1, 3)
    if array.dtype != torch.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise UserError(
            f"is {array.dtype} {list(array.shape)}; pass uint8 pixels [H, W, 3] or [H, W]",
            argument="sample",
        )
    return array.permute(2, 0, 1).contiguous()


def load_model(
    weights: str | os.PathLike[str],
) -> tuple[nn.Module, TestTransform, tuple[str, ...]]:
    """A trained model from its file alone.

        model, transform, class_names = load_model("runs/latest/alr.safetensors")
        logits = model(transform("photo.jpg")[None])
        print(class_names[logits.argmax()])

    Args:
        weights: RUN/METHOD.safetensors, of this version or a later one with the same format.

    Returns:
        The model in evaluation mode, on the CPU; the preparation of a sample, which also takes the
        Pillow images of torchvision's data sets; and the names of the classes, in the order of the
        logits.

    Raises:
        UserError: The file is missing or damaged, or an earlier version wrote it, without the
            description of the model.
    """
    path = Path(weights)
    description = described(path)
    return load_described(path, description), TestTransform(description), description.class_names


def weights_in(run: Path) -> dict[str, Path]:
    """The files of weights in the folder of a run, by method.

    Raises:
        UserError: The folder cannot be read.
    """
    with reading(run):
        return {
            path.stem: path
            for path in sorted(run.glob(f"*{WEIGHTS}"))
            if not path.name.endswith(BANK) and re.fullmatch(r"\w+", path.stem)
        }


def described(weights: Path) -> Description:
    """`read_description` of a file that must have one.

    Raises:
        UserError: It has none, or cannot be read.
    """
    description = read_description(weights)
    if description is None:
        problem = (
            "does not say what model it is of, as an earlier version of alr_fast wrote it; train "
            "again with this version"
        )
        raise UserError(problem, argument="weights", value=weights)
    return description


def load_described(weights: Path, description: Description) -> nn.Module:
    """The model of a file of weights, on the CPU, in evaluation mode.

    Raises:
        UserError: The file cannot be read, or its weights are not those of the model.
    """
    problem = f"has not the weights of the model {description.model} that it names; {REMEDY}"
    return _load(
        weights,
        description.model,
        num_classes=description.num_classes,
        input_shape=description.input_shape,
        misfit=problem,
    )


def load_for_data(
    weights: Path,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    class_names: tuple[str, ...] = (),
) -> nn.Module:
    """A model of a run for data that are known, on the CPU, in evaluation mode.

    Args:
        weights: RUN/METHOD.safetensors; of a file without a description RUN/config.yaml contains
            the name of the model.
        num_classes: Number of classes K that it must have.
        input_shape: Shape of a sample, see `build_model`.
        class_names: Names of the K classes; with them, a run with the same classes in another order
            is refused.

    Raises:
        UserError: The file is missing, is no file of weights, or belongs to another kind of data.
    """
    description = read_description(weights)
    if description is None:
        name, names = _name_in_config(weights), classes_in_summary(weights.parent)
    else:
        name, names = description.model, description.class_names
    _check_order(weights, class_names, names)
    images = len(input_shape) == 3
    inputs = f"images of {input_shape[0]} channels" if images else f"{input_shape[0]} features"
    return _load(
        weights,
        name,
        num_classes=num_classes,
        input_shape=input_shape,
        misfit=f"does not fit {num_classes} classes and {inputs}; pass a model of the same data "
        "set",
    )


def _load(
    weights: Path, name: str, *, num_classes: int, input_shape: tuple[int, ...], misfit: str
) -> nn.Module:
    def build() -> nn.Module:
        try:
            return build_model(name, num_classes=num_classes, input_shape=input_shape)
        except UserError as error:
            problem = f"its model cannot be made here ({error})"
            raise UserError(problem, argument="weights", value=weights) from error

    _, layout, metadata = read_header_of(weights)
    if not _fits(build, layout):
        raise UserError(misfit, argument="weights", value=weights)
    try:
        saved = load_file(weights)
        if DIGEST in metadata:  # not of earlier versions
            columns = {name: as_bytes(tensor) for name, tensor in saved.items()}
            if digest_of(metadata, layout, columns) != metadata[DIGEST]:
                raise ValueError("it was changed after it was written, SHA-256 differs")
        model = build()
        model.load_state_dict(saved)
    except UserError:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise unreadable(weights, error) from error
    except RuntimeError as error:  # also if the memory is too small for the model
        raise UserError(misfit, argument="weights", value=weights) from error
    return model.eval()


def _fits(build: Callable[[], nn.Module], layout: Layout) -> bool:
    """Whether a model has tensors of these shapes. Made without memory: a small file may name a
    model of many GB."""
    try:
        with torch.random.fork_rng(devices=()), torch.device("meta"):
            own = build().state_dict()
    except UserError:
        raise
    except Exception:  # models of timm that compute when they are made
        return True
    shapes = {name: list(tensor.shape) for name, tensor in own.items()}
    return shapes == {name: shape for name, (_, shape) in layout.items()}


def _name_in_config(weights: Path) -> str:
    try:
        name = read_config(weights.parent)["model"]["name"]
        if not isinstance(name, str):
            raise TypeError("the name of its model is not a text")
    except (UserError, KeyError, TypeError) as error:
        problem = (
            f"cannot be read ({error_text(error)}); pass the weights in the folder of a run, with "
            "its config.yaml beside them"
        )
        raise UserError(problem, argument="weights", value=weights) from error
    return name


def _check_order(
    weights: Path, class_names: tuple[str, ...], names: tuple[str, ...] | None
) -> None:
    """Refuses a model of classes of which one has another number here: what it predicts for one
    class would be taken for another."""
    places = {name: k for k, name in enumerate(names or ())}
    for k, name in enumerate(class_names):
        if places.get(name, k) != k:
            problem = (
                f"was trained with {printable(name)} as class {places[name]}, in this data set it "
                f"is class {k}; pass a model of the same classes in the same order"
            )
            raise UserError(problem, argument="weights", value=weights)
