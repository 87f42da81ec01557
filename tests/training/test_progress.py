"""The progress in a manifest that may be anybody's."""

import copy
from pathlib import Path

import pytest

from alr_fast.errors import UserError
from alr_fast.training.checkpoint.manifest import Checkpoint
from alr_fast.training.progress import check_progress
from helpers.records import record

GOOD = {
    "method": "alr",
    "position": {"epoch": 1, "step": 2, "steps_made": 5, "scheduler": {}, "scaler": {}},
    "seconds": 1.5,
    "records": [record(1).to_json()],
    "finished": ["ce"],
    "broken": {"3": ["a.png", "no such file"]},
    "device": "cpu",
    "data": {"count": 3, "classes": ["a", "b"], "samples": "ab", "labels": "cd"},
}


def checked(progress):
    path = Path("run/checkpoints/000000003")
    check_progress(Checkpoint(path, 3, "", 1, "2.11", progress, {}))


def test_the_progress_of_a_run_is_accepted():
    checked(GOOD)
    checked({**GOOD, "more": 1, "seconds": 0, "records": [], "broken": {}})


def changed(path, value):
    """The good progress with another value, or without it for a value of ``...``."""
    progress = copy.deepcopy(GOOD)
    *groups, name = path.split(".")
    place = progress
    for group in groups:
        place = place[group]
    if value is ...:
        del place[name]
    else:
        place[name] = value
    return progress


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        *((name, ..., f"progress has no {name}") for name in GOOD),
        *((f"position.{name}", ..., f"position has no {name}") for name in GOOD["position"]),
        *((f"data.{name}", ..., f"progress.data has no {name}") for name in GOOD["data"]),
        ("method", 3, "progress.method is a int"),
        ("position", [], "progress.position is no object"),
        ("position.epoch", "1", "progress.position.epoch is a str"),
        ("position.step", True, "progress.position.step is a bool"),
        ("position.step", -1, "progress.position.step is negative"),
        ("position.epoch", 1.5, "progress.position.epoch is a float"),
        ("seconds", None, "progress.seconds is a NoneType"),
        ("records", {}, "progress.records is a dict"),
        ("records", [3], "progress.records are not those of epochs"),
        ("records", [{"epoch": 1}], "progress.records are not those of epochs"),
        ("finished", [3], "lists of names"),
        ("data.classes", [["a"]], "lists of names"),
        ("data.samples", "../../x", "progress.data.samples is no fingerprint"),
        ("broken", {"x": ["a", "b"]}, "progress.broken does not list samples"),
        ("broken", {"3": "gone"}, "progress.broken does not list samples"),
        ("broken", {"3": [1, 2]}, "progress.broken does not list samples"),
        ("broken", {"3": ["a"]}, "progress.broken does not list samples"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(path, value, why):
    with pytest.raises(UserError) as caught:
        checked(changed(path, value))
    assert str(caught.value).startswith("run/checkpoints/000000003/manifest.json: ")
    assert why in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("progress", [None, [], "x", 3])
def test_a_progress_that_is_no_object(progress):
    with pytest.raises(UserError, match=r"manifest\.json: progress is no object"):
        checked(progress)
