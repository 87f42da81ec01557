"""Copies of the source, in which builds and `make` are tried."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Of the user or of the `make` that may run the tests; they would change a build.
_OF_OTHERS = re.compile(
    "^(ALR_FAST_(NATIVE|CUDA|TESTS)|CXX|CXXFLAGS|CFLAGS|LDFLAGS|CUDA.*|TORCH_CUDA_ARCH_LIST|ARGS|"
    "WORKERS|PIP_.*|.*MAKE.*)$"
)


def environment(**changes: str) -> dict[str, str]:
    """The environment without what changes a build, with these changes."""
    kept = {name: value for name, value in os.environ.items() if not _OF_OTHERS.match(name)}
    return {**kept, **changes}


def python(*arguments: str | Path, cwd: Path = ROOT, **changes: str):
    """Runs this Python in the source tree; returns the finished process."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
    )


def copy_source(folder: Path) -> Path:
    """Copies the files that a build needs, as git knows them; returns the folder."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    parts = ("alr_fast/", "cmake/", "csrc/", "CMakeLists.txt", "LICENSE", "README.md")
    build = ("MANIFEST.in", "Makefile", "pyproject.toml", "scripts/", "setup.py")
    for name in listed.split("\0"):
        if name.startswith((*parts, *build)) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
            (folder / name).chmod((ROOT / name).stat().st_mode)
    return folder
