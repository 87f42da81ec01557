"""Trains an image classifier on noisy labels, once with each method, and compares them.

    python -m alr_fast.train                                   # digits, 40 % noise: about a minute
    python -m alr_fast.train --noise.rate 0.6 --methods alr --alr.momentum 0.9
    python -m alr_fast.train --recipe cifar10 --data-root DIR
    python -m alr_fast.train --data-root DIR                   # recognises what lies there
    python -m alr_fast.train --config runs/latest/config.yaml  # the same run again
    python -m alr_fast.train --help

Every method sees the same initial weights, batches, crops and schedule; only the loss differs. The
last epoch is the result. `alr_fast.runs` says what a run leaves behind.
"""

import importlib.util
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alr_fast.command import exit_status
from alr_fast.errors import UserError

# What `pip install 'alr_fast[train]'` adds: all are looked for at the start, so that none is missed
# only when a finished run is about to be written.
TRAIN_EXTRA = (
    "jsonargparse",
    "docstring_parser",
    "yaml",
    "rich",
    "PIL",
    "simplejpeg",
    "sklearn",
    "torchvision",
    "timm",
    "matplotlib",
    "tensorboard",
    "safetensors",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for a wrong input, 130 when interrupted."""

    def action() -> None:
        missing = [name for name in TRAIN_EXTRA if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"training needs {', '.join(missing)}, not installed: pip install 'alr_fast[train]'"
            )
        from alr_fast.cli import parse

        run(parse(sys.argv[1:] if argv is None else argv))

    return exit_status(action)


def run(config) -> None:
    """Trains every method of a resolved `Config` and writes one run folder.

    Raises:
        UserError: Something that the user can put right; nothing is written before the first epoch.
    """
    from alr_fast.config import FOLDER_RECIPE, recipe_names
    from alr_fast.console import RunConsole, percent
    from alr_fast.data.setup import (
        leave_out,
        load_data,
        make_loaders,
        make_transform,
        noise_features,
        with_labels,
    )
    from alr_fast.models import build_model
    from alr_fast.noise import inject, needs_features, read_matrix
    from alr_fast.runs import RunFolder, check_runs, environment, method_summary

    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    console = RunConsole()
    device = choose_device(config.device)
    check_runs(config.runs)

    # Data and noise. Everything that can be wrong with them comes to light here.
    data = load_data(config.data, config.data_root, say=console.say)
    layout = data.dataset.layout.name
    if config.recipe == FOLDER_RECIPE != layout and layout in recipe_names():
        console.say(f"recipe {layout} has a schedule for this data set: --recipe {layout}")
    features = None
    if needs_features(config.noise.kind):
        features = noise_features(config.data, data.train, console.track)
    noise = inject(
        data.train.index.labels,
        num_classes=data.train.index.num_classes,
        kind=config.noise.kind,
        rate=config.noise.rate,
        seed=config.noise.seed,
        class_names=data.train.index.class_names,
        features=features,
        matrix=None if config.noise.matrix is None else read_matrix(config.noise.matrix),
    )
    if noise.kind != "none":
        data = with_labels(data, noise.labels)
    # After the noise, so that a list of broken files changes nobody else's label.
    data = leave_out(data)
    index = data.train.index
    before = label_accuracy(torch.from_numpy(index.labels), index)
    transform = make_transform(config.data, data.train)

    def new_model() -> nn.Module:
        torch.manual_seed(config.seed)
        model = build_model(
            config.model.name,
            num_classes=index.num_classes,
            in_channels=data.train.channels,
            image_size=transform.size,
            pretrained=config.model.pretrained,
        )
        # Convolutions are faster in this layout, on GPUs and on CPUs.
        return model.to(device, memory_format=torch.channels_last)

    new_model()  # an unknown or unsuitable net is known before images are decoded
    loaders = make_loaders(
        config, data, transform, device=device, say=console.say, track=console.track
    )

    console.say(
        f"{config.recipe}: {len(data.train):,} training and {len(data.test):,} test images, "
        f"{index.num_classes} classes; noise: {noise.kind}"
        + (f" {percent(noise.requested_rate)}" if noise.kind != "none" else "")
        + f", labels right: {percent(before)}; on {device}"
    )

    # One run folder, the methods in turn.
    folder = RunFolder(config)
    results, records = {}, []
    try:
        for method in config.methods:
            model = new_model()
            history = train_method(method, model, config, loaders, device, folder, console)
            records += history
            results[method] = method_summary(history, before)
    finally:
        folder.save_broken(loaders.train.broken)  # also where they ended the run
        folder.close()
    summary = {
        "methods": results,
        "recipe": config.recipe,
        "seed": config.seed,
        "epochs": config.optim.epochs,
        "seconds": sum(result["seconds"] for result in results.values()),
        "started": started,
        "noise": {
            "kind": noise.kind,
            "requested_rate": noise.requested_rate,
            "realised_rate": noise.realised_rate,
            "seed": noise.seed,
        },
        "data": {
            "name": data.dataset.layout.name,
            "root": config.data_root,
            "train_samples": len(data.train),
            "test_samples": len(data.test),
            "loader": loaders.choice.name,
            "excluded_samples": len(data.excluded),
            "broken_samples": len(loaders.train.broken.reasons),
            "broken_test_samples": sum(len(loader.broken.reasons) for loader in loaders.tests),
            "classes": list(index.class_names),
            "sample_fingerprint": index.sample_fingerprint(),
            "label_fingerprint": index.label_fingerprint(),
        },
        "environment": environment(device, config.precision),
    }
    folder.finish(summary, records)
    console.table(results, epochs=config.optim.epochs)
    console.say(f"{folder.path} (also {folder.path.parent / 'latest'})")


@dataclass
class TrainState:
    """All that changes while a method trains: what a checkpoint would have to hold.

    Attributes:
        model: The net.
        criterion: The loss, which owns the label bank where the method has one.
        optimizer: SGD.
        scheduler: Learning rate per step.
        scaler: Gradient scaler, off unless the precision is float16.
        epoch: Finished epochs.
    """

    model: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    epoch: int = 0


def train_method(method, model, config, loaders, device, folder, console) -> list:
    """Trains one method from the start; returns its `EpochRecord` list, one an epoch.

    Args:
        method: Key of `alr_fast.methods.METHODS`.
        model: Fresh net on the training device.
        config: Resolved configuration.
        loaders: `alr_fast.data.setup.Loaders`, with the labels to train on.
        device: Where to train.
        folder: Run folder that takes metrics, weights and bank.
        console: Where progress is shown.
    """
    from alr_fast.methods import METHODS
    from alr_fast.runs import EpochRecord

    optim, train_loader = config.optim, loaders.train
    index = train_loader.split.index
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=optim.lr,
        momentum=optim.sgd_momentum,
        nesterov=optim.nesterov and optim.sgd_momentum > 0,
        weight_decay=optim.weight_decay,
    )
    state = TrainState(
        model=model,
        criterion=METHODS[method](config, index, device),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.LambdaLR(
            optimizer, learning_rate_factor(optim, steps_per_epoch=len(train_loader))
        ),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "float16"),
    )
    autocast = torch.autocast(
        device.type,
        dtype=getattr(torch, config.precision),
        enabled=config.precision != "float32",
    )

    records = []
    with console.training(method, epochs=optim.epochs, steps=len(train_loader)) as display:
        for epoch in range(optim.epochs):
            begin = time.perf_counter()
            train_loader.set_epoch(epoch)
            state.criterion.set_epoch(epoch)
            state.model.train()
            # Sums stay on the device: the loop waits for it once in log_every steps, not at each.
            sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right, samples
            for step, batch in enumerate(train_loader, start=1):
                with autocast:
                    logits = state.model(batch["image"])
                state.optimizer.zero_grad(set_to_none=True)
                loss = backward(state, logits, batch)
                state.scaler.step(state.optimizer)
                state.scaler.update()
                state.scheduler.step()
                add_to_sums(sums, loss, logits.detach(), batch["label"])
                if step % config.log.every == 0:
                    display.step(epoch, step, *means(sums))
            train_loss, train_accuracy = means(sums)
            bank = state.criterion.bank
            nonfinite_rows = bank.check() if bank is not None else 0
            if not math.isfinite(train_loss):
                raise UserError(
                    f"{method}: the training loss of epoch {epoch + 1} is {train_loss}; try a "
                    f"lower --optim.lr (now {optim.lr}) or more --optim.warmup_steps"
                )
            tests = [evaluate(state.model, loader, autocast) for loader in loaders.tests]
            given = torch.from_numpy(index.labels)
            labels = bank.refined_labels().cpu() if bank is not None else given
            state.epoch = epoch + 1
            record = EpochRecord(
                method=method,
                epoch=state.epoch,
                learning_rate=state.optimizer.param_groups[0]["lr"],
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                test_loss=tests[0][0],
                test_accuracy=tests[0][1],
                second_test_accuracy=tests[1][1] if len(tests) > 1 else None,
                label_accuracy=label_accuracy(labels, index),
                labels_changed=(labels != given).double().mean().item(),
                nonfinite_rows=nonfinite_rows,
                broken_samples=len(train_loader.broken.reasons),
                seconds=time.perf_counter() - begin,
            )
            records.append(record)
            folder.log_epoch(record)
            display.epoch(record)
    folder.save_weights(method, state.model)
    if state.criterion.bank is not None:
        folder.save_bank(method, state.criterion.bank, index)
    return records


def backward(state: TrainState, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Backward pass from the gradient that comes with the loss, in one pass over the logits.

    Args:
        logits: [B, K], what the net gave for the batch.

    Returns:
        The mean loss, a scalar on the device.
    """
    weight = None
    if state.scaler.is_enabled():
        # Inside of the operation the scaler's factor saves what float16 would flush to 0.
        weight = state.scaler.scale(torch.ones(len(logits), device=logits.device))
    loss, grad = state.criterion.loss_and_grad(
        logits, batch["label"], batch["index"], row_weight=weight
    )
    logits.backward(grad)
    return loss if weight is None else loss / weight[0]


@torch.no_grad()
def evaluate(model: nn.Module, loader, autocast) -> tuple[float, float]:
    """Mean cross entropy and accuracy over a loader."""
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=loader.device)
    for batch in loader:
        with autocast:
            logits = model(batch["image"])
        loss = nn.functional.cross_entropy(
            logits.float(), batch["label"], ignore_index=-1, reduction="none"
        ).sum() / (batch["label"] >= 0).sum().clamp(min=1)
        add_to_sums(sums, loss, logits, batch["label"])
    return means(sums)


