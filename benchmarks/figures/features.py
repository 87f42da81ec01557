"""The penultimate features of a trained model for test images."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from alr_fast.errors import UserError, naming_options
from alr_fast.training.config.schema import WEIGHTS
from alr_fast.training.trained_model import load_for_data
from benchmarks.figures.runs import FinishedRun

if TYPE_CHECKING:
    from alr_fast.data.loaders.base import Loader
    from alr_fast.training.config.schema import DataConfig
    from alr_fast.training.run_data import RunData


def weights_of(run: FinishedRun, method: str) -> Path:
    """The file with the weights of a method.

    Raises:
        UserError: It is missing.
    """
    path = run.path / f"{method}{WEIGHTS}"
    if not os.path.isfile(path):
        raise UserError(f"{path}: the weights are missing; train the run again")
    return path


def image_loader(
    run: FinishedRun, *, samples: int, seed: int, data_root: str | None, device: torch.device
) -> "Loader":
    """Batches of some of the test images of a run, each once, in the order of the test set.

    Args:
        run: The run.
        samples: Number of images; all if there are fewer.
        seed: Seed of the choice.
        data_root: Folder of the data; None for that of the run.
        device: Device of the batches.

    Raises:
        UserError: The data is missing, or has other classes.
    """
    from alr_fast.data.loaders.choose import choose_loader, make_loader
    from alr_fast.data.loaders.memory import decode_all
    from alr_fast.data.loaders.transform import for_evaluation
    from alr_fast.data.sampler import SequentialSampler
    from alr_fast.training.loaders import evaluation_batch_size, make_transform
    from alr_fast.utils.machine import usable_cores

    options, data = _data_of(run, data_root)
    # As in training, the size may be that of the first training image.
    transform = for_evaluation(make_transform(options, data.train))
    test = data.tests[0]
    order = np.random.default_rng(seed).permutation(len(test))
    split = test.take(np.sort(order[:samples]))
    choice = choose_loader("auto", split, transform, options.cache_mb)
    workers = usable_cores() if options.workers is None else options.workers
    decoded = None
    if choice.name == "memory" and split.images.array is None:
        decoded = decode_all(split, transform.size, resize=transform.resize, workers=workers)
    return make_loader(
        choice,
        split,
        SequentialSampler(len(split), evaluation_batch_size(transform.size)),
        transform,
        decoded=decoded,
        device=device,
        workers=workers,
    )


def _data_of(run: FinishedRun, data_root: str | None) -> "tuple[DataConfig, RunData]":
    """The data of a run and its configuration."""
    from alr_fast.training.config.command_line import parse
    from alr_fast.training.run_data import hold_out, leave_out, load_data

    path = run.path / "config.yaml"
    try:
        moved = [] if data_root is None else ["--data-root", data_root]
        files = [path, run.path / "resolved.yaml"]
        words = [word for file in files if file.is_file() for word in ("--config", str(file))]
        config = parse([*words, *moved])
        options = replace(config.data, ilsvrc12=None)
        if options.limit is None:  # otherwise the labels determine the selected training images
            options = replace(options, label_file=None, label_key=None)
        data = load_data(options, config.data_root, log=lambda text: None)
        data = hold_out(leave_out(data), options.validation, seed=config.seed)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not data.tests:
        raise UserError(f"{path}: the data has no test samples any more; pass --data-root DIR")
    if list(data.train.index.class_names) != run.summary["data"]["classes"]:
        raise UserError(
            f"{data.dataset.found.root if config.data_root else options.name}: has other classes "
            f"than {run.path} was trained on; pass the folder of its data as --data-root DIR"
        )
    return options, data


def load_for(run: FinishedRun, method: str, loader: "Loader") -> nn.Module:
    """The model of a method on the device of a loader, in evaluation mode.

    Raises:
        UserError: The weights are missing, or do not fit.
    """
    with naming_options(weights="methods"):
        model = load_for_data(
            weights_of(run, method),
            num_classes=loader.split.index.num_classes,
            input_shape=loader.input_shape,
        )
    return model.to(loader.device, memory_format=torch.channels_last)


@torch.no_grad()
def penultimate(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Input and output of the last linear layer of a model.

    Args:
        model: Model in evaluation mode.
        batches: ``image`` and ``label`` of batches; samples with the label -1, whose images are
            unreadable, are left out.

    Returns:
        Features [n, F], logits [n, K] and labels [n], on the CPU.

    Raises:
        UserError: The logits are not the output of the last linear layer.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        for layer in layers[-1:]
    ]
    parts = []
    try:
        for batch in batches:
            seen.clear()
            logits = model(batch["image"])
            features, output = seen[-1] if seen else (logits, logits[:0])
            # Some models average two heads, or end in a convolution.
            if output.shape != logits.shape or not torch.allclose(output, logits, equal_nan=True):
                raise UserError(
                    f"{type(model).__name__}: this model does not end in one linear layer, so it "
                    "has no features to show; pass runs with another --model.name"
                )
            label = batch["label"]
            keep = label >= 0
            parts.append([t[keep].cpu() for t in (features.float(), logits.float(), label)])
    finally:
        for hook in hooks:
            hook.remove()
    features, logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, logits, labels
