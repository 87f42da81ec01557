"""Nets that were trained before, as teachers: what they predict for the training samples, and the
transition matrices that follow from it."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from torch import Tensor, nn

from alr_fast.data.label_table import is_label_table
from alr_fast.data.loaders.base import Loader
from alr_fast.errors import UserError, naming_options
from alr_fast.training.config.schema import WEIGHTS
from alr_fast.training.methods import METHODS
from alr_fast.training.models import build_model
from alr_fast.training.sharded_bank import fill_rows

if TYPE_CHECKING:
    from alr_fast.training.run import Run


def weights_file(net: str, folder: Path) -> Path:
    """Where the weights of a net are that an option names.

    Args:
        net: A method, which the run in ``folder`` has trained, or the file of the weights.
        folder: Folder of a run.
    """
    return folder / f"{net}{WEIGHTS}" if net in METHODS else Path(net)


def load_net(
    weights: Path, *, num_classes: int, channels: int, image_size: int, option: str
) -> nn.Module:
    """A net with the weights that a run left, on the CPU, ready for evaluation.

    Args:
        weights: RUN/METHOD.safetensors; RUN/config.yaml tells which net it is.
        num_classes: Number of classes K that it must have.
        channels: Channels C of the images.
        image_size: Side of the images in pixels.
        option: The option that names the file.

    Raises:
        UserError: The file is missing, is no file of weights, or belongs to another kind of data.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = yaml.safe_load((weights.parent / "config.yaml").read_text(encoding="utf-8"))
        name = config["model"]["name"]
        saved = load_file(weights)
    except (OSError, yaml.YAMLError, SafetensorError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"--{option} {weights}: cannot be read ({reason}); pass the weights in the folder of a "
            "run, with its config.yaml beside them"
        ) from error
    model = build_model(name, num_classes=num_classes, in_channels=channels, image_size=image_size)
    try:
        model.load_state_dict(saved)
    except RuntimeError as error:
        raise UserError(
            f"--{option} {weights}: does not fit {num_classes} classes and images of {channels} "
            "channels; pass a net of the same data set"
        ) from error
    return model.eval()


@torch.no_grad()
def predict(
    model: nn.Module, loader: Loader, autocast: torch.autocast, *, dtype: torch.dtype
) -> Tensor:
    """Probabilities [n, K] that a net gives the samples of a loader, on its device.

    Args:
        model: Net in evaluation mode, on the device of the loader.
        loader: Batches in which every sample of this process comes once.
        autocast: What the net computes in.
        dtype: Of the result.

    Returns:
        Row i for the sample at position i of the loader; uniform where a file gave no image.
    """
    table: Tensor | None = None
    for batch in loader:
        with autocast:
            logits = model(batch["image"])
        if table is None:
            shape = len(loader.sampler.rows), logits.shape[1]
            table = torch.full(shape, 1 / shape[1], dtype=dtype, device=loader.device)
        keep = batch["index"] >= 0
        table[batch["index"][keep]] = logits[keep].float().softmax(-1).to(dtype)
    return table


def teacher_probabilities(net: str, run: "Run", *, option: str) -> Tensor:
    """What a net that was trained before says about the training samples of this process.

    The images as they are, without crops and flips. All processes call this.

    Args:
        net: A method that the run has trained, a file of weights, or a table of soft labels (see
            `alr_fast.data.label_table`); samples that it does not list keep their given label.
        run: The run.
        option: The option that names the net.

    Returns:
        Probabilities [n, K] in the type of the label bank, on the training device.

    Raises:
        SharedError: The net cannot be had, or does not fit.
    """
    dtype = getattr(torch, run.config.bank.dtype)
    if is_label_table(net):
        index, rows = run.index, run.loaders.train.sampler.rows
        table = torch.zeros(len(rows), index.num_classes, dtype=dtype, device=run.world.device)
        given = torch.from_numpy(index.labels[rows]).to(run.world.device)
        table.scatter_(1, given[:, None], 1)

        def fill() -> None:
            with naming_options(table=option):
                fill_rows(table, net, index, rows)

        run.world.on_all_ranks(fill)
        return table
    loader = run.loaders.in_order()
    model = run.world.on_all_ranks(
        lambda: load_net(
            weights_file(net, run.path),
            num_classes=run.index.num_classes,
            channels=loader.split.channels,
            image_size=loader.transform.size,
            option=option,
        ).to(run.world.device, memory_format=torch.channels_last)
    )
    precision = getattr(torch, run.config.precision)
    autocast = torch.autocast(
        run.world.device.type, dtype=precision, enabled=precision != torch.float32
    )
    return predict(model, loader, autocast, dtype=dtype)
