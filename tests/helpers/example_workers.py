"""What the ranks of the tests of examples do."""

import importlib
import sys


def run_fsdp(folder: str) -> tuple[float, float]:
    """The example of sharded parameters, in the process group of the test."""
    sys.path.insert(0, folder)
    return importlib.import_module("fsdp").main()
