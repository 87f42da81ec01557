"""Fixtures of more than one folder of tests."""

import pytest
import torch

from alr_fast._operators import HAS_CUDA


def _devices():
    yield pytest.param(torch.device("cpu"), id="cpu")
    if torch.cuda.is_available() and HAS_CUDA:
        yield pytest.param(torch.device("cuda", 0), id="cuda")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """What the tests cache stays out of the user's cache, in child processes, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALR_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=list(_devices()))
def device(request):
    """Where a test runs: the CPU, and a GPU where there is one that the build has kernels for."""
    return request.param
