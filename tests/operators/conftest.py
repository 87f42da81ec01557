"""Fixtures for the tests of the operations."""

import pytest

from helpers.problems import threads


@pytest.fixture(autouse=True)
def one_thread():
    """Runs the reference on one thread: its tensors are small, and synchronising takes long.

    The fused operations get two threads if they would use them, see `run_fused`.
    """
    with threads(1):
        yield
