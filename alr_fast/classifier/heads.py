"""Models on features: a linear one and one with a hidden layer, and the groups of an optimizer."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# A module that maps [B, D] to [B, K], or a function of D and K that makes one.
ModuleOrFactory = nn.Module | Callable[[int, int], nn.Module]


def build_head(
    num_features: int,
    num_classes: int,
    hidden: int,
    *,
    squared_norm: float,
    generator: torch.Generator,
) -> nn.Module:
    """A linear model, or one with a hidden layer of rectified linear units, on the CPU.

    A linear model starts at zero. The weights of the hidden layer are drawn so that its units have
    a mean square of one behind the rectifier (a variance of two before it; He et al., arXiv
    1502.01852) for rows of the mean squared norm, those of the output so that the logits have unit
    variance.

    Args:
        num_features: Number of features D.
        num_classes: Number of classes K.
        hidden: Number of hidden units, 0 for a linear model.
        squared_norm: Mean squared norm of the rows of features.
        generator: Of the weights, on the CPU; torch's global generator is not used.
    """
    if hidden == 0:
        return _zero_linear(num_features, num_classes)
    first, last = _zero_linear(num_features, hidden), _zero_linear(hidden, num_classes)
    nn.init.normal_(first.weight, std=(2 / squared_norm) ** 0.5, generator=generator)
    nn.init.normal_(last.weight, std=hidden**-0.5, generator=generator)
    return nn.Sequential(first, nn.ReLU(), last)


def head_groups(head: nn.Module, lr: float, squared_norm: float) -> list[dict[str, Any]]:
    """Parameter groups of SGD for a model of `build_head`.

    The learning rate of the weights of a layer is divided by the mean squared norm of its inputs,
    so that a step changes the output by an amount that depends neither on the number of features
    or units nor on their scale, and one learning rate suits all of them.
    """
    layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    norms = [squared_norm, *(float(layer.in_features) for layer in layers[1:])]
    biases = [layer.bias for layer in layers]
    weights = [
        {"params": [layer.weight], "lr": lr / norm}
        for layer, norm in zip(layers, norms, strict=True)
    ]
    return [*weights, {"params": biases, "lr": lr}]


def build_module(
    module: ModuleOrFactory, num_features: int, num_classes: int, *, seed: int
) -> nn.Module:
    """A copy of a module, or the result of a factory; leaves torch's global generator as it was.

    Args:
        module: The module or factory.
        num_features: Number of features D.
        num_classes: Number of classes K.
        seed: Of torch's global generator while the factory runs.
    """
    if isinstance(module, nn.Module):
        return copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return module(num_features, num_classes)


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")  # draws no numbers
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    return layer
