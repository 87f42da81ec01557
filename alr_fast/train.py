"""Trains a classifier on noisy labels with each method, and compares the methods.

    alr-fast train                                   # digits, 40 % noise: about a minute
    alr-fast train --noise.rate 0.6 --methods alr --alr.momentum 0.9
    alr-fast train --recipe cifar10 --data-root DIR
    alr-fast train --data-root DIR                   # recognises the layout of the data
    alr-fast train --config runs/latest/config.yaml  # repeats a run
    torchrun --nproc-per-node 8 -m alr_fast.train --recipe webvision --data-root DIR --resume auto
    alr-fast train --help

All methods have the same initial weights, batches, crops and schedule; only the loss differs. The
results are those of the last epoch. `alr_fast.training.output.run_folder` lists the files of a run;
docs/scaling.md describes training on several GPUs and resuming a stopped run.

Exit status: 0; 2 for a wrong input; 75 if SIGTERM or SIGUSR1 stopped the run and a checkpoint was
written (`--resume auto` resumes it); 130 if interrupted.
"""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alr_fast.errors import SharedError, UserError, naming_options
from alr_fast.training.signals import EXIT_STOPPED, Stopped, StopSignals
from alr_fast.utils.command import exit_status, need, show
from alr_fast.utils.shell import python_command

if TYPE_CHECKING:
    from alr_fast.training.config.schema import Config
    from alr_fast.training.distributed import World
    from alr_fast.training.run import Run

# Modules of the extra train. All are checked at the start: a missing one should not
# be found only when the results of a run are written.
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
SHOWN = 10  # most suspicious labels


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, see above."""

    def action() -> int:
        need(TRAIN_EXTRA, "train", what="training")
        from alr_fast.training.config.command_line import parse
        from alr_fast.training.distributed import process_group

        config = parse(sys.argv[1:] if argv is None else argv)
        naming = naming_options(
            device="device", max_broken="data.max_broken", workers="data.workers"
        )
        with StopSignals() as stop, naming, process_group(config.device) as world:
            try:
                train(config, world, stop)
            except Stopped as stopped:
                if world.main:
                    show(str(stopped), file=sys.stderr)
                return EXIT_STOPPED
        return 0

    return exit_status(action)


def train(config: "Config", world: "World", stop: StopSignals) -> None:
    """Trains every method of a configuration and writes one run folder.

    Args:
        config: Resolved configuration.
        world: The processes.
        stop: Signals that stop the run; checked every ``log.every`` steps.

    Raises:
        UserError: An error that the user can fix. Those in the configuration and the data are
            raised before anything is written.
        Stopped: A signal came, and a checkpoint was written.
    """
    from alr_fast.training.config.schema import words
    from alr_fast.training.loaders import with_image_size
    from alr_fast.training.loop import set_up, train_method
    from alr_fast.training.output.display import RunDisplay
    from alr_fast.training.output.loggers import check_loggers
    from alr_fast.training.output.records import method_summaries, run_summary
    from alr_fast.training.output.run_folder import RunFolder, check_runs
    from alr_fast.training.resume import Start, check_data, find_checkpoint
    from alr_fast.training.run import Run
    from alr_fast.training.run_data import describe, prepare_data

    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    console = RunDisplay(config.log.show, main=world.main)

    def find_start() -> Start:
        with naming_options(runs="runs", logger="log.to"):
            check_runs(config.runs)
            check_loggers(words(config.log.to))
        return find_checkpoint(config, log=console.log, warn=console.warn)

    start: Start = world.from_main(find_start)
    if start.finished:
        console.log(f"{start.folder}: has already finished; leave --resume out to train again")
        return
    if config.data.image_size is None and start.image_size is not None:
        config = config.with_value("data.image_size", start.image_size)
    data, noise = prepare_data(config, world, log=console.log, track=console.track)
    start = world.on_all_ranks(lambda: check_data(config, start, data.train.index))
    loaders = world.on_all_ranks(lambda: set_up(config, data, world, console))
    loaders.share_broken(world)
    config = with_image_size(config, loaders.train)
    console.log(describe(config, data, noise, world))
    with Run(config, world, loaders, console, stop, start) as run:
        try:
            for method in config.methods:
                if method not in run.finished:
                    train_method(method, run)
        except SharedError:
            if run.folder_is_gone and run.records:  # all that is left of the run
                console.table(
                    method_summaries(run.records, data.train.index),
                    epochs=run.records[-1].epoch,
                    folder=run.path,
                )
            raise
        summary = run_summary(config, world, data, noise, loaders, run.records, started=started)
        run.in_folder(RunFolder.finish, summary, run.records)
        console.table(summary["methods"], epochs=config.optim.epochs, folder=run.path)
        world.from_main(lambda: show_suspects(run))
        console.log(f"{run.path} (also {run.path.parent / 'latest'})")


def show_suspects(run: "Run") -> None:
    """Prints the most suspicious labels of a finished run, by its last method with a label bank."""
    from alr_fast.labels.suspicion import SUSPICIOUS
    from alr_fast.training.methods import keeps_bank
    from alr_fast.training.open_run import from_bank_file
    from alr_fast.training.output.run_folder import BANK

    methods = [method for method in run.config.methods if keeps_bank(method)]
    if not methods:
        return
    method = methods[-1]
    try:
        labels = from_bank_file(run.path / f"{method}{BANK}", method)
        samples = labels.samples(labels.most_suspicious(SHOWN, above=SUSPICIOUS))
    except (UserError, MemoryError) as error:  # the run itself is complete
        run.console.warn(f"the most suspicious labels cannot be shown: {error}")
        return
    command = python_command("alr_fast.report", run.path)
    run.console.suspects(method, samples, report=command)


if __name__ == "__main__":
    sys.exit(main())
