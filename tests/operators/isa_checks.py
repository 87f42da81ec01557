"""The operations, with their 16-bit conversions, in the instruction set of this process.

`test_isa.py` runs this file in a process for each set: the choice is made once in a process.
"""

import os

import pytest
import torch

from alr_fast.functional import alr_loss, alr_loss_and_grad, soft_target_cross_entropy
from helpers.compare import check
from helpers.problems import OPERATIONS, make_problem, problem_for, run_exact, run_fused

_C = pytest.importorskip("alr_fast._C")
pytestmark = pytest.mark.native  # the instruction sets of the compiled library

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
BUILD = _C.build_info()

# For vectors of 4, 8 and 16: below one vector, whole vectors, every tail, past one block of sums.
CLASSES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 31, 33, 70, 100, 129, 515, 1029]


def test_the_wanted_instruction_set_is_in_use():
    assert BUILD["cpu_isa_in_use"] == os.environ["ALR_FAST_CPU_ISA"]


@pytest.mark.parametrize("logits", [F32, F16, BF16, F64], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_tail(operation, logits):
    for n, classes in enumerate(CLASSES):
        bank = (F32, F16, BF16)[n % 3]
        problem = problem_for(operation, 11, classes, logits=logits, bank=bank, spread=3)
        check(operation, problem)


@pytest.mark.parametrize("bank", [F32, F16, BF16], ids=str)
def test_stats_duplicates_masks_and_ignored_rows(bank):
    for classes in (10, 37, 515):
        problem = make_problem(30, classes, bank=bank, spread=3)
        index = problem.index.clone()
        index[[3, 9, 20]] = index[1].clone()
        index[4] = -1
        z = problem.logits.clone()
        z[2, classes // 2 :] = -torch.inf
        z[5, classes - 1] = torch.nan
        table = problem.table.clone()
        table[index[2], classes // 2 :] = 0
        special = problem.with_(logits=z, index=index, table=table)
        check("alr_loss", special, return_stats=True, momentum=0.3)


def every_pattern(dtype):
    """All 65,536 numbers of a 16-bit type, NaNs and infinities among them."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def assert_same_values(got, want):
    assert got.dtype == want.dtype
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[~got.isnan()], want[~want.isnan()])


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("classes", [32, 11], ids=["whole vectors", "tails"])
def test_every_16_bit_number_is_stored_unchanged(dtype, classes):
    patterns = every_pattern(dtype)
    bank = patterns[: 65536 // classes * classes].view(-1, classes).clone()
    before = bank.clone()
    rows = len(bank)
    loss = alr_loss(torch.zeros(rows, classes), bank, torch.arange(rows), momentum=1.0)
    assert not loss.isfinite()  # of infinite and NaN targets
    assert_same_values(bank, before)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("classes", [32, 11], ids=["whole vectors", "tails"])
def test_every_16_bit_number_times_a_factor_is_rounded_to_nearest(dtype, classes):
    patterns = every_pattern(dtype)
    rows = patterns[: 65536 // classes * classes].view(-1, classes)
    # 0.5 makes ties between subnormal numbers, 1.5 and 1 + 2^-n ties between normal numbers; the
    # last factors overflow and underflow.
    for factor in (1.0, 0.5, 1.5, 1 + 2**-8, 1 + 2**-11, -1 / 3, 2**-14, 1e-6, 70000.0, 1e30):
        scale = torch.tensor(factor)
        want = (rows.float() * scale).to(dtype)
        assert_same_values(torch.ops.alr_fast.scale_grad(rows, None, scale, None), want)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("classes", [2, 17], ids=["a tail", "a vector and a tail"])
def test_every_16_bit_number_as_a_logit(dtype, classes):
    patterns = every_pattern(dtype)
    logits = torch.zeros(65536, classes, dtype=dtype)
    logits[:, 0] = patterns
    logits[:, -1] = 0.5
    target = torch.zeros(1, classes)
    target[0, -1] = 1
    index = torch.zeros(65536, dtype=torch.int64)
    loss = soft_target_cross_entropy(logits, target, index, reduction="none")
    wrong = patterns.isnan() | (patterns == torch.inf)
    assert torch.equal(loss.isnan(), wrong)  # -inf is a masked class
    want = -logits[~wrong].double().log_softmax(-1)[:, -1]
    torch.testing.assert_close(loss[~wrong].double(), want, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_a_16_bit_bank_holds_the_rounded_float32_bank(dtype):
    for classes in (64, 61):
        g = torch.Generator().manual_seed(0)
        logits = 100 * torch.rand(512, classes, generator=g) - 100  # p from 1 to subnormal numbers
        index = torch.arange(512)
        wide, narrow = (torch.zeros(512, classes, dtype=t) for t in (F32, dtype))
        for bank in (wide, narrow):
            alr_loss_and_grad(logits, bank, index, momentum=0.25)
        assert_same_values(narrow, wide.to(dtype))
        assert (wide < torch.finfo(dtype).tiny).any()


def test_exponentials_over_their_whole_range():
    d = torch.cat([-torch.linspace(0, 120, 20001), torch.tensor([-0.0, -1e-30, -3e38])])
    logits = torch.stack([torch.zeros_like(d), d], 1)
    bank = torch.zeros(len(d), 2)
    alr_loss(logits, bank, torch.arange(len(d)), momentum=0.0)
    want = logits.double().softmax(-1)
    # Below exp(-87.7) float32 has no normal numbers, and the result may be 0.
    torch.testing.assert_close(bank.double(), want, rtol=5e-7, atol=1.2e-38)


@pytest.mark.parametrize("classes", [2, 37])
def test_a_difference_near_the_range_times_an_entropy_weight(classes):
    """Its exponential is 0, and so is its gradient: nothing overflows on the way."""
    problem = make_problem(3, classes)
    z, table = problem.logits.clone(), problem.table.clone()
    z[:, -1], table[:, -1] = -3e38, 0
    special = problem.with_(logits=z, table=table)
    options = dict(entropy_weight=4.0, reduction="sum")
    fused, exact = (run("alr_loss", special, **options) for run in (run_fused, run_exact))
    torch.testing.assert_close(fused.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


def test_rows_of_a_batch_that_is_divided():
    problem = make_problem(1500, 33, spread=3)
    fused = check("alr_loss", problem, reduction="none")
    exact = run_exact("alr_loss", problem, reduction="none")
    assert (fused.loss - exact.loss).abs().max() < 1e-4
