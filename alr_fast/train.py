"""Trains an image classifier on noisy labels, once with each method, and compares them.

    python -m alr_fast.train                                   # digits, 40 % noise: about a minute
    python -m alr_fast.train --noise.rate 0.6 --methods alr --alr.momentum 0.9
    python -m alr_fast.train --recipe cifar10 --data-root DIR
    python -m alr_fast.train --data-root DIR                   # recognises what lies there
    python -m alr_fast.train --config runs/latest/config.yaml  # the same run again
    torchrun --nproc-per-node 8 -m alr_fast.train --recipe webvision --data-root DIR --resume auto
    python -m alr_fast.train --help

Every method sees the same initial weights, batches, crops and schedule; only the loss differs. The
last epoch is the result. `alr_fast.training.output.run_folder` says what a run leaves behind, docs/scaling.md how it uses
several GPUs and goes on after it was stopped.

Exit status: 0, 2 for a wrong input, 75 when it was stopped by SIGTERM or SIGUSR1 and wrote a
checkpoint (`--resume auto` goes on), 130 when interrupted.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from alr_fast.errors import UserError, naming_options
from alr_fast.training.loop import synchronised, train_method
from alr_fast.training.signals import EXIT_STOPPED, Stopped, StopSignals
from alr_fast.utils.command import exit_status, need

# What `pip install 'alr_fast[train]'` adds: all are looked for at the start, so that none is missed
# only when a finished run is about to be written.
TRAIN_EXTRA = (
    "jsonargparse",
    "docstring_parser",
    "yaml",
    "rich",
    "PIL",
    "pyarrow",
    "simplejpeg",
    "sklearn",
    "torchvision",
    "timm",
    "torchmetrics",
    "matplotlib",
    "tensorboard",
    "safetensors",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, see above."""

    def action() -> int:
        need(TRAIN_EXTRA, "train", what="training")
        from alr_fast.training.config.command_line import parse
        from alr_fast.training.distributed import process_group

        config = parse(sys.argv[1:] if argv is None else argv)
        naming = naming_options(device="device")
        with StopSignals() as stop, naming, process_group(config.device) as world:
            try:
                run(config, world, stop)
            except Stopped as stopped:
                if world.main:
                    print(stopped, file=sys.stderr)
                return EXIT_STOPPED
        return 0

    return exit_status(action)


