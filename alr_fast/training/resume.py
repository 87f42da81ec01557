"""Finds the checkpoint that a run resumes from, and checks that it fits the run."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alr_fast.data.index import SampleIndex
from alr_fast.errors import UserError
from alr_fast.training.checkpoint.manifest import (
    Checkpoint,
    list_checkpoints,
    newest_checkpoint,
    read_manifest,
)
from alr_fast.training.config.check import lasting_path, path_names, with_default_options
from alr_fast.training.config.schema import Config, flat
from alr_fast.training.data_change import DataChange
from alr_fast.training.methods import METHODS
from alr_fast.training.output.run_folder import read_config, read_summary
from alr_fast.training.progress import check_progress
from alr_fast.training.run_paths import (
    CHECKPOINTS,
    CONFIG,
    actual_path,
    find_runs,
    is_finished,
    run_of,
)
from alr_fast.training.samples import load_samples
from alr_fast.utils.shell import python_command
from alr_fast.utils.text import some_names

_MISSING = object()  # value of an option that does not exist

# Options that may change when a run is resumed: they do not affect the results.
_FREE = (
    "resume",
    "runs",
    "device",
    "data_root",
    "data.cache_mb",
    "data.workers",
    "data.max_broken",
    "bank.placement",
    "bank.folder",
    "checkpoint",
    "log",
)
# Source of the given labels: may change with checkpoint.other_labels.
_LABELS = ("data.label_file", "data.label_key", "data.marks", "noise")
# Options with a default that depends on other options. They are reported last, after the options
# that the user changed.
_FOLLOWING = ("warmup_epochs", "noise.seed")


@dataclass(frozen=True)
class Start:
    """Where a run starts: at its beginning, or at a checkpoint of an earlier run.

    Attributes:
        folder: Folder of the earlier run, None for a new run.
        checkpoint: Where to resume; None for a new run, and if the earlier run has finished.
        incomplete: The newest checkpoint of each trained method with missing files.
        change: How the training samples differ from those of the checkpoint; None if they do not.
        image_size: Side of the images in the earlier run, None if unknown.
        lost: Methods of an earlier run that has finished whose weights or label bank are missing.
    """

    folder: Path | None = None
    checkpoint: Checkpoint | None = None
    incomplete: dict[str, Checkpoint] = field(default_factory=dict)
    change: DataChange | None = None
    image_size: int | None = None
    lost: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the earlier run has finished, so that there is nothing to train."""
        return self.folder is not None and self.checkpoint is None


def find_checkpoint(
    config: Config, *, log: Callable[[str], None], warn: Callable[[str], None]
) -> Start:
    """Finds the run to resume, and its newest checkpoint or the one that ``--resume`` names.

    A run can be resumed with the same values of all options that affect the results. With
    ``checkpoint.other_labels`` the source of the given labels may differ, too.

    Args:
        config: Resolved configuration.
        log: Takes a line with the reason why ``--resume auto`` starts a new run.
        warn: Takes a line about a run with an unreadable configuration.

    Raises:
        UserError: The checkpoint that ``--resume`` names cannot be used.
    """
    if config.resume == "none":
        return Start()
    if config.resume == "auto":
        return _find_newest(config, log, warn)
    path = actual_path(Path(config.resume))
    if not path.is_dir():
        raise UserError(
            f"--resume {path}: no such folder; pass the folder of a run, one of its checkpoints, "
            "or auto"
        )
    run = run_of(path)
    if run is None:
        raise UserError(
            f"--resume {path}: neither the folder of a run nor one of its checkpoints; --resume "
            "auto finds the newest one"
        )
    try:
        differing = _differing(config, run)
    except UserError as error:
        raise UserError(f"{error}; pass another --resume") from error
    if differing:
        name, (now, then) = next(iter(differing.items()))
        other = "leave --resume out to start a new run"
        if name == "optim.epochs" and is_finished(run) and now > then:
            # Its schedule has ended: with another length, all of its epochs would differ.
            command = train_on_command(config, run, epochs=now - then)
            other = f"train on from its weights and label bank, with a new schedule: {command}"
        raise UserError(
            f"--{name} {_shown(now)}: the run {run} has {_shown(then)}; pass that, or {other}"
        )
    if is_finished(run) and not _can_be_completed(run):
        return _start(run, None)
    is_run = path.resolve() == run
    checkpoint = newest_checkpoint(run / CHECKPOINTS) if is_run else read_manifest(path.resolve())
    if checkpoint is None:
        raise UserError(
            f"--resume {path}: has no complete checkpoint; leave --resume out to start anew"
        )
    return _start(run, checkpoint)


