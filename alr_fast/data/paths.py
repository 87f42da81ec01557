"""Paths as people write them."""

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ``~`` and ``$VARIABLES`` replaced; unknown ones stay as they are."""
    return Path(os.path.expanduser(os.path.expandvars(path)))
