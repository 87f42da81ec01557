"""The check of the variants of the kernel benchmarks, and the Triton baseline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kernels.problem import TINY_CASES, Problem

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("variant", ["fused", "eager", "plain", "fused_forward"])
def test_a_wrong_variant_is_not_timed(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    made = Problem(TINY_CASES[0], bank_rows=64)
    made.check([variant])
    right = made._function
    monkeypatch.setattr(
        made, "_function", lambda name: lambda *a, **k: right(name)(*a, **k) * 1.001
    )
    with pytest.raises(AssertionError, match=f"{variant}: loss is off"):
        made.check([variant])


def test_a_variant_that_writes_elsewhere_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Problem(TINY_CASES[0], bank_rows=64)
    right = made._function

    def wrong(logits, bank, index, **options):
        loss = right("fused")(logits, bank, index, **options)
        bank[(set(range(64)) - set(index.tolist())).pop()] = 0
        return loss

    monkeypatch.setattr(made, "_function", lambda name: wrong)
    with pytest.raises(AssertionError, match="rows of the bank outside"):
        made.check(["fused"])


INTERPRETED = """
import torch
from alr_fast import reference
from benchmarks.kernels import triton_baseline

torch.manual_seed(0)
torch.set_num_threads(1)
options = dict(momentum=0.7, entropy_weight=0.3, unique_index=True)


def run(function, z, bank, index, **more):
    leaf = z.detach().requires_grad_()
    loss = function(leaf, bank, index, **options, **more)
    (grad,) = torch.autograd.grad(1.5 * loss, leaf)
    return loss.detach(), grad, bank


F32, BF16 = torch.float32, torch.bfloat16
for logits, stored in ((F32, F32), (BF16, F32), (BF16, BF16)):
    # One class; short; a power of two; a block with a tail; a loop with and without a tail; a loop
    # with two chunks of a row in the second pass and in the bank kernel.
    for classes, limit in ((1, 9), (10, 64), (16, 16), (1000, 2048), (130, 64), (128, 64),
                           (9000, 4096)):
        z = (3 * torch.randn(5, classes)).to(logits)
        bank = torch.rand(11, classes).to(stored)
        index = torch.randperm(11)[:5]
        expected = run(reference.alr_loss, z.double(), bank.double(), index)
        found = run(triton_baseline.alr_loss, z, bank.clone(), index, row_limit=limit)
        for name, a, b in zip(("loss", "gradient", "bank"), found, expected, strict=True):
            bound = 2e-2 if a.dtype == BF16 else 5e-6
            error = (a.double() - b).norm()
            assert error <= bound * b.norm() + 1e-7, (logits, stored, classes, name, error)
        rest = sorted(set(range(11)) - set(index.tolist()))
        assert torch.equal(found[2][rest], bank[rest])

first, second = torch.randn(5000), torch.randn(5000).bfloat16()
copies = torch.zeros(5000), torch.zeros(5000, dtype=BF16)
triton_baseline.copy(first, second, *copies, block=1024)
assert torch.equal(copies[0], first) and torch.equal(copies[1], second)
try:
    triton_baseline.alr_loss(z, bank, index, unique_index=False)
except ValueError as error:
    print(error)
"""


def test_the_triton_baseline_is_the_reference() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "needs distinct indices" in done.stdout
