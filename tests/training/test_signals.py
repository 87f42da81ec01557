"""Signals stop a run after a step; before steps run, and when they come again, at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from alr_fast import train
from alr_fast.training import signals
from alr_fast.training.signals import StopSignals, interruptible
from helpers.patience import PATIENCE


def test_a_signal_is_recorded_in_the_block_alone():
    before = {number: signal.getsignal(number) for number in signals._SIGNALS}
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGUSR1)
    assert stop.received == "SIGUSR1" and stop.exit_status == 75
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_handler_that_python_does_not_know_is_replaced_by_the_usual_one(monkeypatch):
    real = signal.signal
    monkeypatch.setattr(signal, "signal", lambda number, handler: real(number, handler) and None)
    with StopSignals():
        pass
    with interruptible():
        pass
    monkeypatch.undo()
    found = [real(number, signal.SIG_DFL) for number in signals._SIGNALS]
    real(signal.SIGINT, signal.default_int_handler)
    assert found == [signal.SIG_DFL] * 3


@pytest.mark.parametrize("wait", [0.0, 10.0])
def test_a_second_sigterm_ends_the_process_unless_it_is_the_first_one_again(wait):
    code = (
        "import signal, sys\n"
        "from alr_fast.training import signals\n"
        f"signals._SECONDS_OF_SLURM = {wait}\n"
        "with signals.StopSignals() as stop, stop.steps():\n"
        "    for _ in range(2): signal.raise_signal(signal.SIGTERM)\n"
        "print(stop.received)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = (0, "SIGTERM\n") if wait else (-signal.SIGTERM, "")
    assert (done.returncode, done.stdout) == expected, done.stderr


def in_thread(action):
    results = []
    thread = threading.Thread(target=lambda: results.append(action()))
    thread.start()
    thread.join()
    return results


def test_a_thread_gets_no_signals_and_needs_none():
    def action():
        with StopSignals() as stop, stop.steps(), interruptible():
            return stop.received

    assert in_thread(action) == [None]


def test_training_in_a_thread(tmp_path, capsys):
    options = ["--data.limit", "60", "--data.test_limit", "20", "--optim.epochs", "1"]
    options += ["--methods", "ce", "--log.to", "csv", "--runs", str(tmp_path)]
    assert in_thread(lambda: train.main(options)) == [0], capsys.readouterr().err


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_while_the_data_is_read_a_signal_ends_the_command_at_once(tmp_path, number):
    reads = (
        "import os, time\n"
        "from alr_fast import train\n"
        "from alr_fast.training import run_data\n"
        "def wait(*args, **options): os.write(1, b'reads'); time.sleep(600)\n"
        "run_data.prepare_data = wait\n"
        f"raise SystemExit(train.main(['--runs', {str(tmp_path)!r}]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", reads], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.read(5) == b"reads"
        began = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert time.monotonic() - began < PATIENCE
    if number == signal.SIGINT:
        assert (process.returncode, errors) == (130, b"interrupted\n")
    else:
        assert (process.returncode, errors) == (-number, b"")
    assert os.listdir(tmp_path) == []
