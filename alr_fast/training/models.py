"""Models by name: small convolutional models, ResNets of timm with a stem for images of 32 pixels,
and every model of timm; for features linear models and MLPs with one hidden layer."""

import difflib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alr_fast.errors import UserError
from alr_fast.utils.text import or_similar


class ConvNet(nn.Module):
    """Stages of 3x3 convolutions with batch normalisation, global average pooling, one linear
    layer.

    Args:
        stages: For each stage the output channels of its convolutions; 2x2 max pooling follows
            each stage but the last.
        num_classes: Number of classes K.
        in_channels: Channels C of the images.
    """

    def __init__(self, stages: list[list[int]], num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for number, stage in enumerate(stages):
            if number:
                layers.append(nn.MaxPool2d(2))
            for width in stage:
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)
        self.smallest_image = 2 ** (len(stages) - 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W]."""
        return self.head(self.features(images).mean(dim=(2, 3)))


class FeatureModel(nn.Module):
    """A linear classifier, or an MLP with one hidden layer, of standardised features.

    Mean and standard deviation are buffers: they are saved and loaded with the weights.

    Args:
        in_features: Number of features D.
        num_classes: Number of classes K.
        hidden: Units of the hidden layer; 0 for a linear classifier.

    Attributes:
        mean: Mean of each feature, float32 [D]; 0 until `standardise`.
        std: Standard deviation of each feature, float32 [D]; 1 until `standardise`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_features: int, num_classes: int, hidden: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("std", torch.ones(in_features))
        self.body: nn.Module = nn.Identity()
        if hidden:
            self.body = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(inplace=True))
        self.head = nn.Linear(hidden or in_features, num_classes)

    def standardise(self, features: NDArray[Any]) -> None:
        """Takes mean and standard deviation from the training features, finite numbers [N, D].

        The deviation of a constant feature becomes 1.
        """
        blocks = np.array_split(features, -(-len(features) // _BLOCK_ROWS))
        size = len(features)
        mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / size
        variance = sum(np.square(block.astype(np.float64) - mean).sum(axis=0) for block in blocks)
        std = np.sqrt(variance / size)
        # A smaller deviation is rounding: float32 has a resolution of 6e-8.
        std[std <= np.maximum(1e-7 * np.abs(mean), np.finfo(np.float32).tiny)] = 1
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(std))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, K] of features [B, D]."""
        return self.head(self.body((features.float() - self.mean) / self.std))


def cifar_resnet(
    name: str, num_classes: int, in_channels: int, pretrained: bool = False
) -> nn.Module:
    """A ResNet of timm for small images: its stem is one 3x3 convolution of stride 1, no pooling.

    Source: He et al., arXiv 1512.03385, section 4.2. The stem for ImageNet reduces 32 x 32 pixels
    to 8 x 8 before the first stage.
    """
    import timm

    model = timm.create_model(
        name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels
    )
    model.conv1 = nn.Conv2d(in_channels, model.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {
    "conv-mini": partial(ConvNet, [[16, 32], [64, 64]]),
    "conv-tiny": partial(ConvNet, [[32, 64], [128, 128]]),
    "conv-small": partial(ConvNet, [[32], [64], [128], [256]]),
    "resnet18-cifar": partial(cifar_resnet, "resnet18"),
    "resnet34-cifar": partial(cifar_resnet, "resnet34"),
}


_SMALL = frozenset(MODELS)  # made for images of about 32 pixels
_LARGEST_FOR_SMALL, _LARGEST = 64, 224  # pixels
_FEATURE_MODELS = "linear, mlp (of 512 hidden units) or mlp-UNITS, mlp-1024 for instance"
_DEFAULT_HIDDEN = 512
_BLOCK_ROWS = 4096  # of features converted to float64 at a time


def build_model(
    name: str, *, num_classes: int, input_shape: tuple[int, ...], pretrained: bool = False
) -> nn.Module:
    """A model that maps images [B, C, S, S] or features [B, D] to logits [B, K].

    Args:
        name: Of images, a key of `MODELS` or the name of a model of timm; of features ``linear``,
            ``mlp``, or ``mlp-UNITS`` with the number of hidden units.
        num_classes: Number of classes K.
        input_shape: Shape of a sample: (C, S, S) of images of S pixels, or (D,) of features. A
            `FeatureModel` does not know mean and deviation of the features yet.
        pretrained: Start from pretrained weights of timm.

    Raises:
        UserError: The name is unknown, there are no pretrained weights, or the model cannot process
            such samples.
    """
    hidden = _hidden_units(name)
    if len(input_shape) == 1:
        if hidden is None:
            problem = f"is no model of features; pass {_FEATURE_MODELS}"
            raise UserError(problem, argument="name", value=name)
        _refuse_pretrained(name, pretrained)
        return FeatureModel(*input_shape, num_classes, hidden)
    if hidden is not None:
        problem = f"is a model of features, the data are images; pass one of {', '.join(MODELS)}"
        raise UserError(problem, argument="name", value=name)
    in_channels, image_size, _ = input_shape
    if name in MODELS:
        _refuse_pretrained(name, pretrained)
        model = MODELS[name](num_classes=num_classes, in_channels=in_channels)
        smallest = getattr(model, "smallest_image", 1)
        if image_size < smallest:
            problem = f"{name} needs images of {smallest} pixels or more; pass a larger size"
            raise UserError(problem, argument="image_size", value=image_size)
        return model

    import timm

    known = timm.list_models()
    # Names with a colon are addresses for timm.
    if name.split(".")[0] not in known or not re.fullmatch(r"[\w.-]+", name):
        hint = or_similar(difflib.get_close_matches(name, [*MODELS, *known], n=3))
        names = f"{', '.join(MODELS)} and the names of timm.list_models()"
        raise UserError(f"no such model; choose from {names}{hint}", argument="name", value=name)
    options = {"num_classes": num_classes, "in_chans": in_channels}
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, ValueError, OSError) as error:
        problem = f"timm cannot create it: {' '.join(str(error).split())}; pass another name"
        raise UserError(problem, argument="name", value=name) from error


def precision_of(name: str, device: torch.device) -> torch.autocast:
    """The context in which a model computes in a precision: float32, bfloat16 or float16."""
    dtype = getattr(torch, name)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def default_size(name: str, side: int) -> int:
    """The size at which a model trains on images if nobody chose one.

    The models of this package halve the images only a few times: large ones cost them much and
    help them little.

    Args:
        name: See `build_model`.
        side: Usual length of the shorter side of the images in pixels.
    """
    own = own_size(name)
    return own or min(side, _LARGEST_FOR_SMALL if name in _SMALL else _LARGEST)


def own_size(name: str) -> int | None:
    """The only size in pixels that a model of timm takes, as most transformers do; else None."""
    if name in MODELS or _hidden_units(name) is not None:
        return None
    import timm

    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # no such weights
        return None
    return int(config.input_size[-1]) if config is not None and config.fixed_input_size else None


def _hidden_units(name: str) -> int | None:
    """Hidden units of a model of features, 0 for none; None if it is another model."""
    units = re.fullmatch(r"mlp-([1-9][0-9]{0,6})", name)
    if units is not None:
        return int(units[1])
    return {"linear": 0, "mlp": _DEFAULT_HIDDEN}.get(name)


def _refuse_pretrained(name: str, pretrained: bool) -> None:
    if pretrained:
        raise UserError(
            f"{name} has no pretrained weights; pass the name of a timm model",
            argument="pretrained",
        )
