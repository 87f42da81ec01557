"""Commands in messages do what they say when they are pasted."""

import os
import subprocess
import sys

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
    "new\nline",
    "tab\t",
    "\u6f22\u00e9",
    os.fsdecode(b"\xff\xfe'\\x"),
    "\x1b[31m",
    "a;b&c|d>e",
]


def test_every_word_arrives_as_it_was():
    line = "printf '%s\\0' " + " ".join(map(quoted, WORDS))
    assert "\n" not in line and line.isprintable()
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in WORDS]


@pytest.mark.parametrize("named", ["this", "none", "another"])
def test_the_command_runs_in_this_python(tmp_path, monkeypatch, named):
    if named != "none":
        target = sys.executable if named == "this" else "/bin/false"
        (tmp_path / "python").symlink_to(target)
    if named == "this":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if named != "none" else str(tmp_path))
    command = python_command("json.tool", "--help")
    assert command == f"{'python' if named == 'this' else sys.executable} -m json.tool --help"
    assert subprocess.run(["/bin/bash", "-c", command], capture_output=True).returncode == 0
