"""Which installation of this package is imported, and whether it is complete. Needs no torch."""

import os
import re
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
OPERATORS = HERE / "_ops.so"
CUDA_OPERATORS = HERE / "_cuda.so"


def installed_version() -> str:
    """Version of this package; "unknown" for a source folder that is not installed."""
    try:
        return version("alr_fast")
    except PackageNotFoundError:
        return "unknown"


def check_library() -> None:
    """Checks that the compiled library belongs to this package.

    Raises:
        ImportError: It is missing. A command of this package ends with one line instead.
    """
    if OPERATORS.exists():
        return
    message = _missing()
    if not is_command():
        raise ImportError(message, name="alr_fast")
    from alr_fast.utils.command import show

    show(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _missing() -> str:
    """The message that the library is missing: where, and how to get it."""
    problem = f"the compiled library of alr_fast is missing in {HERE}"
    other = _hidden_installation()
    if other is not None:
        return (
            f"{problem}: this source folder hides the package installed in {other}; run the "
            "command in another folder (or without PYTHONPATH), or compile the source: make build"
        )
    return (
        f"{problem}: compile it by `make build` in the source folder, or install the package by "
        f"`{sys.executable} -m pip install --no-build-isolation {HERE.parent}`"
    )


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
