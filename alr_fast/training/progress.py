"""The part of a checkpoint that is no tensor: what it must contain, since it may be anybody's."""

import re
from dataclasses import asdict
from typing import Any

from alr_fast.errors import UserError
from alr_fast.training.checkpoint.manifest import MANIFEST, Checkpoint
from alr_fast.training.class_counts import ClassCounts
from alr_fast.training.output.records import EpochRecord

Counts = dict[str, dict[str, ClassCounts]]
_NUMBER = (int, float)
# Fields and their types; a dictionary has fields of its own.
_FIELDS: dict[str, Any] = {
    "method": str,
    "position": {"epoch": int, "step": int, "steps_made": int, "scheduler": dict, "scaler": dict},
    "seconds": _NUMBER,
    "records": list,
    "finished": list,
    "broken": dict,
    "device": str,
    "data": {"count": int, "classes": list, "samples": str, "labels": str},
}


def check_progress(checkpoint: Checkpoint) -> None:
    """Checks the progress in a manifest before it is used.

    Raises:
        UserError: A field is missing or has another type.
    """
    progress = checkpoint.progress
    problem = _problem(progress, _FIELDS, "progress") or _problem_of_lists(progress)
    if problem is not None:
        raise UserError(
            f"{checkpoint.path / MANIFEST}: {problem}; pass another checkpoint, or start a new run"
        )


def _problem(found: Any, fields: dict[str, Any], where: str) -> str | None:
    if not isinstance(found, dict):
        return f"{where} is no object"
    for name, kind in fields.items():
        if name not in found:
            return f"{where} has no {name}"
        value = found[name]
        if isinstance(kind, dict):
            problem = _problem(value, kind, f"{where}.{name}")
            if problem is not None:
                return problem
        elif not isinstance(value, kind) or isinstance(value, bool):
            return f"{where}.{name} is a {type(value).__name__}"
        elif kind in (int, _NUMBER) and value < 0:
            return f"{where}.{name} is negative"
    return None


def _problem_of_lists(progress: dict[str, Any]) -> str | None:
    incomplete = progress.get("incomplete", [])  # missing in earlier versions
    if not isinstance(incomplete, list):
        return "progress.incomplete is no list"
    names = [*progress["finished"], *incomplete, *progress["data"]["classes"]]
    if not all(isinstance(name, str) for name in names):
        return "progress.finished, incomplete and data.classes are not lists of names"
    if re.fullmatch("[0-9a-f]+", progress["data"]["samples"]) is None:  # part of a file's name
        return "progress.data.samples is no fingerprint"
    share = progress.get("given_share")  # of a label bank; None if unknown
    if share is not None and not (type(share) in _NUMBER and 0 <= share <= 1):
        return "progress.given_share is no share"
    for sample_id, entry in progress["broken"].items():
        texts = isinstance(entry, list) and [type(part) for part in entry] == [str, str]
        if not sample_id.isdecimal() or not texts:
            return "progress.broken does not list samples"
    try:
        for record in progress["records"]:
            EpochRecord.from_json(record)
    except (KeyError, TypeError, ValueError):
        return "progress.records are not those of epochs"
    try:
        counts = class_counts_from_json(progress)
    except (AttributeError, TypeError, ValueError):
        return "progress.class_counts are no counts"
    classes = len(progress["data"]["classes"])
    if any(len(c.samples) != classes for sets in counts.values() for c in sets.values()):
        return "progress.class_counts are those of other classes"
    return None


def class_counts_to_json(counts: Counts) -> dict[str, Any]:
    """Counts of each method and each of its sets as JSON values."""
    return {
        method: {name: asdict(of_set) for name, of_set in sets.items()}
        for method, sets in counts.items()
    }


def class_counts_from_json(progress: dict[str, Any]) -> Counts:
    """The counts in a progress; none in one of an earlier version.

    Raises:
        AttributeError, TypeError, ValueError: They have another form.
    """
    counts: Counts = {}
    for method, sets in progress.get("class_counts", {}).items():
        counts[method] = {name: ClassCounts(**plain) for name, plain in sets.items()}
        for of_set in counts[method].values():
            pairs = list(zip(of_set.correct, of_set.samples, strict=True))
            if not all(type(a) is int and type(b) is int and 0 <= a <= b for a, b in pairs):
                raise ValueError("these are no counts")
            if sum(of_set.samples) >= 1 << 53:
                raise ValueError("these are too many samples")
    return counts
