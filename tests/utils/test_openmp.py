"""Commands set up OpenMP before torch is loaded; the library leaves the environment alone."""

import os
import subprocess
import sys

import pytest

from alr_fast import _installed
from alr_fast.utils import openmp

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture
def fresh(monkeypatch):
    """A process that has not loaded torch, with 8 cores and a quota of 3, and no user's choice."""
    monkeypatch.delitem(sys.modules, "torch")
    for name in (*WAITING, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # restored after the test
        del os.environ[name]
    monkeypatch.setattr(openmp, "usable_cores", lambda: 3)
    monkeypatch.setattr(openmp, "affine_cores", lambda: 8)
    monkeypatch.setattr(openmp, "_limited", False)


def test_threads_wait_without_spinning_for_long_and_are_those_of_the_quota(fresh):
    openmp.prepare_openmp()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    assert os.environ["OMP_NUM_THREADS"] == "3"
    line = openmp.limited_threads()
    assert line.startswith("threads: 3, by the processor quota") and "8 cores" in line


def test_no_quota_no_word(fresh, monkeypatch):
    monkeypatch.setattr(openmp, "usable_cores", lambda: 8)
    openmp.prepare_openmp()
    assert "OMP_NUM_THREADS" not in os.environ and openmp.limited_threads() is None


@pytest.mark.parametrize("name", WAITING)
def test_a_policy_of_the_user_stays(fresh, monkeypatch, name):
    monkeypatch.setenv(name, "7")
    openmp.prepare_openmp()
    assert {n: os.environ.get(n) for n in WAITING if n in os.environ} == {name: "7"}


def test_threads_of_the_user_stay(fresh, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    openmp.prepare_openmp()
    assert os.environ["OMP_NUM_THREADS"] == "5" and openmp.limited_threads() is None


def test_nothing_is_changed_once_torch_is_loaded(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", object())
    openmp.prepare_openmp()
    assert not {*WAITING, "OMP_NUM_THREADS"} & set(os.environ)


def python(*words):
    env = {name: value for name, value in os.environ.items() if name not in WAITING}
    env["OMP_DISPLAY_ENV"] = "VERBOSE"  # each runtime prints its settings when it is loaded
    return subprocess.run([sys.executable, *words], env=env, text=True, capture_output=True)


def test_the_runtime_of_a_command_reads_the_setting():
    done = python("-m", "alr_fast")
    assert done.returncode == 0
    if "GOMP_SPINCOUNT" in done.stderr:  # libgomp
        assert "GOMP_SPINCOUNT = '1000'" in done.stderr


def test_importing_the_library_sets_nothing_and_loads_no_torch():
    code = (
        "import os, sys; before = dict(os.environ)\n"
        "import alr_fast; assert 'torch' not in sys.modules\n"
        "assert 'ALRClassifier' in dir(alr_fast) and 'functional' in dir(alr_fast)\n"
        "alr_fast.functional.alr_loss, alr_fast.losses.ALRLoss, alr_fast.bank, alr_fast.reference\n"
        "from alr_fast import *; LabelBank, ALRLoss, __version__\n"
        "assert not hasattr(alr_fast, 'unknown')\n"
        "import pickle; assert pickle.loads(pickle.dumps(LabelBank)) is alr_fast.LabelBank\n"
        "assert dict(os.environ) == before"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "GOMP_SPINCOUNT = '1000'" not in done.stderr


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("-m alr_fast.train --data digits", True),
        ("-malr_fast", True),
        ("-um alr_fast.data verify", True),
        ("-W ignore -X dev -I --check-hash-based-pycs always -m alr_fast", True),
        ("-m mine alr_fast", False),  # whose package imports this one
        ("-m mine --loss alr_fast.ALRLoss -m alr_fast.train", False),
        ("-Walr_fast -X alr_fast -m mine", False),
        ("-m alr_faster.train", False),
    ],
)
def test_which_module_python_runs(monkeypatch, words, command):
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "orig_argv", ["python", *words.split()])
    assert _installed.is_command() == command
