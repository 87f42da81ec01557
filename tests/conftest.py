"""Fixtures of more than one folder of tests."""

import pytest
import torch

from alr_fast._operators import HAS_CUDA


def _devices():
    yield pytest.param(torch.device("cpu"), id="cpu")
    if torch.cuda.is_available() and HAS_CUDA:
        yield pytest.param(torch.device("cuda", 0), id="cuda")


@pytest.fixture(params=list(_devices()))
def device(request):
    """Where a test runs: the CPU, and a GPU where there is one that the build has kernels for."""
    return request.param
