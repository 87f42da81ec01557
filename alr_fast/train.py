"""Trains a classifier on noisy labels with each method, and compares the methods.

    alr-fast train                                   # digits, 40 % noise: about a minute
    alr-fast train --noise.rate 0.6 --methods alr --alr.momentum 0.9
    alr-fast train --recipe cifar10 --data-root DIR
    alr-fast train --data-root DIR                   # recognises the layout of the data
    alr-fast train --config runs/latest/config.yaml  # repeats a run
    alr-fast train --seeds 3                         # three seeds: means and deviations
    alr-fast train --resume runs/20260131-235959-digits   # goes on with a stopped run
    torchrun --nproc-per-node 8 -m alr_fast.train --recipe webvision --data-root DIR --resume auto
    alr-fast train --help

All methods have the same initial weights, batches, crops and schedule; only the loss differs. The
results are those of the last epoch. `alr_fast.training.output.run_folder` lists the files of a run;
docs/scaling.md describes training on several GPUs and resuming a stopped run.

Exit status: 0; 2 for a wrong input, or if weights, a label bank or the summary could not be
written; 75 if SIGTERM or SIGUSR1 stopped the run and a checkpoint was written (`--resume RUN`
resumes it); 130 if interrupted by Ctrl-C, which also writes one, unless it comes twice.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alr_fast.errors import SharedError, UserError, naming_options
from alr_fast.training.signals import Stopped, StopSignals
from alr_fast.utils.command import (
    VERSION,
    CommandParser,
    exit_status,
    need,
    show,
    version_line,
)
from alr_fast.utils.openmp import limited_threads
from alr_fast.utils.shell import python_command

if TYPE_CHECKING:
    from alr_fast.training.checkpointer import Checkpointer
    from alr_fast.training.config.schema import Config
    from alr_fast.training.distributed import World
    from alr_fast.training.output.display import RunDisplay
    from alr_fast.training.resume import Start
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
NOT_FINISHED = "the run does not count as finished"
SUSPECTS = 10  # labels that are listed after a run, the most suspicious ones


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, see above."""

    words = sys.argv[1:] if argv is None else argv

    def action() -> int:
        if {*VERSION}.intersection(words):
            show(version_line())
            return 0
        need(TRAIN_EXTRA, "train", what="training")
        from alr_fast.training.config.command_line import parse
        from alr_fast.training.distributed import process_group

        config = parse(words)
        naming = naming_options(
            device="device", max_broken="data.max_broken", workers="data.workers"
        )
        stop = StopSignals()
        with naming, process_group(config.device) as world:
            try:
                if isinstance(config.seeds, list):
                    train_seeds(config, config.seeds, world, stop)
                else:
                    train(config, world, stop)
            except Stopped as stopped:
                if world.main:
                    show(str(stopped), file=sys.stderr)
                return stop.exit_status
        return 0

    return exit_status(action)


def parser() -> CommandParser:
    """The arguments of the command, for a shell that completes them; needs the extra train."""
    from alr_fast.training.outline import outline

    return outline()


def train_seeds(config: "Config", seeds: list[int], world: "World", stop: StopSignals) -> None:
    """Trains one run for each of several seeds, and shows and writes their means.

    Args:
        config: Resolved configuration. With ``--resume auto`` finished runs count, and an
            unfinished one is resumed.
        seeds: The seeds.
        world: The processes.
        stop: Signals that stop the run of a seed.

    Raises:
        UserError, Stopped: As `train`.
    """
    from alr_fast.training.output.display import RunDisplay
    from alr_fast.training.output.seeds import SeedResults

    runs: list[Path] = []
    console = RunDisplay(config.log.show, main=world.main)
    for number, seed in enumerate(seeds, start=1):
        console.log(f"seed {seed} ({number} of {len(seeds)})")
        runs.append(train(config.with_seed(seed), world, stop, suspects=0))

    def show_means() -> None:
        results = SeedResults.read(seeds, runs)
        console.seeds(results.means(), seeds=seeds, epochs=results.epochs)
        console.log(str(results.save(Path(config.runs), config.recipe, warn=console.warn)))

    world.from_main(show_means)


