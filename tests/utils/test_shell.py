"""Commands in messages do what they say when they are pasted, in every shell and folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alr_fast.utils.shell import python_command, quoted

WORDS = [
    "plain",
    "with blank",
    "it's",
    'a"b',
    "$HOME",
    "`id`",
    "*",
    "",
    "-x",
    "=ls",
    "%1",
    "a\\b\\\\c",
    "'\\'",
    "~root",
    "{a,b}",
    "!!",
    "new\nline",
    "tab\t",
    "-\t%d\\",
    "\u6f22\u00e9",
    os.fsdecode(b"\xff\xfe'\\x"),
    "\x1b[31m",
    "a;b&c|d>e",
]
# Those that this machine has; sh always.
SHELLS = [shell for shell in ("sh", "bash", "dash", "zsh", "fish") if shutil.which(shell)]


def run(shell, line):
    plain = {"zsh": ["-f"], "fish": ["--no-config"]}.get(shell, [])
    return subprocess.run([shell, *plain, "-c", line], capture_output=True, check=True).stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_every_word_arrives_as_it_was(shell):
    line = "printf '%s\\0' " + " ".join(map(quoted, WORDS))
    assert "\n" not in line and line.isprintable()
    assert run(shell, line).split(b"\0")[:-1] == [os.fsencode(word) for word in WORDS]


def test_words_for_shells_that_this_machine_may_not_have():
    assert quoted("a\\b") == "'a'\"\\\\\"'b'"  # fish escapes between single quotes, too
    assert quoted("=ls") == "'=ls'"  # zsh looks up the path of ls
    assert quoted("\x1b[m") == "\"$(printf '\\033\\133m')\""  # $'...' is not for dash


def test_a_newline_at_the_end_arrives_in_bash():
    assert run("bash", f"printf '%s\\0' {quoted('end' + chr(10))}") == b"end\n\0"


def test_a_shell_was_found():
    assert "sh" in SHELLS


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A folder of programs with an interpreter; returns a function that installs the script."""
    programs = tmp_path / "my env" / "bin"
    programs.mkdir(parents=True)
    python = programs / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    def install(folder, interpreter=python):
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "alr-fast"
        script.write_text(f"#!/bin/sh\n'''exec' \"{interpreter}\" -m alr_fast \"$@\"\n' '''\n")
        script.chmod(0o755)
        return script

    return programs, install


def outcome(command):
    """What the command prints in another folder."""
    return run("sh", f"cd / && {command}").decode()


@pytest.mark.parametrize("where", ["on PATH", "linked", "beside", "of another", "nowhere"])
def test_the_command_runs_in_this_python(environment, tmp_path, monkeypatch, where):
    programs, install = environment
    if where != "nowhere":
        install(programs, *(["/usr/bin/python3"] if where == "of another" else []))
    if where == "on PATH":
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    elif where == "linked":  # as pipx does
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "alr-fast").symlink_to(programs / "alr-fast")
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    command = python_command("alr_fast.noise", "--help")
    start = {
        "on PATH": "alr-fast",
        "linked": "alr-fast",
        "beside": f"'{programs}/alr-fast'",
    }.get(where, f"'{programs}/python' -m alr_fast")
    assert command == f"{start} noise --help"


def test_a_script_of_another_python_on_the_path_is_not_taken(environment, tmp_path, monkeypatch):
    programs, install = environment
    install(tmp_path / "other", interpreter=shutil.which("false"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'other'}:/usr/bin:/bin")
    assert python_command("alr_fast") == f"'{programs}/python' -m alr_fast"


@pytest.mark.parametrize("first", ["", "#!", "#!/bin/sh", "\0\xff", "#!/bin/sh\n'''exec' \"a"])
def test_what_is_no_script_is_not_taken(environment, first):
    programs, install = environment
    install(programs).write_text(first, encoding="latin-1")
    assert python_command("alr_fast") == f"'{programs}/python' -m alr_fast"


SCRIPT = """
import sys
from pip._vendor.distlib.scripts import ScriptMaker
folder, sys.executable = sys.argv[1:]
maker = ScriptMaker(None, folder)
maker.variants = {""}
maker.make("alr-fast = alr_fast.__main__:main")
"""


def test_the_scripts_that_pip_writes_are_recognised(tmp_path, monkeypatch):
    for folder in ("short", "with blank", "long" * 60):
        programs = tmp_path / folder[:200]
        programs.mkdir()
        (programs / "python").symlink_to(sys.executable)
        # In another process: torch.compile fails where pip was imported (setuptools' distutils).
        interpreter = str(programs / "python")
        subprocess.run([sys.executable, "-c", SCRIPT, programs, interpreter], check=True)
        monkeypatch.setattr(sys, "executable", interpreter)
        monkeypatch.setenv("PATH", str(programs))
        assert python_command("alr_fast.train") == "alr-fast train"
        monkeypatch.undo()


def test_a_path_becomes_absolute_and_a_text_stays(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = python_command("alr_fast.data", "verify", Path("a b"), "DIR")
    assert command.endswith(f" data verify '{tmp_path}/a b' DIR")


def test_a_pasted_command_runs_in_another_folder():
    assert outcome(python_command("alr_fast", "--version")).startswith("alr-fast ")


def test_another_module_is_run_by_its_name():
    assert python_command("json.tool") == f"{sys.executable} -m json.tool"
    assert "usage" in outcome(python_command("json.tool", "--help"))
