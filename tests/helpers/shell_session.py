"""A shell at a terminal, for what happens when a key is pressed."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

HOME, END, ENTER, TAB = "\x01", "\x05", "\r", "\t"  # of the keys of Emacs, which all shells know
_ROWS, _COLUMNS = 60, 400


class ShellSession:
    """A shell that reads from a terminal.

    Args:
        words: The command of the shell.
        folder: Its current folder, and its home.
        path: Folder of the commands that it finds first.
        seconds: Time after which an answer counts as missing.
    """

    def __init__(self, words, folder, path, *, seconds=60.0):
        self._seconds, self._count = seconds, 0
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        environment = {
            "PATH": f"{path}:{os.environ['PATH']}",
            "HOME": str(folder),
            "TERM": "vt100",
            "LANG": "C.UTF-8",
        }
        self._process = subprocess.Popen(
            words,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    def run(self, line):
        """Runs a line; returns what it prints."""
        return self._press(line)

    def complete(self, typed, key=TAB):
        """The words of a line after a key."""
        shown = self._press(typed + key, before="printf '<%s>' ")
        return re.findall("<([^>]*)>", shown.replace("\r\n", ""))

    def _press(self, keys, before=""):
        """Presses keys, puts a command before the line and runs both; returns what they print."""
        self._count += 1
        begin, end = f"begin-{self._count}", f"end-{self._count}"
        # With quotes inside: what is typed is shown, too, and must not look like what is printed.
        front = f"printf '%s\\n' be''{begin[2:]}; {before}"
        back = f"; printf '\\n%s\\n' e''{end[1:]}"
        os.write(self._ours, f"{keys}{HOME}{front}{END}{back}{ENTER}".encode())
        shown = self._read_until(f"{end}\r\n")
        return shown.rpartition(f"{begin}\r\n")[2].rpartition(f"\r\n{end}")[0]

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def _read_until(self, end):
        shown, limit = "", time.monotonic() + self._seconds
        while end not in shown:
            if not select.select([self._ours], [], [], max(0.0, limit - time.monotonic()))[0]:
                raise AssertionError(f"no {end!r} after {self._seconds} s in {shown!r}")
            shown += os.read(self._ours, 1 << 16).decode("utf-8", "replace")
        return shown
