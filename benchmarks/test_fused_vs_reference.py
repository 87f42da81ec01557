"""`make bench`: the cases under pytest-benchmark, grouped by shape."""

import pytest
import torch

from benchmarks.harness.environment import environment
from benchmarks.kernels.problem import CASES, Problem


@pytest.fixture(scope="module", params=CASES, ids=str)
def problem(request: pytest.FixtureRequest) -> Problem:
    torch.set_num_threads(2)
    made = Problem(request.param)
    made.check()
    return made


@pytest.mark.parametrize("variant", ["fused", "fused_and_grad", "eager", "compiled", "copy"])
def test_forward_backward(benchmark, problem: Problem, variant: str) -> None:
    benchmark.group = str(problem.case)
    benchmark.extra_info.update(environment(problem.device))
    benchmark.pedantic(problem.step, args=(variant,), rounds=50, warmup_rounds=5)
