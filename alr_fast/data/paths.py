"""Paths as people write them: in options, and in lists of files.

In options, ``~`` and variables are expanded, as a shell does. In lists, paths are relative to the
folder of the data; what else people write there is made so, if it means a file below that folder.
"""

import argparse
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import AnyStr
from urllib.parse import unquote_to_bytes

from alr_fast.errors import UserError
from alr_fast.utils.text import is_utf8_bytes, printable, shown

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")
_ADDRESS = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]+):(?=//)|(file):(?=/)", re.IGNORECASE)
_DRIVE = re.compile(rb"[A-Za-z]:[\\/]|\\\\")
# What may have to be changed or refused, besides bytes that are not UTF-8.
_ODD = re.compile(rb"\.\.|//|^/|^\.(/|$)|/\.(/|$)|/$|\\|^~|:/|\0")
# The same in many paths, each followed by a zero byte; finding texts is faster than a pattern.
_ODD_PARTS = (
    *(b"..", b"//", b"\0/", b"\0./", b"\0.\0", b"/./", b"/.\0", b"/\0"),
    *(b"\\", b"\0~", b":/", b"\0\0"),
)
_MOST_KNOWN = 1 << 16  # folders


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path of an option, with ``~``, ``~user``, ``$NAME`` and ``${NAME}`` replaced.

    A path with a dollar sign that exists as it is written stays as it is.

    Raises:
        UserError: There is no such variable, or no such user.
    """
    text = os.fspath(path)
    full = os.path.expanduser(text)
    if full == text and text.startswith("~") and not os.path.lexists(text):
        user = text.split("/", 1)[0]
        raise UserError(
            f"{printable(text)}: there is no user {printable(user[1:]) or '~'}; write the folder "
            f"out, or ./{printable(text)} for a file of this name"
        )
    if "$" in full and not os.path.lexists(full):
        full = _VARIABLE.sub(lambda found: _value(found[1] or found[2], text), full)
    return Path(full)


def _value(name: str, text: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise UserError(
            f"{printable(text)}: the variable {printable(name) or '${}'} is not set; set it, or "
            "write the path out"
        )
    return value


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address of a remote store; `Path` writes one slash for two."""
    return re.match(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)) is not None


