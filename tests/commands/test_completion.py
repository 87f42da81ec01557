"""alr-fast completion: the scripts in real shells, and what they offer."""

import argparse
import re
import shutil
import subprocess
import sys
from typing import get_args

import pytest

from alr_fast import completion, train
from alr_fast.__main__ import COMMANDS, main
from alr_fast.data.datasets import DatasetName
from alr_fast.data.paths import path_option, text_option
from alr_fast.noise.injection import NOISE_MODELS
from alr_fast.training.config import command_line, schema
from alr_fast.training.config.help import known_options, written
from alr_fast.training.methods import METHODS
from alr_fast.training.open_run import run_option
from helpers.shell_session import TAB, ShellSession

# How each shell starts without the files of the user, and reads a script.
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source '{}'"),
    "zsh": (["zsh", "-f", "-i"], "bindkey -e; autoload -Uz compinit; compinit -D; source '{}'"),
    "fish": (["fish", "--no-config", "-i"], "source '{}'"),
    "tcsh": (["tcsh", "-f", "-i"], "source '{}'"),
}
ALL = {"bash": "\x1b*", "zsh": "\x18"}  # the key that inserts every completion
INSERT_ALL = (
    "all() {{ _main_complete; compstate[insert]=all }}; zle -C all complete-word all; "
    "bindkey '^X' all"
)


@pytest.fixture(scope="module", params=SHELLS)
def shell(request, tmp_path_factory):
    """A terminal with the script, in a folder with a run and files; name and terminal."""
    words, read = SHELLS[request.param]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    for name in ("bin", "runs/20260101-a", "runs/20260101-b", "my photos", "other"):
        (folder / name).mkdir(parents=True)
    (folder / "table one.csv").touch()
    command = folder / "bin/alr-fast"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    (folder / ".venv").symlink_to(folder)
    script = folder / "script"
    script.write_text(completion.script(request.param))
    terminal = ShellSession(words, folder, folder / "bin")
    try:
        assert terminal.run(read.format(script)).strip() == ""
        if request.param == "zsh":
            assert terminal.run(INSERT_ALL.format()).strip() == ""
        yield request.param, terminal
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("alr-fast tr", "train"),
        ("alr-fast train --optim.l", "--optim.lr"),
        ("alr-fast train --log-e", "--log-every"),
        ("alr-fast train --bank.d", "--bank.dtype"),
        ("alr-fast train --bank.dtype b", "bfloat16"),
        ("alr-fast train --optim.nesterov f", "false"),
        ("alr-fast train --methods el", "elr"),
        ("alr-fast train --methods=el", "--methods=elr"),
        ("alr-fast train --noise.kind asymmetric-b", "asymmetric-blocks5"),
        ("alr-fast train --recipe webvision-", "webvision-mini"),
        ("alr-fast train --data-root my", "my photos/"),
        ("alr-fast train --resume ru", "runs/"),
        ("alr-fast export ru", "runs/"),
        ("alr-fast export my", "my photos/"),
        ("alr-fast export runs --ou", "--output"),
        ("alr-fast export runs --output tab", "table one.csv"),
        ("alr-fast noise --kind asymmetric-s", "asymmetric-superclass"),
        ("alr-fast export runs --method back", "backward_correction"),
        ("alr-fast data ver", "verify"),
        ("alr-fast data verify my", "my photos/"),
        ("alr-fast data verify --ag", "--again"),
        ("alr-fast data pack other my", "my photos/"),
        ("alr-fast completion fi", "fish"),
    ],
)
def test_a_word_is_completed(shell, typed, expected):
    _, terminal = shell
    *before, last = terminal.complete(typed)
    assert [" ".join(before), last.rstrip("/")] == [typed.rpartition(" ")[0], expected.rstrip("/")]


