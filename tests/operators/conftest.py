"""Fixtures for the tests of the operations."""

import pytest

from alr_fast import _operators
from alr_fast._loading import LOADED
from alr_fast._node import LossOperator
from helpers.problems import threads


@pytest.fixture(autouse=True)
def one_thread():
    """Runs the reference on one thread: its tensors are small, and synchronising takes long.

    The fused operations get two threads if they would use them, see `run_fused`.
    """
    with threads(1):
        yield


@pytest.fixture(params=["Python", *(["C++"] if LOADED.node is None else [])])
def autograd_node(request, monkeypatch):
    """Runs a test once with each of the two autograd nodes that are there."""
    if request.param == "Python":
        for operator in vars(_operators).values():
            if isinstance(operator, LossOperator):
                monkeypatch.setattr(operator, "record", operator.record_in_python)
