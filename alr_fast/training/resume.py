"""Which checkpoint a run goes on from, and whether it belongs to it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from alr_fast.data.index import SampleIndex
from alr_fast.errors import UserError
from alr_fast.training.checkpoint.manifest import Checkpoint, newest_checkpoint, read_manifest
from alr_fast.training.config.check import with_default_options
from alr_fast.training.config.schema import Config
from alr_fast.training.methods import METHODS
from alr_fast.training.output.run_folder import (
    CHECKPOINTS,
    CONFIG,
    find_runs,
    is_finished,
    read_config,
)
from alr_fast.utils.text import some_names

_MISSING = object()  # in place of the value of an option that there is not

# Options that may change from one part of a run to the next: they decide where and how fast, not
# what is computed. All others are part of what a run is.
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
# Where the labels to train on come from: these may change, too, with checkpoint.other_labels.
_LABELS = ("data.label_file", "data.label_key", "noise")
# These follow from others where they are not given: named last, behind what was changed.
_FOLLOWING = ("warmup_epochs", "noise.seed")


def find_checkpoint(
    config: Config, *, log: Callable[[str], None], warn: Callable[[str], None]
) -> tuple[Path, Checkpoint | None] | None:
    """The run to go on with, and its checkpoint: None where a new run is to be started.

    A run is gone on with where all options are the same that decide what is computed. With
    ``checkpoint.other_labels`` those that the given labels come from are none of them.

    Args:
        config: Resolved configuration.
        log: Takes a line that tells why ``--resume auto`` starts a new run.
        warn: Takes a line about a run whose configuration cannot be read.

    Returns:
        Folder of the run and newest checkpoint, or the one that was asked for; folder and None
        where that run has been finished.

    Raises:
        UserError: The checkpoint that was asked for cannot be used.
    """
    if config.resume == "none":
        return None
    if config.resume == "auto":
        return _find_newest(config, log, warn)
    path = Path(config.resume)
    if not path.is_dir():
        raise UserError(
            f"--resume {path}: no such folder; pass the folder of a run, one of its checkpoints, "
            "or auto"
        )
    # Through links like "latest", which moves when the run is finished.
    path = path.resolve()
    whole = (path / CONFIG).is_file()
    run = path if whole else path.parent.parent
    if not whole and not (run / CONFIG).is_file():
        raise UserError(
            f"--resume {path}: neither the folder of a run nor one of its checkpoints; --resume "
            "auto finds the newest one"
        )
    try:
        differing = _differing(config, read_config(run))
    except UserError as error:
        raise UserError(f"{error}; pass another --resume") from error
    for name, (now, then) in differing.items():
        if now is _MISSING:
            raise UserError(
                f"{run / CONFIG}: has the option {name}, which this version of alr_fast does not "
                "have; go on with the version that wrote it, or leave --resume out to start a new "
                "run"
            )
        raise UserError(
            f"--{name} {_shown(now)}: the run {run} has {_shown(then)}; pass that, or leave "
            "--resume out to start a new run"
        )
    if is_finished(run):
        return run, None
    if not whole:
        return run, read_manifest(path)
    checkpoint = newest_checkpoint(run / CHECKPOINTS)
    if checkpoint is None:
        raise UserError(
            f"--resume {path}: has no complete checkpoint; leave --resume out to start anew"
        )
    return run, checkpoint


def _find_newest(
    config: Config, log: Callable[[str], None], warn: Callable[[str], None]
) -> tuple[Path, Checkpoint | None] | None:
    """What `find_checkpoint` gives for ``--resume auto``."""
    nearest = ""
    for run in find_runs(Path(config.runs)):
        try:
            then = read_config(run)
        except UserError as error:
            warn(f"{error}: --resume auto passes this run over")
            continue
        differing = _differing(config, then)
        if not differing:
            if is_finished(run):
                return run, None
            found = newest_checkpoint(run / CHECKPOINTS)
            if found is not None:
                return run, found
        if not nearest and then.get("recipe") == config.recipe:
            nearest = f" ({run.name} {_difference(differing)})"
    log(
        f"--resume auto: no unfinished run of this configuration in {config.runs}; a new one "
        f"begins{nearest}"
    )
    return None


def _difference(differing: dict[str, tuple[Any, Any]]) -> str:
    if not differing:
        return "has no complete checkpoint"
    parts = [
        f"{name}: {_shown(then)}, now {_shown(now)}" for name, (now, then) in differing.items()
    ]
    more = f"; and {len(parts) - 3} more" if len(parts) > 3 else ""
    return f"differs in {'; '.join(parts[:3])}{more}"


def check_data(checkpoint: Checkpoint, index: SampleIndex, *, other_labels: bool) -> None:
    """Compares the training samples of a checkpoint with those of this run.

    Args:
        checkpoint: The checkpoint.
        index: Training samples, with the labels to train on.
        other_labels: Whether other given labels are accepted.

    Raises:
        UserError: Other classes, samples or labels.
    """
    saved, path = checkpoint.progress["data"], checkpoint.path
    now = describe_data(index)
    if saved["classes"] != now["classes"]:
        raise UserError(
            f"{path}: was made with {len(saved['classes'])} classes "
            f"({some_names(saved['classes'])}), this data set has {len(now['classes'])} "
            f"({some_names(now['classes'])}); pass the --data-root of that run, or leave "
            "--resume out"
        )
    if saved["samples"] != now["samples"]:
        raise UserError(
            f"{path}: was made with other training samples ({saved['count']:,}, now "
            f"{now['count']:,}), or with the same in another order; its label bank does not fit "
            "them; pass the --data-root, lists and --data.exclude of that run, or leave --resume "
            "out"
        )
    if saved["labels"] != now["labels"] and not other_labels:
        raise UserError(
            f"{path}: was made with other given labels of the same samples; if they were corrected "
            "on purpose, pass --checkpoint.other_labels true, else the labels of that run"
        )


def describe_data(index: SampleIndex) -> dict[str, Any]:
    """What `check_data` compares."""
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


def _differing(config: Config, then: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options, by their full names, that differ and decide what is computed: now and then.

    One that an older version did not know had the default then; now is `_MISSING` for one that
    this version does not know.
    """
    free = _FREE + (_LABELS if config.checkpoint.other_labels else ())
    now = config.as_dict()
    defaults = with_default_options(Config(methods=config.methods)).as_dict()
    # Of methods that are not trained now, the options say nothing; that they were trained then is
    # another value of the option methods.
    then = {key: value for key, value in then.items() if key in now or key not in METHODS}
    now, then = _flat(now), {**_flat(defaults), **_flat(then)}
    return {
        name: (now.get(name, _MISSING), then[name])
        for name in sorted(then, key=lambda name: (name.endswith(_FOLLOWING), name))
        if now.get(name, _MISSING) != then[name]
        and not any(f"{name}.".startswith(f"{group}.") for group in free)
    }


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
