"""What a file of trained weights, METHOD.safetensors, says about its model.

The metadata of the file are texts, each of them JSON but ``format``:

    format            pt, as other libraries write it
    format_version    1
    alr_fast_version  of the program that wrote the file
    model             name, num_classes, and in_chans or in_features
    class_names       in the order of the outputs
    input             how test samples were prepared: kind (images or features); of images size,
                      resize, crop, interpolation, channels, mean and std
    training          method, epoch, precision, and loader of the test images
    sha256            of weights and metadata: finds damage

A file may come from a stranger: `read_description` checks all of it before it is used.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from alr_fast.bank.file import DTYPES
from alr_fast.bank.read_file import read_header, strings
from alr_fast.data.loaders.choose import LOADERS
from alr_fast.data.loaders.transform import Transform
from alr_fast.errors import UserError
from alr_fast.training.config.schema import FloatName
from alr_fast.utils.files import open_regular
from alr_fast.utils.machine import available_memory
from alr_fast.utils.text import error_text, readable

VERSION = 1
_LARGEST_SIZE = 1 << 14  # of images, in pixels
_CROP, _INTERPOLATION = "center", "bilinear, antialiased"  # of all test images
REMEDY = "pass the weights of a run"

Layout = dict[str, tuple[str, list[int]]]


@dataclass(frozen=True)
class Description:
    """What a file of weights says about its model.

    Attributes:
        model: Name of the model, see `build_model`.
        input_shape: Shape of a sample, (C, S, S) of images or (D,) of features.
        class_names: Names of the K classes, in the order of the outputs.
        transform: Preparation of test images; without any effect on features.
        method: Method that trained the model.
        epoch: Number of epochs that it was trained.
        precision: Name of the type that the model was tested in.
        loader: Loader of the test images.
    """

    model: str
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    transform: Transform
    method: str
    epoch: int
    precision: str
    loader: str

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def of_features(self) -> bool:
        """Whether samples are features, not images."""
        return len(self.input_shape) == 1

    def metadata(self) -> dict[str, str]:
        """The metadata of the file."""
        from alr_fast import __version__

        model: dict[str, Any] = {"name": self.model, "num_classes": self.num_classes}
        if self.of_features:
            model["in_features"] = self.input_shape[0]
            prepared: dict[str, Any] = {"kind": "features"}
        else:
            model["in_chans"] = self.input_shape[0]
            prepared = {
                "kind": "images",
                "channels": self.input_shape[0],
                "size": self.transform.size,
                "resize": max(self.transform.resize, self.transform.size),
                "crop": _CROP,
                "interpolation": _INTERPOLATION,
                "mean": list(self.transform.mean),
                "std": list(self.transform.std),
            }
        values = {
            "format_version": VERSION,
            "alr_fast_version": __version__,
            "model": model,
            "class_names": list(self.class_names),
            "input": prepared,
            "training": {
                "method": self.method,
                "epoch": self.epoch,
                "precision": self.precision,
                "loader": self.loader,
            },
        }
        return {"format": "pt"} | {name: json.dumps(value) for name, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> "Description":
        """Inverse of `metadata`.

        Raises:
            ValueError: Something is missing, has another type or is out of range.
        """
        version = _value(metadata, "format_version", int)
        if version != VERSION:
            raise ValueError(f"its format_version is {version}, this version reads {VERSION}")
        model, prepared = _value(metadata, "model", dict), _value(metadata, "input", dict)
        training, names = _value(metadata, "training", dict), strings(metadata, "class_names")
        if not names:
            raise ValueError("it has no classes")
        if _field(model, "num_classes", int) != len(names):
            raise ValueError(f"model has not the {len(names)} classes of class_names")
        kind = _one_of(prepared, "kind", ("images", "features"))
        if kind == "features":
            shape: tuple[int, ...] = (_integer(model, "in_features", 1, 1 << 31),)
            transform = Transform(size=1)
        else:
            channels = _integer(prepared, "channels", 1, 3)
            if channels == 2 or channels != _field(model, "in_chans", int):
                raise ValueError("channels is neither 1 nor 3, or model has others")
            size = _integer(prepared, "size", 1, _LARGEST_SIZE)
            _one_of(prepared, "crop", (_CROP,))
            _one_of(prepared, "interpolation", (_INTERPOLATION,))
            shape = (channels, size, size)
            transform = Transform(
                size=size,
                resize=_integer(prepared, "resize", size, 1 << 24),
                mean=_numbers(prepared, "mean", channels),
                std=_numbers(prepared, "std", channels),
            )
            if min(transform.std) <= 0:
                raise ValueError("input.std is not above 0")
        method = _field(training, "method", str)
        if re.fullmatch(r"\w{1,100}", method) is None:
            raise ValueError("training.method is no name")
        return cls(
            model=_field(model, "name", str),
            input_shape=shape,
            class_names=names,
            transform=transform,
            method=method,
            epoch=_integer(training, "epoch", 0, 1 << 53),
            precision=_one_of(training, "precision", get_args(FloatName)),
            loader=_one_of(training, "loader", LOADERS),
        )


def _value(metadata: dict[str, str], name: str, kind: type) -> Any:
    try:
        value = json.loads(metadata[name])
    except (KeyError, ValueError, RecursionError):
        raise ValueError(f"{name} is missing or damaged") from None
    if type(value) is not kind:
        raise ValueError(f"{name} is a {type(value).__name__}")
    return value


def _field(values: dict[str, Any], name: str, kind: type) -> Any:
    if type(values.get(name)) is not kind:
        raise ValueError(f"{name} is missing or no {kind.__name__}")
    return values[name]


def _integer(values: dict[str, Any], name: str, low: int, high: int) -> int:
    value: int = _field(values, name, int)
    if not low <= value <= high:
        raise ValueError(f"{name} does not lie between {low} and {high}")
    return value


def _one_of(values: dict[str, Any], name: str, known: tuple[str, ...]) -> str:
    value: str = _field(values, name, str)
    if value not in known:
        raise ValueError(f"{name} is not one of {', '.join(known)}")
    return value


def _numbers(values: dict[str, Any], name: str, channels: int) -> tuple[float, ...]:
    found = _field(values, name, list)
    if len(found) not in (1, channels):
        raise ValueError(f"{name} has {len(found)} values for {channels} channels")
    if not all(type(value) in (int, float) and abs(value) < 1e6 for value in found):
        raise ValueError(f"{name} has other values than numbers")
    return tuple(map(float, found))


def read_description(weights: Path) -> Description | None:
    """The description in a file of weights; None if it has none, as of earlier versions.

    Args:
        weights: The file.

    Raises:
        UserError: It is missing or damaged, or no file of weights.
    """
    return read_header_of(weights)[0]


def read_header_of(weights: Path) -> tuple[Description | None, Layout, dict[str, str]]:
    """Description (None without one), type and shape of each tensor, and metadata of a file.

    Raises:
        UserError: See `read_description`.
    """
    try:
        with open_regular(weights) as file:
            metadata, layout, _ = read_header(file)
        size = sum(math.prod(shape) * DTYPES[dtype].itemsize for dtype, shape in layout.values())
        if size > available_memory():
            raise ValueError(f"its tensors need {readable(size)}, more memory than there is")
        if "format_version" not in metadata:
            return None, layout, metadata
        return Description.from_metadata(metadata), layout, metadata
    except (OSError, ValueError) as error:
        raise unreadable(weights, error) from error


def unreadable(weights: Path, error: Exception) -> UserError:
    """The error about a file that is no usable file of weights."""
    problem = f"cannot be read as weights ({error_text(error)}); {REMEDY}"
    return UserError(problem, argument="weights", value=weights)
