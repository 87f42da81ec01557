"""A disk without space for checkpoints or logs."""

import re

import pytest

from alr_fast.training.checkpoint.manifest import list_checkpoints
from helpers.faults import OPTIONS, STEPS, TERM, being_written, checkpoints, same
from helpers.training_process import options_of, outcome, run_folder

pytestmark = pytest.mark.faults


FULL = [*OPTIONS, "--checkpoint.steps", "5"]
LIMIT = 40_000  # bytes: above the size of all other files of the run, below that of a checkpoint


def test_training_continues_if_no_checkpoint_can_be_written(start, runs, undisturbed):
    training = start(*FULL, faults={"limit_files": {"num_bytes": LIMIT, "after_steps": 1}})
    assert training.wait() == 0, training.output
    for number in (5, 10, 15, 20):
        assert f"checkpoint {number} could not be written: File too large" in training.output
    assert training.output.count("no older checkpoint exists") == 4
    assert list(checkpoints(runs).iterdir()) == []
    same(outcome(runs), undisturbed(*FULL))


@pytest.mark.parametrize("stop", [False, True])
def test_an_older_checkpoint_remains(start, runs, undisturbed, stop):
    options = [*FULL, "--checkpoint.background", "false"]
    faults = {"limit_files": {"num_bytes": LIMIT, "after_steps": 6}}
    if stop:
        faults["signal_after"] = {"number": TERM, "steps": 12}
    training = start(*options, faults=faults)
    assert training.wait() == (2 if stop else 0), training.output
    assert "checkpoint 10 could not be written: File too large" in training.output
    (checkpoint,) = list_checkpoints(checkpoints(runs))
    assert checkpoint.number == 5
    assert max(path.stat().st_size for path in checkpoint.path.iterdir()) > LIMIT
    assert not being_written(runs)
    if stop:
        message = training.output.splitlines()[-1]
        assert message.startswith(
            "error: stopped in epoch 2 after step 5, but checkpoint 12 could not be"
        )
        assert "checkpoint 5 remains" in message
    else:
        same(outcome(runs), undisturbed(*options))
        (run_folder(runs) / "summary.json").unlink()  # as if killed at the very end
    resumed = start(*options, "--resume", "auto")
    assert resumed.wait() == 0, resumed.output
    assert "resumes in epoch 1 after step 5" in resumed.output
    same(outcome(runs), undisturbed(*options))


def test_the_disk_is_full_when_an_epoch_is_logged(start, runs, undisturbed):
    fault = {"full_disk": {"name": "metrics.csv", "at": 2}}
    training = start(*FULL, faults=fault)
    assert training.wait() == 0, training.output
    assert "metrics.csv: No space left on device; free some space" in training.output
    assert "Traceback" not in training.output
    same(outcome(runs), undisturbed(*FULL))  # the next epoch was written with it


def test_the_disk_is_full_at_the_end(start, runs, undisturbed):
    """The first method is complete; the second has neither its files nor a last checkpoint."""
    options = [*FULL, "--methods", "ce,alr"]
    faults = {"limit_files": {"num_bytes": 9000, "after_steps": 2 * 3 * STEPS - 1}}
    training = start(*options, faults=faults)
    assert training.wait() == 2, training.output
    assert "Last of 3 epochs" in training.output
    assert "Traceback" not in training.output
    remains = r"alr: its weights .* are missing; checkpoint \d+ remains; to train again .*: (.+)"
    command, again = re.findall(remains, training.output)
    assert command == again  # where it happened, and in the last line
    resumed = start(*options_of(command))
    assert resumed.wait() == 0, resumed.output
    assert "alr: resumes in epoch " in resumed.output
    same(outcome(runs), undisturbed(*options))
