"""Ctrl-C: the first one stops with a checkpoint, the second one at once."""

import os
import re
import signal

import pytest

from alr_fast.train import main
from alr_fast.training.signals import StopSignals
from alr_fast.training.trainer import Trainer
from helpers.training_process import options_of, run_folder

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = ["--data.limit", "100", "--data.test_limit", "20", "--optim.batch_size", "25"]
OPTIONS += ["--optim.epochs", "3", "--methods", "ce", "--log.show", "lines", "--log.every", "100"]


@pytest.fixture
def press(monkeypatch):
    """Presses Ctrl-C after some steps, each once."""

    def press(*after):
        genuine, made = Trainer.train_step, [0]

        def train_step(self, batch):
            genuine(self, batch)
            made[0] += 1
            for _ in range(after.count(made[0])):
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(Trainer, "train_step", train_step)

    return press


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_resume(tmp_path, press, capfd):
    runs = tmp_path / "runs"
    press(6)
    assert main([*OPTIONS, "--runs", str(runs)]) == 130
    shown = capfd.readouterr()
    assert "Not finished: epochs ce 1 of 3" in shown.out
    notice, last = [line for line in shown.err.splitlines() if line]
    assert notice.startswith("stopping after this step, with a checkpoint; press Ctrl-C again")
    # One process does not wait for log.every steps.
    what = r"stopped by Ctrl-C in epoch 2 after step 2 \(ce\); checkpoint 6 resumes there: (.+)"
    command = re.fullmatch(what, last)[1]
    assert main(options_of(command)) == 0
    assert "ce: resumes in epoch 2 after step 2" in capfd.readouterr().out
    assert (run_folder(runs) / "summary.json").is_file()


@pytest.mark.parametrize("checkpoints", [True, False])
def test_ctrl_c_twice_stops_at_once(tmp_path, press, capfd, checkpoints):
    runs = tmp_path / "runs"
    press(6, 6)
    steps = ["--checkpoint.steps", "3", "--checkpoint.background", "false"] if checkpoints else []
    assert main([*OPTIONS, "--runs", str(runs), *steps]) == 130
    shown = capfd.readouterr()
    assert "Not finished: epochs ce 1 of 3" in shown.out
    folder = run_folder(runs)
    kept = rf"{folder} has no checkpoint, from which it could be resumed"
    if checkpoints:
        kept = rf"{folder} keeps checkpoint 3 \(ce, epoch 1 after step 3\), which resumes there: "
        kept += rf"\S+ .* --resume {folder}"
    assert re.search(rf"^warning: interrupted; {kept}\ninterrupted$", shown.err, re.M)
    assert "Traceback" not in shown.err


def test_before_the_first_step_ctrl_c_stops_at_once():
    with StopSignals(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_under_torchrun_one_ctrl_c_comes_twice(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with StopSignals() as stop, stop.steps():
        for _ in range(2):  # from the terminal, and from torchrun
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == "SIGINT"
        now = 1e9
        monkeypatch.setattr("alr_fast.training.signals.time.monotonic", lambda: now)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
