"""Loads the native operators, or registers those in plain PyTorch where they are missing.

The environment variable ALR_FAST_NATIVE decides: "0" loads no native library, "1" makes a missing
one an error; otherwise plain PyTorch takes its place, with one warning in a process.
"""

import multiprocessing
import os
import sys
import warnings
from importlib import import_module
from typing import Any, NamedTuple

import torch

from alr_fast import _installed
from alr_fast._fallback.operators import add_devices, define_operators
from alr_fast._installed import CUDA_OPERATORS, OPERATORS
from alr_fast.errors import FallbackWarning, NativeLibraryError, UserError

_OPS: Any = torch.ops  # torch has no type annotations for its members
_VARIABLE = "ALR_FAST_NATIVE"


class Loaded(NamedTuple):
    """Which parts of the library this process has; None for what is loaded, else why it is not."""

    native: str | None
    cuda: str | None
    node: str | None  # the autograd node in C++


def load() -> Loaded:
    """Makes ``torch.ops.alr_fast`` complete; safe to be called again.

    Raises:
        NativeLibraryError: The library is required, but missing or cannot be loaded.
        UserError: The variable has another value.
    """
    wanted = os.environ.get(_VARIABLE, "")
    if wanted not in ("", "0", "1"):
        raise UserError(
            f"{_VARIABLE}={wanted}: must be 0 (plain PyTorch), 1 (the compiled library, or an "
            "error) or unset (the library if it can be loaded)"
        )
    is_first = not hasattr(_OPS.alr_fast, "alr_loss")
    native = f"{_VARIABLE}=0" if wanted == "0" else _why_not_loaded()
    if native is not None and wanted == "1":
        raise NativeLibraryError(
            f"{_VARIABLE}=1, but {_subject(native)}; {_installed.how_to_compile()}"
        )
    cuda = native if native is not None else _why_cuda_is_not_loaded()
    if is_first:
        if native is not None:
            define_operators()
        add_devices(has_cuda=cuda is None, on_use=_TellOnce(wanted, native, cuda))
        if native is not None and wanted == "":
            _tell(
                f"alr_fast computes losses by plain PyTorch, with the same results but more "
                f"slowly, because {_subject(native)}; {_installed.how_to_compile()}; "
                f"{_VARIABLE}=0 turns this warning off"
            )
    node = native if native is not None else _why_node_is_not_loaded()
    return Loaded(native, cuda, node)


def _subject(reason: str) -> str:
    return f"its compiled library {reason}"


def _why_not_loaded() -> str | None:
    """Loads the native operators; returns why they cannot be, None if they are."""
    missing = _installed.why_missing()
    if missing is not None:
        return missing
    try:
        _OPS.load_library(OPERATORS)
    except OSError as error:  # of another platform, C++ runtime or version of torch
        return f"cannot be loaded ({_why(error)})"
    return None


def _why_cuda_is_not_loaded() -> str | None:
    """Loads the CUDA kernels, which are in a library of their own; returns why they cannot be."""
    if torch.version.cuda is None:
        return "torch has no CUDA" if torch.version.hip is None else "they are not for ROCm"
    facts = _installed.build_facts()
    if not CUDA_OPERATORS.exists():
        reason = None if facts is None else facts.get("cuda_reason")  # not in old builds
        return f"they were not built ({reason})" if reason else "they were not built"
    if facts is None:
        return f"alr_fast._C, which knows their CUDA version, is not built for {sys.executable}"
    built = facts["cuda_version"]
    if built is None:
        return f"{CUDA_OPERATORS} does not belong to this build"
    if built.partition(".")[0] != torch.version.cuda.partition(".")[0]:
        return f"they are of CUDA {built}, torch {torch.__version__} of CUDA {torch.version.cuda}"
    try:
        _OPS.load_library(CUDA_OPERATORS)
    except OSError as error:
        return f"they cannot be loaded ({_why(error)})"
    return None


def _why_node_is_not_loaded() -> str | None:
    """Loads the autograd node, which is for one version of torch; returns why it cannot be."""
    if not _installed.has_node():
        return "it was not built"
    facts = _installed.build_facts()
    built_with = None if facts is None else facts["torch_built_with"]
    if built_with != torch.__version__:  # may load and then crash
        return f"it was built for torch {built_with}"
    try:
        import_module(_installed.NODE)
    except ImportError as error:
        return f"it cannot be loaded ({_installed.one_line(error)})"
    return None


def _why(error: OSError) -> str:
    """What the system says, where torch says only which library it is."""
    return _installed.one_line(error.__cause__ or error)


class _TellOnce:
    """Says at the first loss on another device than the CPU that it has no native kernels."""

    def __init__(self, wanted: str, native: str | None, cuda: str | None) -> None:
        self._wanted = wanted
        self._reason = None if native is not None else cuda  # without the library it has been said

    def __call__(self) -> None:
        reason, self._reason = self._reason, None
        if reason is None or self._wanted == "0":
            return
        text = f"alr_fast has no kernels for this device: {reason}"
        remedy = _how_to_get_cuda()
        if self._wanted == "1":
            self._reason = reason
            raise NativeLibraryError(f"{_VARIABLE}=1, but {text}{remedy}")
        _tell(
            f"{text}; its losses are computed by plain PyTorch, with the same results but more "
            f"slowly{remedy}; {_VARIABLE}=0 turns this warning off, and the CPU kernels"
        )


def _how_to_get_cuda() -> str:
    if torch.version.cuda is None:
        return ""
    return (
        f"; with the CUDA toolkit {torch.version.cuda} installed, "
        f"{_installed.how_to_compile(cuda=True)}"
    )


def _tell(message: str) -> None:
    """Warns, in one of the processes that work together."""
    # A spawned process has no parent yet while it imports the main module.
    is_starting = getattr(multiprocessing.current_process(), "_inheriting", False)
    is_child = multiprocessing.parent_process() is not None or is_starting
    if is_child or os.environ.get("RANK", "0") != "0":
        return
    if _installed.STARTED_AS_COMMAND:
        from alr_fast.utils.command import show

        show(f"warning: {message}", file=sys.stderr)
    else:
        warnings.warn(message, FallbackWarning, stacklevel=2)


LOADED = load()
HAS_CUDA = LOADED.cuda is None  # native kernels
