"""Fixtures of the tests of benchmarks."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    """One thread: the commands change the number, which would slow down the tests after them."""
