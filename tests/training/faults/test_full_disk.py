"""A disk without space for checkpoints or logs."""

import pytest

from alr_fast.training.checkpoint.manifest import list_checkpoints
from helpers.faults import OPTIONS, TERM, being_written, checkpoints, same
from helpers.training_process import outcome, run_folder

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
    assert training.wait() == 2
    errors = [line for line in training.output.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert (
        "metrics.csv: No space left on device; free some space and try again with --resume auto"
        in errors[0]
    )
    assert "Traceback" not in training.output
    resumed = start(*FULL, "--resume", "auto")
    assert resumed.wait() == 0, resumed.output
    assert "resumes in epoch 2 after step 3" in resumed.output
    same(outcome(runs), undisturbed(*FULL))
