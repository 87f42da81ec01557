"""Models by name: small convolutional models, ResNets of timm with a stem for images of 32 pixels,
and every model of timm."""

import difflib
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from alr_fast.errors import UserError


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


def build_model(
    name: str, *, num_classes: int, in_channels: int, image_size: int, pretrained: bool = False
) -> nn.Module:
    """A model that maps images [B, C, S, S] to logits [B, K].

    Args:
        name: Key of `MODELS`, or the name of a model of timm.
        num_classes: Number of classes K.
        in_channels: Channels C of the images.
        image_size: Side S of the images in pixels.
        pretrained: Start from pretrained weights of timm.

    Raises:
        UserError: The name is unknown, there are no pretrained weights, or the model cannot process
            such images.
    """
    if name in MODELS:
        if pretrained:
            raise UserError(
                f"{name} has no pretrained weights; pass the name of a timm model",
                argument="pretrained",
            )
        model = MODELS[name](num_classes=num_classes, in_channels=in_channels)
        smallest = getattr(model, "smallest_image", 1)
        if image_size < smallest:
            problem = f"{name} needs images of {smallest} pixels or more; pass a larger size"
            raise UserError(problem, argument="image_size", value=image_size)
        return model

    import timm

    known = timm.list_models()
    if name.split(".")[0] not in known:
        close = difflib.get_close_matches(name, [*MODELS, *known], n=3)
        hint = f"; close names: {', '.join(close)}" if close else ""
        names = f"{', '.join(MODELS)} and the names of timm.list_models()"
        raise UserError(f"no such model; choose from {names}{hint}", argument="name", value=name)
    options = {"num_classes": num_classes, "in_chans": in_channels}
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, ValueError, OSError) as error:
        problem = f"timm cannot create it: {' '.join(str(error).split())}; pass another name"
        raise UserError(problem, argument="name", value=name) from error