def train_on_command(config: Config, run: Path, *, epochs: int | None = None) -> str:
    """The command that trains on from a finished run, in a run of its own.

    Args:
        config: Resolved configuration of the finished run.
        run: Its folder.
        epochs: How long; None for as long again.
    """
    words = ["--config", str(run / CONFIG), "--resume", "none", "--warm-start", str(run)]
    if epochs is not None:
        words += ["--optim.epochs", str(epochs)]
    for name in config.methods:  # a second warm-up would train on the given labels again
        if hasattr(config.options[name], "warmup_epochs"):
            words += [f"--{name}.warmup_epochs", "0"]
    return python_command("alr_fast.train", *words)


def _missing(run: Path) -> list[Any]:
    """The methods of a finished run whose weights or label bank are missing."""
    try:
        missing = read_summary(run).get("incomplete", [])
    except UserError:
        return []
    return missing if isinstance(missing, list) else []


def _can_be_completed(run: Path) -> bool:
    """Whether a finished run lacks files that its checkpoints can make."""
    missing = _missing(run)
    if not missing:
        return False
    return any(c.progress.get("method") in missing for c in list_checkpoints(run / CHECKPOINTS))


def find_incomplete(newest: Checkpoint | None) -> dict[str, Checkpoint]:
    """The newest checkpoint of each method that was trained before and has missing files.

    Args:
        newest: Where the run resumes; `check_data` has accepted it.
    """
    found: dict[str, Checkpoint] = {}
    if newest is None:
        return found
    missing = set(newest.progress.get("incomplete", [])) & set(newest.progress["finished"])
    for checkpoint in list_checkpoints(newest.path.parent) if missing else []:
        if checkpoint.number < newest.number and checkpoint.progress.get("method") in missing:
            check_progress(checkpoint)
            if checkpoint.progress["data"] == newest.progress["data"]:
                found[checkpoint.progress["method"]] = checkpoint
    return found


def _start(run: Path, checkpoint: Checkpoint | None) -> Start:
    lost = tuple(name for name in METHODS if name in _missing(run)) if checkpoint is None else ()
    return Start(run, checkpoint, image_size=_image_size(run), lost=lost)


def _image_size(run: Path) -> int | None:
    """Side of the images of a run; None if its files do not say it."""
    size = flat(read_config(run)).get("data.image_size")
    return size if isinstance(size, int) else None


def _find_newest(config: Config, log: Callable[[str], None], warn: Callable[[str], None]) -> Start:
    """`find_checkpoint` for ``--resume auto``."""
    nearest = ""
    for run in find_runs(Path(config.runs)):
        try:
            differing = _differing(config, run)
        except UserError as error:
            warn(f"{error}: --resume auto passes this run over")
            continue
        if not differing:
            if is_finished(run) and not _can_be_completed(run):
                return _start(run, None)
            checkpoint = newest_checkpoint(run / CHECKPOINTS)
            if checkpoint is not None:
                return _start(run, checkpoint)
        if not nearest and "recipe" not in differing:
            nearest = f" ({run.name} {_difference(differing)})"
    log(
        f"--resume auto: no unfinished run of this configuration in {config.runs}; a new one "
        f"begins{nearest}"
    )
    return Start()


def _difference(differing: dict[str, tuple[Any, Any]]) -> str:
    if not differing:
        return "has no complete checkpoint"
    parts = [
        f"{name}: {_shown(then)}, now {_shown(now)}" for name, (now, then) in differing.items()
    ]
    more = f"; and {len(parts) - 3} more" if len(parts) > 3 else ""
    return f"differs in {'; '.join(parts[:3])}{more}"


