"""Prints versions, build and machine, for a bug report.

alr-fast info
"""

import sys
from collections.abc import Sequence

from alr_fast.utils.command import CommandParser, exit_status, show


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a wrong input."""

    def action() -> None:
        parser().parse_args(argv)
        for name, fact in facts().items():
            show(f"{name + ':':<18}{fact}")

    return exit_status(action)


def parser() -> CommandParser:
    """The arguments of the command, of which there are none."""
    return CommandParser(module="alr_fast.info", description=__doc__.splitlines()[0])


def facts() -> dict[str, str]:
    """What a bug report should contain, by name."""
    import platform

    import torch

    from alr_fast import __file__, __version__
    from alr_fast._installed import build_facts
    from alr_fast._loading import HAS_CUDA, LOADED
    from alr_fast.utils.machine import processor
    from alr_fast.utils.requirements import installed_packages

    build = build_facts() or {}
    built_by = f", built by {build['compiler']}, torch {build['torch_built_with']}" if build else ""
    cuda, reason = build.get("cuda_version"), build.get("cuda_reason")
    kernels = f"CUDA {cuda}, {build['cuda_architectures']}" if cuda else "not built"
    in_use = build.get("cpu_isa_in_use") if LOADED.native is None else None
    isas = [
        f"{isa} (in use)" if isa == in_use else isa for isa in build.get("cpu_isas_compiled", [])
    ]
    native = "the compiled library" if HAS_CUDA else "the compiled library on the CPU"
    return {
        "alr_fast": f"{__version__}{built_by}",
        "installed in": str(__file__).removesuffix("/__init__.py"),
        "compiled library": "loaded" if LOADED.native is None else _missing(LOADED.native),
        "losses by": native if LOADED.native is None else "plain PyTorch, which is slower",
        "CUDA kernels": f"{kernels} ({reason})" if reason else kernels,
        "CUDA loaded": "yes" if HAS_CUDA else f"no ({LOADED.cuda})",
        "autograd node": "C++" if LOADED.node is None else f"Python ({LOADED.node})",
        "CPU kernels": ", ".join(isas) or "not built",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda}), {torch.get_num_threads()} "
        "threads",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "Python": f"{platform.python_version()} on {platform.platform()}, {sys.executable}",
        "processor": processor(),
        "packages": installed_packages(),
    }


def _missing(reason: str) -> str:
    from alr_fast._installed import OPERATORS

    return f"{'not loaded' if OPERATORS.exists() else 'not built'} ({reason})"


if __name__ == "__main__":
    sys.exit(main())
