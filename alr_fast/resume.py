"""Which checkpoint a run goes on from, and whether it belongs to it."""

from pathlib import Path
from typing import Any

import yaml

from alr_fast.checkpoint import Checkpoint, newest_checkpoint, read_manifest
from alr_fast.config import Config
from alr_fast.data.index import SampleIndex
from alr_fast.errors import UserError
from alr_fast.runs import find_runs, is_finished

CHECKPOINTS = "checkpoints"  # folder in the folder of a run

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


def find_checkpoint(config: Config) -> tuple[Path, Checkpoint | None] | None:
    """The run to go on with, and its checkpoint: None where a new run is to be started.

    Returns:
        Folder of the run and newest checkpoint, or the one that was asked for; folder and None
        where ``--resume auto`` finds that the run has been finished.

    Raises:
        UserError: The checkpoint that was asked for cannot be used.
    """
    if config.resume == "none":
        return None
    if config.resume == "auto":
        for run in find_runs(Path(config.runs)):
            if _differing(config.as_dict(), _read_config(run)):
                continue
            if is_finished(run):
                return run, None
            found = newest_checkpoint(run / CHECKPOINTS)
            if found is not None:
                return run, found
        return None
    path = Path(config.resume)
    if not path.is_dir():
        raise UserError(
            f"--resume {path}: no such folder; pass the folder of a run, one of its checkpoints, "
            "or auto"
        )
    if (path / CHECKPOINTS).is_dir():
        run, checkpoint = path, newest_checkpoint(path / CHECKPOINTS)
        if checkpoint is None:
            raise UserError(
                f"--resume {path}: has no complete checkpoint; leave --resume out to start anew"
            )
    else:
        run, checkpoint = path.absolute().parent.parent, read_manifest(path)
    for name, (now, then) in _differing(config.as_dict(), _read_config(run)).items():
        raise UserError(
            f"--{name} {now}: the run {run} has {then}; pass that, or leave --resume out to start "
            "a new run"
        )
    return run, checkpoint


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
            f"({_some(saved['classes'])}), this data set has {len(now['classes'])} "
            f"({_some(now['classes'])}); pass the --data-root of that run, or leave --resume out"
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


def _read_config(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason}); pass another --resume") from error
    return content if isinstance(content, dict) else {}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _differing(now: Any, then: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Options, by their full names, that differ and decide what is computed."""
    if prefix in _FREE:
        return {}
    if not isinstance(now, dict) or not isinstance(then, dict):
        return {} if now == then else {prefix: (now, then)}
    found = {}
    for key in now.keys() | then.keys():
        name = f"{prefix}.{key}" if prefix else key
        found |= _differing(now.get(key), then.get(key), name)
    return dict(sorted(found.items()))
