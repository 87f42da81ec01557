"""alr-fast and python -m alr_fast: the table of commands, help, versions, mistakes."""

import importlib
import os
import subprocess
import sys

import pytest

import alr_fast
from alr_fast.__main__ import COMMANDS, main


def python(*words, **settings):
    """Runs this Python."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, **settings)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_module(name):
    module = importlib.import_module(COMMANDS[name].module)
    assert callable(module.main)
    assert COMMANDS[name].module.split(".")[1] == name


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_help_lists_every_command_on_one_line(words, capsys):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: alr-fast COMMAND [OPTIONS]"
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert listed == list(COMMANDS)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("called", "prog"),
    [
        ("/env/bin/alr-fast", "alr-fast noise"),
        ("/site/alr_fast/__main__.py", "python -m alr_fast noise"),
        ("/site/alr_fast/noise/__main__.py", "python -m alr_fast.noise"),
        ("/env/bin/pytest", "alr-fast noise"),
    ],
)
def test_usage_names_the_command_as_it_was_called(called, prog, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    with pytest.raises(SystemExit):
        main(["noise", "--help"])
    assert capsys.readouterr().out.startswith(f"usage: {prog} [-h]")


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"alr-fast {alr_fast.__version__}\n"


def test_the_version_needs_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = python("-m", "alr_fast", "--version", env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (0, f"alr-fast {alr_fast.__version__}\n")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["trian"], "trian: no such command; did you mean train?; --help lists all"),
        (["--verison"], "--verison: no such command; did you mean --version?; --help lists all"),
        (["xyz"], "xyz: no such command; --help lists all"),
        (["--version", "x"], "x: --version takes nothing else; leave it out"),
        (
            ["data", "verfy", "x"],
            "COMMAND verfy: must be one of verify, pack; did you mean verify?",
        ),
        (
            ["noise", "--kind", "symetric"],
            "--kind symetric: must be one of none, symmetric, symmetric-exclusive, asymmetric, "
            "asymmetric-blocks5, asymmetric-superclass, pair, instance, matrix; did you mean "
            "symmetric?",
        ),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name(words, error, capsys):
    assert main(words) == 2
    assert capsys.readouterr() == ("", f"error: {error}\n")


WORDS = {  # of a call that is right
    "train": [],
    "export": ["RUN"],
    "report": ["RUN"],
    "review": ["RUN"],
    "predict": ["RUN", "IMAGE"],
    "data": ["verify", "ROOT"],
    "noise": ["--kind", "pair", "--output", "FILE"],
    "info": [],
}
REAL = {  # an option, without its last letter
    "train": "--data-roo",
    "export": "--outpu",
    "report": "--outpu",
    "review": "--metho",
    "predict": "--outpu",
    "data": "--agai",
    "noise": "--outpu",
    "info": "--hel",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_takes_an_unknown_option(name, capsys):
    assert main([name, *WORDS[name], "--no-such-option"]) == 2
    assert "--no-such-option: no such option" in capsys.readouterr().err.replace("_", "-")


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_takes_a_shortened_option(name, capsys):
    assert main([name, *WORDS[name], f"{REAL[name]}=x"]) == 2
    error = capsys.readouterr().err
    assert error.replace("_", "-").startswith(f"error: {REAL[name]}: no such")
    assert "no such option; did you mean --" in error
