"""Which installation of this package is imported, and whether it is compiled. Needs no torch."""

import json
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from alr_fast.utils.requirements import is_installed, pip_install
from alr_fast.utils.text import printable, shortened

HERE = Path(__file__).resolve().parent
OPERATORS = HERE / "_ops.so"
CUDA_OPERATORS = HERE / "_cuda.so"
NODE = "alr_fast._autograd"
NOT_COMPILED = HERE / "_not_compiled.txt"  # of a build without them: the reason

# setuptools: as setup.py asks for; any version of the others that is in use.
_BUILD_PACKAGES = {"setuptools": 77, "cmake": 0, "ninja": 0, "pybind11": 0}
_LONGEST_REASON = 300  # characters


def installed_version() -> str:
    """Version of this package; "unknown" for a source folder that is not installed."""
    try:
        return version("alr_fast")
    except PackageNotFoundError:
        return "unknown"


def why_missing() -> str | None:
    """Why this package has no compiled library, in one line; None if there is one."""
    if OPERATORS.exists():
        return None
    try:
        record = NOT_COMPILED.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        record = ""
    reason = f"is missing in {HERE}" + (f" ({one_line(record)})" if record else "")
    other = _hidden_installation()
    if other is not None:
        reason += f", a source folder that hides the package installed in {other}"
    return reason


def one_line(text: object) -> str:
    """A text of another program in one line of a message."""
    return shortened(printable(" ".join(str(text).split())), _LONGEST_REASON)


def how_to_compile(*, cuda: bool = False) -> str:
    """What to do for a compiled library, with the command, in one line.

    Args:
        cuda: Whether its CUDA kernels are missing, rather than all of it.
    """
    source, is_folder = _source()
    words = ["--no-build-isolation", "--no-deps"]
    if source == HERE.parent:
        words += ["--editable"]
    else:
        words += ["--force-reinstall", *([] if is_folder else ["--no-cache-dir"])]
    command = pip_install(*words, "SOURCE" if source is None else str(source))
    tools = [
        f"{name}>={least}" if least else name
        for name, least in _BUILD_PACKAGES.items()
        if not is_installed(name) or int(version(name).split(".")[0]) < least
    ]
    variables = "" if os.name == "nt" else "ALR_FAST_NATIVE=1 " + "ALR_FAST_CUDA=1 " * cuda
    command = f"{variables}{command}"
    if tools:
        command = f"{pip_install(*tools)} && {command}"
    where = "" if source is not None else ", where SOURCE is a source package or folder of alr_fast"
    text = f"compile it with a C++ compiler by `{command}`{where}"
    if _hidden_installation() is not None:
        return f"run in another folder (or without PYTHONPATH), or {text}"
    return text


def build_facts() -> dict[str, Any] | None:
    """What `alr_fast._C` says about the build; None if it was not built for this Python."""
    try:
        module = import_module("alr_fast._C")
    except ImportError:
        return None
    # The finder of an editable installation elsewhere finds the one there.
    if Path(str(module.__file__)).resolve().parent != HERE:
        return None
    facts: dict[str, Any] = module.build_info()
    return facts


def has_node() -> bool:
    """Whether the autograd node was built, for this Python."""
    spec = PathFinder.find_spec(NODE, [str(HERE)])
    return spec is not None and spec.origin is not None


def _source() -> tuple[Path | str | None, bool]:
    """Where this package comes from, if that can be compiled, and whether it is a folder."""
    if (HERE.parent / "csrc").is_dir() and (HERE.parent / "setup.py").is_file():
        return HERE.parent, True
    try:
        record = json.loads(distribution("alr_fast").read_text("direct_url.json") or "{}")
        url = record.get("url", "")
        if "vcs_info" in record:
            kind, commit = record["vcs_info"]["vcs"], record["vcs_info"]["commit_id"]
            return f"{kind}+{url}@{commit}", False
        if "dir_info" in record:
            folder = Path(url2pathname(urlsplit(url).path))
            return (folder, True) if (folder / "setup.py").is_file() else (None, False)
        if urlsplit(url).path.endswith(".tar.gz"):
            return url, False
    except (PackageNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        pass  # not installed, or by a program that keeps other records
    return None, False


def _hidden_installation() -> Path | None:
    """Another folder of this package, with its library, that follows on the search path."""
    for entry in sys.path:
        spec = PathFinder.find_spec("alr_fast", [entry or os.getcwd()])
        if spec is None or spec.origin is None:
            continue
        folder = Path(spec.origin).resolve().parent
        if folder != HERE and (folder / OPERATORS.name).exists():
            return folder
    return None


def is_command() -> bool:
    """Whether this process is a command of this package, for which a traceback says nothing."""
    if sys.argv[:1] == ["-m"]:  # `python -m`, before the module is found
        return _module_to_run(sys.orig_argv[1:]).split(".")[0] == "alr_fast"
    return bool(sys.argv) and Path(sys.argv[0]).name == "alr-fast"


def _module_to_run(words: Sequence[str]) -> str:
    """The module that ``python -m`` runs, from the words that follow ``python``; "" without one.

    Another module may import this package before it runs, and name it in its own arguments.
    """
    rest = iter(words)
    for word in rest:
        if word == "--check-hash-based-pycs":
            next(rest, None)
        if not word.startswith("-") or word.startswith("--"):
            continue
        option = re.search("[cmWX]", word)  # those with a value, behind it or in the next word
        if option is None:
            continue
        value = word[option.end() :] or next(rest, "")
        if option[0] in "cm":
            return value if option[0] == "m" else ""
    return ""


# Decided at the start: later the first word of a command is the path of its module.
STARTED_AS_COMMAND = is_command()