@pytest.mark.parametrize(
    ("typed", "expected", "shells"),
    [
        (".venv/bin/alr-fast tr", "train", ("bash", "zsh", "fish")),
        ("alr-fast train --methods ce,el", "ce,elr", ("bash", "zsh", "fish")),
        ("alr-fast train --methods=ce,el", "--methods=ce,elr", ("bash", "zsh", "fish")),
        ("alr-fast train --resume au", "auto", ("bash", "zsh", "fish")),
        ("alr-fast predict runs tab", "table one.csv", ("bash", "zsh", "fish")),
        ("alr-fast predict runs x tab", "table one.csv", ("bash", "zsh", "fish")),
        ("alr-fast export runs --output=tab", "--output=table one.csv", ("bash", "zsh", "tcsh")),
        ("alr-fast data verify my\\ ph", "my photos", ("bash", "zsh", "tcsh")),
        ("alr-fast export tab", "tab", ("bash", "fish", "tcsh")),  # a folder is asked for
    ],
)
def test_a_word_is_completed_where_the_shell_can(shell, typed, expected, shells):
    name, terminal = shell
    if name in shells:
        assert terminal.complete(typed)[-1].rstrip("/") == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("alr-fast ", COMMANDS),
        ("alr-fast data ", ("verify", "pack")),
        ("alr-fast train --methods ", METHODS),
        ("alr-fast train --data ", get_args(DatasetName)),
        ("alr-fast noise --kind ", NOISE_MODELS),
        ("alr-fast export runs/2", ("runs/20260101-a", "runs/20260101-b")),
    ],
)
def test_everything_is_listed(shell, typed, expected):
    name, terminal = shell
    if name in ALL:
        start = len(typed.rpartition(" ")[0].split())
        assert sorted(terminal.complete(typed, ALL[name])[start:]) == sorted(expected)


def test_other_programs_are_completed_as_before(shell):
    _, terminal = shell
    assert terminal.complete("python -m alr_fast tab")[-1] == "table one.csv"


def test_zsh_finds_the_script_in_a_folder_of_its_functions(tmp_path):
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    (tmp_path / "_alr-fast").write_text(completion.script("zsh"))
    terminal = ShellSession(["zsh", "-f", "-i"], tmp_path, tmp_path)
    try:
        terminal.run(f"fpath=('{tmp_path}' $fpath); autoload -Uz compinit; compinit -D; bindkey -e")
        assert terminal.complete(f"alr-fast train --optim.l{TAB}", "") == [
            *("alr-fast", "train", "--optim.lr")
        ]
    finally:
        terminal.close()


def test_the_script_runs_no_python(tmp_path):
    """With the first folder of programs empty of all others, it still completes."""
    script = tmp_path / "script"
    script.write_text(completion.script("bash"))
    call = (
        f"source '{script}'; COMP_WORDS=(alr-fast train --optim.l) COMP_CWORD=2; _alr_fast; "
        'echo "${COMPREPLY[@]}"'
    )
    bash = shutil.which("bash")
    done = subprocess.run(
        [bash, "--norc", "-c", call], capture_output=True, text=True, env={"PATH": "/nowhere"}
    )
    assert (done.stdout, done.stderr) == ("--optim.lr\n", "")


@pytest.mark.parametrize("name", completion.SHELLS)
def test_the_command_prints_the_script(name, capsys):
    assert main(["completion", name]) == 0
    assert capsys.readouterr() == (f"{completion.script(name)}\n", "")


def test_every_command_is_in_the_script():
    """Names and options come from the parsers of the commands."""
    text = completion.script("bash")
    subparsers = re.search(r"^_shtab_alr_fast_subparsers=\((.*)\)$", text, re.M)
    assert subparsers[1].split() == list(COMMANDS)


def test_every_option_of_training_is_offered():
    full = command_line.options_parser(schema.DEFAULT_RECIPE)
    expected = {written(name) for name in known_options(full)}
    offered = {name for action in train.parser()._actions for name in action.option_strings}
    assert offered - {"-h"} == expected


def test_the_options_of_training_that_are_named_exist():
    from alr_fast.training.outline import OFFERS

    assert OFFERS.keys() <= set(known_options(command_line.options_parser(schema.DEFAULT_RECIPE)))


def test_paths_are_completed_wherever_one_is_taken():
    """By the types of the arguments, which no new one can forget."""
    types = (path_option, text_option, run_option)
    for action in completion.arguments(completion.whole_parser()):
        if action.type in types:
            assert completion.offer_of(action).paths is not None, action.dest
        if action.metavar in ("DIR", "FILE", "RUN"):
            assert completion.offer_of(action).paths is not None, action.dest


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("Highest learning rate.", "Highest learning rate"),
        ("default: the last one", "default"),
        ("folder of a run, for example runs/latest", "folder of a run, for example runs/latest"),
        ("one two " * 20, "one two one two one two one two one two one two one two ..."),
    ],
)
def test_a_help_text_is_one_short_line(text, short):
    assert completion.brief(text) == short


def test_without_shtab_the_command_names_the_installation(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "shtab" else name)
    assert main(["completion", "bash"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: completion needs shtab, not installed: ")
    assert "install" in error and "shtab" in error.partition("install")[2]
    assert error.count("\n") == 1


def test_a_parser_of_a_command_is_not_changed_by_its_script():
    """Each script is made of new parsers: names for zsh end with an equals sign."""
    completion.script("zsh")
    assert "--kind=" not in completion.script("bash")
    assert isinstance(completion.parser(), argparse.ArgumentParser)
