"""alr-fast and python -m alr_fast: the table of commands, help, versions, mistakes."""

import importlib
import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

import alr_fast
from alr_fast.__main__ import COMMANDS, main
from alr_fast.training.config.command_line import parse


def python(*words, **settings):
    """Runs this Python."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, **settings)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_module(name):
    module = importlib.import_module(COMMANDS[name].module)
    assert callable(module.main)
    assert COMMANDS[name].module.split(".")[1] == name


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_help_lists_every_command_on_one_line(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: alr-fast COMMAND [OPTIONS]"
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert listed == list(COMMANDS)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_the_help_fits_into_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= max(40, min(80, columns))


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
    "completion": ["bash"],
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
    "completion": "--hel",
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


@pytest.mark.parametrize("option", ["--version", "-V"])
@pytest.mark.parametrize("words", [*([name] for name in COMMANDS), ["data", "verify"]])
def test_the_version_is_printed_wherever_it_is_asked_for(words, option, capsys):
    try:
        status = main([*words, option])
    except SystemExit as end:  # of argparse
        status = end.code
    assert status == 0
    assert capsys.readouterr() == (f"alr-fast {alr_fast.__version__}\n", "")


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("words", [*([name] for name in COMMANDS), ["data", "pack"]])
def test_the_help_is_printed_wherever_it_is_asked_for(words, option, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words, option])
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert (out.split("\n")[0].startswith(f"usage: alr-fast {' '.join(words)} "), err) == (True, "")


def mistake(words, capsys):
    """The message of a call, which must be one line, after which nothing else is printed."""
    assert main(words) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    return error.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_takes_an_option_with_one_dash(name, capsys):
    option = REAL[name].removeprefix("-")
    error = mistake([name, *WORDS[name], option, "x"], capsys)
    assert error.startswith(f"{option}: no such option; did you mean --")


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_takes_one_word_more(name, capsys):
    words = [*WORDS[name], "--top", "1"] if name == "predict" else WORDS[name]  # ends IMAGES
    error = mistake([name, *words, "stray"], capsys)
    assert error.startswith("unrecognized arguments: stray; --help")


EMPTY = {  # an option that takes a value
    "train": "--data-root",
    "export": "--output",
    "report": "--output",
    "review": "--data-root",
    "predict": "--method",
    "data": "--split",
    "noise": "--data",
}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("name", EMPTY)
def test_no_command_takes_an_empty_value(name, apart, capsys):
    """That of --data-root "$DATA" without the variable: training ran on other data."""
    given = [EMPTY[name], ""] if apart else [f"{EMPTY[name]}="]
    error = mistake([name, *WORDS[name], *given], capsys)
    assert error == (
        f"{EMPTY[name]}: the value is empty (a variable that is not set?); pass one or leave it out"
    )


@pytest.mark.parametrize("option", ["--plugins", "--log.to"])
def test_a_list_may_be_empty(option):
    """No plugins for a run that names some, and no logs."""
    assert parse([option, ""]) == parse([f"{option}="])


@pytest.mark.parametrize("name", ["export", "report", "review", "predict", "data", "completion"])
def test_no_command_takes_an_empty_argument(name, capsys):
    words = WORDS[name][:-1]
    assert mistake([name, *words, ""], capsys).startswith("an argument: the value is empty")


@pytest.mark.parametrize(
    "words",
    [["data", "verify", "x", "--columns=path="], ["export", "--", ""], ["noise", "--kind", "="]],
)
def test_only_an_empty_value_is_empty(words, capsys):
    assert "is empty" not in mistake(words, capsys)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["data"], "the following arguments are required: COMMAND"),
        (["data", "verify", "x", "--worker", "3"], "--worker: no such option; did you mean "
         "--workers?"),
        (["data", "verify", "x", "--split"], "--split: needs a value"),
        (["data", "pack", "x"], "the following arguments are required: OUT"),
        (["export", "x", "--csv=1"], "--csv=1: takes no value"),
        (["report", "x", "--most", "x"], "--most x: must be an integer"),
        (["noise", "--kind"], "--kind: needs a value"),
        (["noise", "--kind", "pair", "--rate", "x"], "--rate x: must be a number"),
        (["train", "--data-root"], "--data-root: needs a value"),
        (["train", "--methods"], "--methods: needs a value"),
        (["train", "--optim.ep", "3"], "--optim.ep: no such option; did you mean --optim.epochs?"),
        (["train", "--optim.epochs"], "--optim.epochs: needs a value"),
        (["train", "--optim.epochs", "1.5"], "--optim.epochs 1.5: must be an integer"),
        (["train", "--optim.lr", "x"], "--optim.lr x: must be a number"),
        (["train", "--optim.nesterov", "maybe"], "--optim.nesterov maybe: must be true or false"),
        (["train", "--data.mean", "3"], "--data.mean 3: must be a list of numbers or null"),
        (["train", "-epochs", "3"], "-epochs: no such option; did you mean --optim.epochs?"),
        (["train", "--noise.kind", "sym"], "--noise.kind sym: no such noise; there is none, "
         "symmetric, symmetric-exclusive, asymmetric, asymmetric-blocks5, asymmetric-superclass, "
         "pair, instance, matrix; did you mean symmetric or symmetric-exclusive?"),
        (["train", "--help=x"], "--help=x: takes no value"),
        (["--help", "train"], "--help train: write the command first: alr-fast train --help"),
        (["-h", "noise"], "-h noise: write the command first: alr-fast noise -h"),
        (["--version", "noise"], "noise: --version takes nothing else; leave it out"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_arguments_is_named(words, error, capsys):
    found = mistake(words, capsys)
    assert re.sub(r"; --help(-all)? lists every option$", "", found) == error


@pytest.mark.parametrize("name", ["train", "noise"])
def test_data_without_their_option_are_recognised(name, capsys, tmp_path):
    folder = tmp_path / "my photos"
    folder.mkdir()
    error = mistake([name, *WORDS[name], str(folder)], capsys)
    assert f"; did you mean --data-root '{folder}'?; --help" in error


@pytest.mark.parametrize(
    "words",
    [
        ["noise", "--kind", "none", "--kind", "pair", "--rate", "3", "--output", "x"],
        ["train", "--noise.kind", "none", "--noise.kind", "pair", "--noise.rate", "3"],
        ["train", "--noise.rate", "2", "--noise.kind", "pair", "--noise.rate", "3"],
    ],
)
def test_the_last_value_of_a_repeated_option_counts(words, capsys):
    assert "rate 3" in mistake(words, capsys)


def test_mistakes_are_the_same_by_python(capsys):
    words = ["export", "RUN", "--outpu", "x"]
    expected = mistake(words, capsys)
    for module in (["alr_fast", "export"], ["alr_fast.export"]):
        done = python("-m", *module, *words[1:])
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {expected}\n")


def test_info_has_the_versions_of_the_packages_that_are_used(capsys):
    assert main(["info"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "packages:" in line)
    assert f"numpy {version('numpy')}, " in line and f"timm {version('timm')}, " in line
    assert "torch 2" not in line and "pytest" not in line  # has its own line; is not used