def add_to_sums(sums: Tensor, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Adds a batch to the sums (loss, right predictions, samples), float64 [3], on the device."""
    valid = (labels >= 0).sum()  # a file that gave no image has label -1
    sums[0] += loss * valid
    sums[1] += (logits.argmax(1) == labels).sum()
    sums[2] += valid


def means(sums: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy; waits for the device."""
    loss, right, samples = sums.tolist()
    return loss / max(samples, 1), right / max(samples, 1)


def label_accuracy(labels: Tensor, index) -> float | None:
    """Share of training labels, int64 [N], that are right; None where nobody knows."""
    if index.clean_labels is None:
        return None
    return (labels == torch.from_numpy(index.clean_labels)).double().mean().item()


def learning_rate_factor(optim, *, steps_per_epoch: int):
    """Share of ``optim.lr`` at each step: a linear rise over the warm-up, then the schedule."""
    steps = optim.epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < optim.warmup_steps:
            return (step + 1) / optim.warmup_steps
        if optim.schedule == "step":
            return optim.gamma ** sum(step >= m * steps_per_epoch for m in optim.milestones)
        if optim.schedule == "constant":
            return 1.0
        done = (step - optim.warmup_steps) / max(steps - optim.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return factor


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one.

    Raises:
        UserError: No such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not usable on this machine; try --device cpu") from error
    return device


if __name__ == "__main__":
    sys.exit(main())
