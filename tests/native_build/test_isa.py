"""Every compiled instruction set of the CPU, each in a process of its own, and their choice."""

import pytest

from helpers.problems import make_problem, run_fused
from helpers.source_tree import python

_C = pytest.importorskip("alr_fast._C")
pytestmark = pytest.mark.native  # the instruction sets of the compiled library

BUILD = _C.build_info()

LOSS = """
import torch
from alr_fast.functional import alr_loss
alr_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.arange(2))
"""


@pytest.mark.parametrize("isa", BUILD["cpu_isas_compiled"])
def test_instruction_set(isa):
    if isa not in BUILD["cpu_isas_supported"]:
        pytest.skip(f"this processor has no {isa}")
    done = python("-m", "pytest", "-q", "tests/operators/isa_checks.py", ALR_FAST_CPU_ISA=isa)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_environment_is_not_read_in_a_call(monkeypatch):
    """Another thread may be changing it, which is undefined behaviour for a reader."""
    problem = make_problem(3, 5)
    run_fused("alr_loss", problem)
    monkeypatch.setenv("ALR_FAST_CPU_ISA", "sse9")
    run_fused("alr_loss", problem)
    assert _C.build_info() == BUILD


@pytest.mark.parametrize("wrong", ["sse9", "AVX2", "baseline "])
def test_an_unknown_name_is_refused_with_a_list_of_the_supported_ones(wrong):
    for code in (LOSS, "from alr_fast import _C; _C.build_info()"):
        done = python("-c", code, ALR_FAST_CPU_ISA=wrong)
        assert done.returncode != 0
        supported = ", ".join(BUILD["cpu_isas_supported"])
        assert f"RuntimeError: ALR_FAST_CPU_ISA={wrong}: " in done.stderr
        assert done.stderr.rstrip().endswith(supported)


def test_an_empty_name_is_the_best_instruction_set():
    done = python("-c", LOSS, ALR_FAST_CPU_ISA="")
    assert done.returncode == 0, done.stderr