def check_data(config: Config, start: Start, index: SampleIndex) -> Start:
    """Checks that a checkpoint belongs to the training samples of this run, or to most of them.

    Args:
        config: Resolved configuration, which may accept other given labels.
        start: Where the run starts; nothing is checked for a new run.
        index: Training samples, with the labels to train on.

    Returns:
        ``start``, with the change if the samples have changed.

    Raises:
        UserError: The checkpoint is not that of a run, or classes, most samples or labels differ.
    """
    if start.checkpoint is None or start.folder is None:
        return start
    check_progress(start.checkpoint)
    path, saved = start.checkpoint.path, start.checkpoint.progress["data"]
    now = describe_data(index)
    if saved["classes"] != now["classes"]:
        changes = [
            f"{word} {some_names(names)}"
            for word, old, new in (("without", now, saved), ("with", saved, now))
            if (names := [name for name in new["classes"] if name not in old["classes"]])
        ]
        raise UserError(
            f"{path}: was made with {len(saved['classes'])} classes "
            f"({some_names(saved['classes'])}), this data set has {len(now['classes'])} "
            f"({', '.join(changes) or 'in another order'}); pass the --data-root of that "
            "run, or leave --resume out"
        )
    change, other_labels = None, saved["labels"] != now["labels"]
    if saved["samples"] != now["samples"]:
        change = _change(start.folder, saved, index)
        if change is None or 2 * change.known < len(change.old):
            common = "" if change is None else f", {change.known:,} of them the same"
            raise UserError(
                f"{path}: was made with other training samples ({saved['count']:,}, now "
                f"{now['count']:,}{common}); its label bank does not fit them; pass the "
                "--data-root, lists and --data.exclude of that run, or leave --resume out"
            )
        other_labels = change.relabelled > 0
    if other_labels and not config.checkpoint.other_labels:
        drawn = ""
        if change is not None and config.noise.kind != "none":
            drawn = " (noise is drawn anew for a data set that has changed)"
        raise UserError(
            f"{path}: was made with other given labels of the same samples{drawn}; if they were "
            "corrected on purpose, pass --checkpoint.other_labels true, else the labels of that run"
        )
    return replace(start, change=change)


def _change(run: Path, saved: dict[str, Any], index: SampleIndex) -> DataChange | None:
    """The change since a checkpoint; None for a run of an earlier version, which has no list of its
    samples."""
    found = load_samples(run, saved["samples"])
    return None if found is None else DataChange.between(found[0], index)


def describe_data(index: SampleIndex) -> dict[str, Any]:
    """Facts about the training samples that `check_data` compares."""
    return {
        "count": len(index),
        "classes": list(index.class_names),
        "samples": index.sample_fingerprint(),
        "labels": index.label_fingerprint(),
    }


def _shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is _MISSING:
        return "no such option"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _differing(config: Config, run: Path) -> dict[str, tuple[Any, Any]]:
    """Options that affect the results and differ: full name -> value now, value in the earlier run.

    A value that follows from other options only differs if another one was asked for. An option
    that the earlier version did not have counts with its default. The value now is `_MISSING` for
    an option that this version does not have.
    """
    free = _FREE + (_LABELS if config.checkpoint.other_labels else ())
    now, then = config.as_dict(), read_config(run)
    asked_now, asked_then = flat(config.as_asked()), flat(read_config(run, asked=True))
    defaults = with_default_options(Config(methods=config.methods)).as_dict()
    # Options of methods that are not trained now do not matter; if one was trained then, the option
    # methods differs.
    then = {key: value for key, value in then.items() if key in now or key not in METHODS}
    now, then = flat(now), flat(defaults) | flat(then)
    for name in path_names(config):  # relative in runs of earlier versions
        if isinstance(then.get(name), str):
            then[name] = lasting_path(then[name])
    return {
        name: (now.get(name, _MISSING), then[name])
        for name in sorted(then, key=lambda name: (name.endswith(_FOLLOWING), name))
        if now.get(name, _MISSING) != then[name]
        and asked_now.get(name, _MISSING) != asked_then.get(name)
        and not any(f"{name}.".startswith(f"{group}.") for group in free)
    }