def train(config: "Config", world: "World", stop: StopSignals, *, suspects: int = SUSPECTS) -> Path:
    """Trains every method of a configuration and writes one run folder.

    Args:
        config: Resolved configuration.
        world: The processes.
        stop: Signals that stop the run; checked every ``log.every`` steps.
        suspects: Number of the most suspicious labels that are listed.

    Returns:
        The folder of the finished run.

    Raises:
        UserError: An error that the user can fix. Those in the configuration and the data are
            raised before anything is written.
        Stopped: A signal came, and a checkpoint was written.
    """
    from alr_fast.training.advice import advice
    from alr_fast.training.loaders import with_image_size
    from alr_fast.training.loop import set_up, train_method
    from alr_fast.training.output.display import RunDisplay
    from alr_fast.training.output.records import run_summary
    from alr_fast.training.resume import check_data, find_incomplete, train_on_command
    from alr_fast.training.run import Run
    from alr_fast.training.run_data import describe, prepare_data
    from alr_fast.training.run_paths import CONFIG
    from alr_fast.training.warm_start import check_warm_start

    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    console = RunDisplay(config.log.show, main=world.main)
    start = world.from_main(lambda: find_start(config, console))
    if start.finished and start.folder is not None:
        if start.lost:
            names = ",".join(start.lost)
            again = ("--config", start.folder / CONFIG, "--resume", "none", "--methods", names)
            text = (
                f"{start.folder}: has finished, but weights or label bank of {names} are lost; "
                f"train again with: {python_command('alr_fast.train', *again)}"
            )
            if config.resume != "auto":
                raise SharedError(text)
            console.warn(text)
        command = train_on_command(config, start.folder)
        console.log(
            f"{start.folder}: has already finished; leave --resume out to train again, or train on "
            f"from its weights and label banks, also on data that has changed: {command}"
        )
        return start.folder
    if start.folder is not None:  # which may be anywhere
        config = replace(config, runs=str(start.folder.parent))
    if config.data.image_size is None and start.image_size is not None:
        config = config.with_value("data.image_size", start.image_size)
    data, noise = prepare_data(config, world, log=console.log, track=console.track)
    start = world.on_all_ranks(lambda: check_data(config, start, data.train.index))
    incomplete = world.from_main(lambda: find_incomplete(start.checkpoint))
    start = replace(start, incomplete=incomplete)
    finished = () if start.checkpoint is None else start.checkpoint.progress["finished"]
    loaders = world.on_all_ranks(lambda: set_up(config, data, world, console, finished=finished))
    world.on_all_ranks(lambda: check_warm_start(config, start, loaders.train))
    loaders.share_broken(world)
    config = with_image_size(config, loaders.train)
    console.log(describe(config, data, noise, world))
    if threads := limited_threads():
        console.log(threads)
    if start.folder is None:  # the options of a resumed run stay as they are
        for line in advice(config):
            console.warn(line)
    with Run(config, world, loaders, console, stop, start) as run, stop:
        last = None
        try:
            with stop.steps():
                for method in config.methods:
                    if method not in run.finished:
                        last = train_method(method, run)
        except BaseException as error:
            show_stopped(run, error)
            raise
        summary = run_summary(
            *(config, world, data, noise, loaders, run.records, run.class_counts), started=started
        )
        finish(run, {**summary, "incomplete": list(run.incomplete)}, last, suspects)
        return run.path


def find_start(config: "Config", console: "RunDisplay") -> "Start":
    """Where the run starts, after a check of all that it writes to; in process 0."""
    from alr_fast.training.config.schema import words
    from alr_fast.training.output.loggers import check_loggers
    from alr_fast.training.output.run_folder import check_runs
    from alr_fast.training.resume import find_checkpoint

    with naming_options(runs="runs", logger="log.to"):
        if config.resume in ("none", "auto"):  # else there is a folder already
            check_runs(config.runs)
        check_loggers(words(config.log.to))
    return find_checkpoint(config, log=console.log, warn=console.warn)


def finish(run: "Run", summary: dict[str, Any], last: "Checkpointer | None", suspects: int) -> None:
    """Writes and shows the results, as many of them as can be written.

    Args:
        run: The run, with all methods trained.
        summary: Content of ``summary.json``.
        last: Checkpointer of the last method; None if the checkpoint that was resumed is complete.
        suspects: Number of the most suspicious labels that are listed.

    Raises:
        SharedError: Weights, a label bank or the summary could not be written.
    """
    from alr_fast.training.output.run_folder import RunFolder

    complete = run.in_folder(RunFolder.write_summary, summary, without=NOT_FINISHED)
    run.console.table(summary["methods"], epochs=summary["epochs"], folder=run.path)
    run.in_folder(RunFolder.close_loggers, without="some epochs are missing in the logs")
    run.in_folder(RunFolder.plot, run.records, without="the run has no plot")
    run.in_folder(RunFolder.link, without="latest does not point to this run")
    if not complete:
        if last is not None:
            last.save_last()
        raise SharedError(f"{run.path}: is trained but has no summary; {run.kept}")
    run.world.from_main(lambda: show_suspects(run, suspects))
    run.console.log(f"{run.path}{run.also}")
    if run.incomplete:
        raise SharedError("; ".join(run.incomplete.values()))


def show_stopped(run: "Run", error: BaseException) -> None:
    """Shows what is left of a run that has not finished: the results so far, and how to go on."""
    from alr_fast.training.output.records import method_summaries

    if run.records:
        run.console.table(
            method_summaries(run.records, run.index, run.class_counts),
            epochs=run.config.optim.epochs,
            folder=run.path,
            done={record.method: record.epoch for record in run.records},
        )
    if isinstance(error, KeyboardInterrupt):  # all others say it themselves
        run.console.warn(f"interrupted; {run.kept}")


def show_suspects(run: "Run", most: int) -> None:
    """Prints the most suspicious labels of a finished run, by its last method with a label bank."""
    from alr_fast.labels.proposals import other_classes
    from alr_fast.training.methods import keeps_bank
    from alr_fast.training.open_run import from_bank_file
    from alr_fast.training.run_paths import BANK

    methods = [method for method in run.config.methods if keeps_bank(method)]
    methods = [method for method in methods if method not in run.incomplete]
    if not methods:
        return
    method = methods[-1]
    try:
        labels = from_bank_file(run.path / f"{method}{BANK}", method)
        rows = labels.most_suspicious(most)
        samples = labels.samples(rows)
        for sample, others in zip(samples, other_classes(labels, rows), strict=True):
            sample["next_name"] = labels.class_names[others[0][0]] if others else None
    except (UserError, MemoryError) as error:  # the run itself is complete
        run.console.warn(f"the most suspicious labels cannot be shown: {error}")
        return
    command = python_command("alr_fast.review", run.path)
    run.console.suspects(labels, samples, review=command)


if __name__ == "__main__":
    sys.exit(main())
