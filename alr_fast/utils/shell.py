"""Commands in messages: texts that can be pasted into a shell."""

import os
import shlex
import shutil
import sys


def python_command(module: str, *words: str | os.PathLike[str]) -> str:
    """The command that runs a module of this package, in the Python that runs now.

    Args:
        module: ``alr_fast.data``, for example.
        words: Arguments, quoted as far as necessary.

    Returns:
        ``python -m alr_fast.data verify '/data/my images'``; in place of ``python`` the path of
        this interpreter, if another one or none is called so.
    """
    named = shutil.which("python")
    same = named is not None and os.path.abspath(named) == os.path.abspath(sys.executable)
    program = "python" if same else sys.executable
    return " ".join(map(quoted, (program, "-m", module, *words)))


def quoted(word: str | os.PathLike[str]) -> str:
    """A word for a POSIX shell, on one line; non-UTF-8 bytes are escaped, as in bash."""
    text = os.fspath(word)
    if text.isprintable():  # no control characters, no bytes that are not UTF-8
        return shlex.quote(text)
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in os.fsencode(text)
    )
    return f"$'{escaped}'"
