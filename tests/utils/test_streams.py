"""Output that nobody takes, that its encoding cannot show, or that was closed, ends no command."""

import errno
import io
import os
import subprocess
import sys

import pytest

from alr_fast.utils.streams import lasting_output


def run(code, redirect="", **environment):
    """Standard output (as far as it is not redirected), error and status of a command."""
    code = f"import sys\nfrom alr_fast.utils.command import exit_status\ndef action():\n{code}"
    code += "\nsys.exit(exit_status(action))"
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirect}', sys.executable, code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


LINES = "  for number in range(20000): print(number)\n  print('done', file=sys.stderr)"


def test_a_reader_that_leaves_does_not_end_a_command():
    done = run(LINES, "| head -n 2; exit ${PIPESTATUS[0]}")
    assert done.returncode == 0 and done.stdout == "0\n1\n"
    warning, end = done.stderr.splitlines()
    assert warning == "warning: standard output: Broken pipe; going on without it"
    assert end == "done"


def test_a_full_disk_behind_the_output_does_not_end_a_command():
    done = run(LINES, "> /dev/full")
    assert done.returncode == 0
    assert "No space left on device; going on without it" in done.stderr
    assert done.stderr.endswith("done\n") and done.stderr.count("\n") == 2


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(redirect):
    done = run("  print('x'); print('y', file=sys.stderr); sys.stderr.isatty(); return 7", redirect)
    assert done.returncode == 7
    assert "Traceback" not in done.stdout + done.stderr


def test_characters_that_the_encoding_lacks_are_escaped():
    done = run("  print('Kätzchen │ 猫')", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout == "K\\xe4tzchen \\u2502 \\u732b\n"


def test_an_encoding_of_its_own_stays_as_it_is():
    done = run("  print('Kätzchen')", PYTHONIOENCODING="utf-8:strict")
    assert done.stdout == "Kätzchen\n"


def test_streams_of_another_kind(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with lasting_output():
        print("kept")
    assert sys.stdout.getvalue() == "kept\n"


def test_a_stream_without_a_file(monkeypatch, capsys):
    class Broken(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(sys, "stdout", Broken())
    with lasting_output():
        print("lost")
    assert "standard output: Input/output error; going on without it" in capsys.readouterr().err
