"""Fixtures of the tests of the operations."""

import pytest

from helpers.problems import threads


@pytest.fixture(autouse=True)
def one_thread():
    """The reference runs on one thread: its tensors are small, and waiting for others takes long.

    The fused operations get two where they would use them, see `run_fused`.
    """
    with threads(1):
        yield