def run(config, world, stop) -> None:
    """Trains every method of a resolved `Config` and writes one run folder.

    Args:
        config: What to do.
        world: `alr_fast.training.distributed.World`, the processes that do it.
        stop: `StopSignals` that are looked at in the rhythm of ``log.every``.

    Raises:
        UserError: Something that the user can put right; what can be known before the first epoch
            is found before anything is written.
        Stopped: A signal came.
    """
    from alr_fast.training.config.schema import FOLDER_RECIPE, recipe_names
    from alr_fast.training.criterion import check_methods
    from alr_fast.training.loaders import make_loaders, make_transform
    from alr_fast.training.methods import keeps_bank
    from alr_fast.training.models import build_model
    from alr_fast.training.output.display import RunDisplay
    from alr_fast.training.output.loggers import check_loggers
    from alr_fast.training.output.records import method_summary
    from alr_fast.training.output.run_folder import RunFolder, check_runs
    from alr_fast.training.resume import check_data, find_checkpoint
    from alr_fast.training.run import Run
    from alr_fast.training.run_data import hold_out, inject_noise, leave_out, load_data, with_labels
    from alr_fast.training.sharded_bank import check_room
    from alr_fast.utils.machine import environment
    from alr_fast.utils.text import percent

    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    console = RunDisplay(config.log.show, main=world.main)

    def check_and_find():
        with naming_options(runs="runs", logger="log.to"):
            check_runs(config.runs)
            check_loggers(config.log.to)
        return find_checkpoint(config, log=console.log, warn=console.warn)

    found = world.from_main(check_and_find)
    if found is not None and found[1] is None:
        console.log(f"{found[0]}: has finished already; leave --resume out to train again")
        return

    # Data and noise. Everything that can be wrong with them comes to light here.
    data = world.main_first(lambda: load_data(config.data, config.data_root, log=console.log))
    layout = data.dataset.layout.name
    if config.recipe == FOLDER_RECIPE != layout and layout in recipe_names():
        console.log(f"recipe {layout} has a schedule for this data set: --recipe {layout}")
    noise = world.from_main(lambda: inject_noise(config.noise, config.data, data, console.track))
    if noise.kind != "none":
        data = with_labels(data, noise.labels)
    # After the noise, so that a list of broken files changes nobody else's label.
    whole = leave_out(data)
    data = world.on_all_ranks(lambda: hold_out(whole, config.data.validation, seed=config.seed))
    index = data.train.index
    before = None
    if index.clean_labels is not None:
        before = float((index.labels == index.clean_labels).mean())
    if found is not None:
        world.on_all_ranks(
            lambda: check_data(found[1], index, other_labels=config.checkpoint.other_labels)
        )

    def set_up():
        transform = make_transform(config.data, data.train)

        def new_model() -> nn.Module:
            torch.manual_seed(config.seed)
            with naming_options(
                name="model.name", pretrained="model.pretrained", image_size="data.image_size"
            ):
                model = build_model(
                    config.model.name,
                    num_classes=index.num_classes,
                    in_channels=data.train.channels,
                    image_size=transform.size,
                    pretrained=config.model.pretrained,
                )
            # The same weights in all processes, but each drops other activations out.
            torch.manual_seed(config.seed + world.rank)
            if config.model.sync_batchnorm:
                model = synchronised(model, world)
            # Convolutions are faster in this layout, on GPUs and on CPUs.
            return model.to(world.device, memory_format=torch.channels_last)

        new_model()  # an unknown or unsuitable net is known before images are decoded
        check_methods(config, index, channels=data.train.channels, size=transform.size)
        loaders = make_loaders(
            config, data, transform, world=world, log=console.log, track=console.track
        )
        if any(keeps_bank(method) for method in config.methods):
            rows = loaders.train.sampler.rows
            check_room(config.bank, index, rows, world, runs=Path(config.runs))
        return new_model, loaders

    new_model, loaders = world.on_all_ranks(set_up)
    loaders.share_broken(world)
    console.log(
        f"{config.recipe}: {len(data.train):,} training and {len(data.test):,} test images, "
        f"{index.num_classes} classes; noise: {noise.kind}"
        + (f" {percent(noise.requested_rate)}" if noise.kind != "none" else "")
        + f", labels right: {percent(before)}; on {world.device.type}"
        + (f" in {world.size} processes" if world.size > 1 else "")
    )

    # One run folder, the methods in turn.
    with Run(config, world, loaders, console, stop, found) as this:
        for method in config.methods:
            if method not in this.finished:
                train_method(method, this, new_model())
        results = {
            method: method_summary([r for r in this.records if r.method == method], before)
            for method in config.methods
        }
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
                "validation_samples": 0 if data.validation is None else len(data.validation),
                "loader": loaders.choice.name,
                "excluded_samples": len(data.excluded),
                "broken_samples": len(loaders.train.broken.reasons),
                "broken_test_samples": sum(len(loader.broken.reasons) for loader in loaders.tests),
                "classes": list(index.class_names),
                "sample_fingerprint": index.sample_fingerprint(),
                "label_fingerprint": index.label_fingerprint(),
            },
            "environment": {**environment(world.device, config.precision), "processes": world.size},
        }
        this.in_folder(RunFolder.finish, summary, this.records)
        console.table(results, epochs=config.optim.epochs, folder=this.path)
        world.from_main(lambda: show_suspects(this, console))
        console.log(f"{this.path} (also {this.path.parent / 'latest'})")


def show_suspects(this, console, number: int = 10) -> None:
    """Prints the most suspicious labels by the last method that keeps a label bank.

    Args:
        this: `alr_fast.training.run.Run`, finished.
        console: Where.
        number: How many.
    """
    from alr_fast.labels.suspicion import SUSPICIOUS
    from alr_fast.training.methods import keeps_bank
    from alr_fast.training.open_run import from_bank_file
    from alr_fast.training.output.run_folder import BANK

    keeping = [method for method in this.config.methods if keeps_bank(method)]
    if not keeping:
        return
    method = keeping[-1]
    try:
        labels = from_bank_file(this.path / f"{method}{BANK}", method, this.loaders.train.split)
        samples = labels.samples(labels.most_suspicious(number, above=SUSPICIOUS))
    except (UserError, MemoryError) as error:  # the run itself is complete
        console.warn(f"the most suspicious labels cannot be shown: {error}")
        return
    command = shlex.join(("python", "-m", "alr_fast.report", str(this.path)))
    console.suspects(method, samples, report=command)


if __name__ == "__main__":
    sys.exit(main())