def path_option(text: str) -> Path:
    """`expanded` as the type of an option of argparse.

    Raises:
        argparse.ArgumentTypeError: As `expanded` raises `UserError`.
    """
    try:
        return expanded(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def text_option(text: str) -> str:
    """`path_option` for an option that takes a path or a word, as a text."""
    return str(path_option(text)) if "~" in text or "$" in text else text


def relative_path(text: AnyStr, root: Path, where: str) -> AnyStr:
    """A path of a list as a path below the root, with forward slashes.

    Backslashes divide folders, unless some file there has one in its name. An absolute path, one
    that begins with ``~``, or a ``file://`` address must lie below the root. Bytes that are not
    UTF-8 are the name of a file, or else Windows-1252.

    Args:
        text: The path as written, a text or bytes.
        root: Folder of the data.
        where: Place of the path, for messages.

    Raises:
        UserError: It is absolute or leads out of the root, is an address of a remote store, or
            contains a zero byte.
    """
    found = WrittenPaths(root).relative(os.fsencode(text), where)
    return found if isinstance(text, bytes) else os.fsdecode(found)


class WrittenPaths:
    """Paths of a list, as `relative_path` reads them; remembers folders that it looked into.

    Args:
        root: Folder of the data.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(os.path.abspath(root))
        self._real_root = os.path.realpath(self._root)
        self._has_backslash = lru_cache(maxsize=1024)(_has_backslash)
        self._known: dict[bytes, bytes] = {}
        self._real = lru_cache(maxsize=1024)(os.path.realpath)

    @staticmethod
    def any_odd(blob: bytes | bytearray) -> bool:
        """Whether `is_odd` holds for one of the paths in a blob, each followed by a zero byte."""
        if blob.startswith((b"/", b"./", b".\0", b"~", b"\0")) or any(
            part in blob for part in _ODD_PARTS
        ):
            return True
        return not is_utf8_bytes(blob)

    @staticmethod
    def is_odd(name: bytes) -> bool:
        """Whether a path may be another one than `relative` returns, or be refused."""
        return _ODD.search(name) is not None or not is_utf8_bytes(name)

    def relative(self, text: bytes, where: str) -> bytes:
        """See `relative_path`."""
        cut = max(text.rfind(b"/"), text.rfind(b"\\")) + 1
        folder, name = text[:cut], text[cut:]
        # What is done to a path depends on its folder, but for the names of the exceptions.
        plain = name not in (b"", b".", b"..") and b"\0" not in name and is_utf8_bytes(name)
        if plain and (known := self._known.get(folder)) is not None:
            return known + name
        result = self._relative(text, where)
        if plain and is_utf8_bytes(folder) and not _ADDRESS.match(text) and not _DRIVE.match(text):
            if len(self._known) == _MOST_KNOWN:
                self._known.clear()
            self._known[folder] = result[: len(result) - len(name)]
        return result

    def _relative(self, text: bytes, where: str) -> bytes:
        name = text
        address = _ADDRESS.match(name)
        if address and (address[2] or address[1].lower() == b"file"):
            name = self._of_address(name)
        elif address:
            raise UserError(
                f"{where}: {shown(text)} is an address; only files on a disk are read: download "
                f"them, and list their paths below {shown(self._root)}"
            )
        elif name.startswith((b"~/", b"~\\")):
            name = os.path.expanduser(b"~") + name[1:]
        if b"\0" in name:
            raise UserError(f"{where}: {shown(text)} contains a zero byte; correct the path")
        name = self._with_slashes(self._in_utf8(name))
        if os.path.isabs(name):
            name = self._below_root(name) or name
        normal = os.path.normpath(name)
        if (
            os.path.isabs(normal)
            or normal.split(b"/", 1)[0] in (b"..", b".")
            or (_DRIVE.match(text) and not os.path.lexists(os.path.join(self._root, normal)))
        ):
            raise UserError(
                f"{where}: {shown(text)} leads out of the data folder; paths in a list must be "
                f"relative to {shown(self._root)} or lie below it"
            )
        return normal

    @staticmethod
    def _of_address(name: bytes) -> bytes:
        """The path of a ``file:`` address."""
        rest = name.split(b":", 1)[1]
        if rest.startswith(b"//"):
            host, slash, path = rest[2:].partition(b"/")
            rest = slash + path if host in (b"", b"localhost") else rest
        return unquote_to_bytes(rest)

    def _in_utf8(self, name: bytes) -> bytes:
        """A name whose bytes are not UTF-8 as that of a file: as it is, or from Windows-1252."""
        if is_utf8_bytes(name) or os.path.lexists(os.path.join(self._root, name)):
            return name
        try:
            other = name.decode("cp1252").encode()
        except UnicodeDecodeError:
            return name
        return other if os.path.lexists(os.path.join(self._root, other)) else name

    def _with_slashes(self, name: bytes) -> bytes:
        if b"\\" not in name:
            return name
        folder = os.path.join(self._root, os.path.dirname(name.split(b"\\", 1)[0]))
        return name if self._has_backslash(folder) else name.replace(b"\\", b"/")

    def _below_root(self, name: bytes) -> bytes | None:
        """An absolute path relative to the root; None if it is not below it."""
        folder, last = os.path.split(os.path.normpath(name))
        for root, path in ((self._root, folder), (self._real_root, self._real(folder))):
            inside = root.rstrip(b"/") + b"/"
            if (path + b"/").startswith(inside):
                return os.path.join(path, last)[len(inside) :]
        return None


def _has_backslash(folder: bytes) -> bool:
    """Whether a name in a folder contains a backslash."""
    try:
        with os.scandir(folder) as entries:
            return any(b"\\" in entry.name for entry in entries)
    except OSError:
        return False
