"""Whether an environment contains the build that is asked for.

build_state.py check STAMP    removes the stamp of another build, so that `make` builds again
build_state.py write STAMP    after a build

Run by the environment's Python with -I: only what is installed counts.
"""

import importlib.util
import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "alr_fast"


def is_installed_here() -> bool:
    """Whether the environment imports the package of this folder, with its library or record."""
    spec = importlib.util.find_spec("alr_fast")
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent != PACKAGE:
        return False
    return any((PACKAGE / name).exists() for name in ("_ops.so", "_not_compiled.txt"))


if __name__ == "__main__":
    task, stamp = sys.argv[1], Path(sys.argv[2])
    choices = os.environ["BUILD_CHOICES"]
    if task == "write":
        stamp.write_text(choices, encoding="utf-8")
    elif not (is_installed_here() and stamp.read_text(encoding="utf-8") == choices):
        stamp.unlink()
