"""Special rows: ignored, without a softmax, masked, out of range, sharing an index."""

import pytest
import torch

from alr_fast import ALRLoss, LabelBank
from alr_fast.functional import alr_loss
from helpers.compare import assert_accurate, check, same_bits
from helpers.problems import OPERATIONS, make_problem, problem_for, run_eager, run_exact, run_fused

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
INF, NAN = float("inf"), float("nan")

# Short rows are processed several at a time, longer ones singly.
SIZES = [pytest.param(10, id="several rows at a time"), pytest.param(515, id="a row at a time")]


def bank_with(problem):
    """A bank of the problem's rows, and a loss that updates it."""
    bank = LabelBank(problem.table.clone(), torch.zeros(len(problem.table), dtype=torch.int64))
    return bank, ALRLoss(bank, warmup_epochs=0)


# Ignored rows.


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("classes", SIZES)
def test_ignored_rows_have_no_effect(device, classes, operation):
    for logits in (F32, F16):
        problem = problem_for(operation, 21, classes, device=device, logits=logits)
        index = problem.index.clone()
        index[[0, 7, 8, 20]] = torch.tensor([-1, -100, -(2**40), -2], device=device)
        ignored = index < 0
        broken = problem.logits.clone()
        broken[0], broken[7, 3], broken[8, 1] = NAN, INF, NAN
        for z in (problem.logits, broken):
            for reduction in ("none", "mean", "sum"):
                fused = check(operation, problem.with_(logits=z, index=index), reduction=reduction)
                assert torch.equal(fused.grad[ignored], torch.zeros_like(fused.grad[ignored]))
                if reduction == "none":
                    assert fused.loss[ignored].tolist() == [0] * 4


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_batch_of_ignored_rows_has_loss_zero(device, operation):
    problem = problem_for(operation, 6, 10, device=device)
    problem = problem.with_(index=torch.full_like(problem.index, -1))
    problem.logits[2] = NAN
    for reduction in ("mean", "sum", "none"):
        fused = run_fused(operation, problem, reduction=reduction)
        assert fused.loss.sum().item() == 0
        assert torch.equal(fused.grad, torch.zeros_like(fused.grad))
        if problem.table is not None:
            assert same_bits(fused.table, problem.table)


# Rows without a softmax.


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("classes", SIZES)
@pytest.mark.parametrize("logits", [F32, F16, BF16], ids=str)
def test_rows_without_a_softmax_have_nan_and_leave_the_bank(device, logits, classes, operation):
    problem = problem_for(operation, 12, classes, device=device, logits=logits)
    good = run_fused(operation, problem, reduction="sum")
    rows = run_fused(operation, problem, reduction="none")
    z = problem.logits.clone()
    z[1, 0] = NAN  # in the first vector
    z[3, classes - 1] = NAN  # in the tail
    z[4, classes // 2] = INF
    z[6] = -INF
    z[8] = INF
    z[9], z[9, 5] = -INF, NAN
    bad = z.isnan().any(-1) | (z == INF).any(-1) | (z == -INF).all(-1)
    assert bad.sum() == 6
    broken = problem.with_(logits=z)
    fused = run_fused(operation, broken, reduction="none")
    assert fused.loss[bad].isnan().all()
    assert fused.grad[bad].isnan().all()
    assert same_bits(fused.loss[~bad], rows.loss[~bad])
    fused = run_fused(operation, broken, reduction="sum")
    assert fused.loss.isnan()
    assert fused.grad[bad].isnan().all()
    assert same_bits(fused.grad[~bad], good.grad[~bad])
    assert run_fused(operation, broken, reduction="mean").loss.isnan()
    if problem.table is not None:
        expected = good.table.clone()
        expected[problem.index[bad]] = problem.table[problem.index[bad]]
        assert same_bits(fused.table, expected)


def test_the_status_counts_rows_without_a_softmax_or_a_finite_loss(device):
    problem = make_problem(8, 10, device=device)
    problem.index[7] = -1
    z = problem.logits
    z[0, 3], z[1, 2], z[2] = NAN, INF, -INF
    z[3, 4] = -INF  # the bank row is not 0 there: the loss is infinite
    z[7] = NAN  # ignored
    bank, criterion = bank_with(problem)
    labels = torch.zeros(8, dtype=torch.int64, device=device)
    for _ in range(2):
        criterion(z, labels, problem.index)
    assert bank.check() == 8
    assert bank.check() == 0
    warm_up = ALRLoss(bank, warmup_epochs=1)
    warm_up.set_epoch(0)
    warm_up(z, labels.masked_fill(problem.index < 0, -1), problem.index)
    assert bank.check() == 3  # label 0 has a finite logit where class 4 is masked


# Masked classes.


@pytest.mark.parametrize("classes", SIZES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_masked_class_without_target_is_legal(device, classes, operation):
    for logits in (F32, F16, BF16):
        problem = problem_for(operation, 9, classes, device=device, logits=logits, spread=3)
        masked = torch.zeros_like(problem.logits, dtype=torch.bool)
        masked[:, 2] = True
        masked[2:5, classes // 2 :] = True  # an entire tail
        masked[6, 1:] = True  # one class left
        problem = problem.with_(logits=problem.logits.masked_fill(masked, -INF))
        if problem.table is None:
            problem = problem.with_(index=torch.zeros_like(problem.index))
        else:
            table = problem.table.clone()
            table[problem.index] = table[problem.index].masked_fill(masked, 0)
            problem = problem.with_(table=table)
        for entropy_weight in (0.0, 0.3):
            fused = check(operation, problem, entropy_weight=entropy_weight)
            assert fused.loss.isfinite()
            assert torch.equal(fused.grad[masked], torch.zeros_like(fused.grad[masked]))


@pytest.mark.parametrize("classes", SIZES)
def test_a_masked_class_with_a_target_makes_the_loss_infinite(device, classes):
    problem = make_problem(9, classes, device=device)
    problem.logits[4, classes - 2] = -INF
    problem.logits[5, 1] = -INF
    for momentum in (0.5, 1.0):
        # As in the reference, the gradient follows the formula and the bank is updated.
        fused = check("alr_loss", problem, reduction="none", momentum=momentum)
        assert fused.loss[4] == INF
        assert fused.loss[5] == INF
        assert fused.loss.isfinite().sum() == 7
        assert fused.grad.isfinite().all()
        assert fused.grad[4, classes - 2] != 0
    # With momentum 0 the bank has no effect.
    assert check("alr_loss", problem, reduction="none", momentum=0.0).loss.isfinite().all()


# Indices out of range.


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_index_out_of_range_raises_before_anything_is_written(device, operation):
    problem = problem_for(operation, 40, 10, device=device)
    size = 10 if problem.table is None else len(problem.table)
    for value in (size, 2**31 - 1, 2**40):
        index = problem.index.clone()
        index[39] = value
        wrong = problem.with_(index=index)
        if device.type == "cpu":
            name = "labels" if problem.table is None else "index"
            with pytest.raises(IndexError, match=rf"{name}\[39\] is {value}"):
                run_fused(operation, wrong)
            continue
        fused = run_fused(operation, wrong, reduction="sum")
        assert fused.loss.isnan()
        assert fused.grad[39].isnan().all()
        assert fused.grad[:39].isfinite().all()
        if problem.table is not None:
            missed = problem.index[39]
            assert same_bits(fused.table[missed], problem.table[missed])


def test_an_index_out_of_range_changes_neither_bank_nor_counters(device):
    problem = make_problem(40, 10, device=device, bank=BF16)
    bank = LabelBank(
        problem.table.clone(), torch.zeros(len(problem.table), dtype=torch.int64), rounding_seed=1
    )
    criterion = ALRLoss(bank, warmup_epochs=0)
    labels = torch.zeros(40, dtype=torch.int64, device=device)
    index = problem.index.clone()
    index[17] = len(bank)
    if device.type == "cpu":
        with pytest.raises(IndexError, match="training set"):
            criterion(problem.logits, labels, index)
        assert same_bits(bank.rows, problem.table)
        assert bank.rounding_state.tolist() == [1, 0]
        assert bank.check() == 0
    else:
        assert criterion(problem.logits, labels, index).isnan()
        untouched = problem.index[17]
        assert same_bits(bank.rows[untouched], problem.table[untouched])
        with pytest.raises(IndexError, match="1 batch rows"):
            bank.check()


# The same index more than once.


@pytest.mark.parametrize("classes", SIZES)
@pytest.mark.parametrize("logits", [F32, F16, F64], ids=str)
def test_rows_with_one_index_read_the_old_row_and_the_last_is_kept(device, classes, logits):
    if logits == F64 and device.type == "cuda":
        pytest.skip("float64 logits are taken on the CPU only")
    problem = make_problem(40, classes, device=device, logits=logits, spread=3)
    a, b, c, d = problem.index[:4].tolist()
    index = problem.index.clone()
    index[[0, 5]] = a  # twice, within one block of rows
    index[[1, 9, 38]] = b  # three times, in several blocks
    index[[2, 3]] = c  # neighbours
    index[[10, 20, 30]] = d  # the last one is not finite
    index[[11, 21]] = -1
    z = problem.logits.clone()
    z[30, 1] = NAN
    twice = problem.with_(logits=z, index=index)
    for momentum in (0.0, 0.7):
        fused = check("alr_loss", twice, momentum=momentum, reduction="none")
        # The same without the reference: each row by itself, from the old bank.
        for row in (0, 5, 1, 9, 38, 2, 3, 10, 20):
            alone = run_fused(
                "alr_loss",
                twice.with_(logits=z[row : row + 1], index=index[row : row + 1]),
                momentum=momentum,
                reduction="none",
            )
            assert same_bits(fused.loss[row], alone.loss[0])
            assert same_bits(fused.grad[row], alone.grad[0])
            if row in (5, 38, 3, 20):
                assert same_bits(fused.table[index[row]], alone.table[index[row]])
        check("alr_loss", twice, momentum=momentum, return_stats=True)


def test_equal_indices_in_a_bank_far_larger_than_the_batch(device):
    # Without a bit for every row of the bank, indices are hashed; these are likely to collide.
    problem = make_problem(64, 10, rows=100_000, device=device)
    index = torch.arange(64, device=device) * 1024
    index[[7, 60]] = index[3].clone()
    index[63] = index[62].clone()
    check("alr_loss", problem.with_(index=index), momentum=0.4, return_stats=True)


def test_a_whole_batch_of_one_index(device):
    for classes in (10, 300):
        problem = make_problem(300, classes, device=device)
        problem = problem.with_(index=torch.full_like(problem.index, 2))
        fused = check("alr_loss", problem, momentum=0.2)
        last = make_problem(300, classes, device=device)
        last = last.with_(logits=last.logits[-1:], index=problem.index[-1:])
        alone = run_fused("alr_loss", last, momentum=0.2)
        assert same_bits(fused.table[2], alone.table[2])


def test_only_broken_rows_of_one_index_leave_its_row(device):
    problem = make_problem(6, 10, device=device)
    problem.index[[1, 4]] = problem.index[0].clone()
    problem.logits[[0, 1, 4], 3] = NAN
    fused = run_fused("alr_loss", problem, reduction="none")
    assert fused.loss.isnan().tolist() == [True, True, False, False, True, False]
    shared = problem.index[0]
    assert same_bits(fused.table[shared], problem.table[shared])


# Accuracy under an offset of all logits.


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_an_offset_of_the_logits_costs_no_accuracy(device, offset):
    problem = make_problem(16, 1000, device=device)
    problem = problem.with_(logits=problem.logits + offset)
    # The gradient is a difference. The bound holds for its terms at this weight.
    options = {"reduction": "none", "entropy_weight": 0.1}
    fused = run_fused("alr_loss", problem, **options)
    exact = run_exact("alr_loss", problem, **options)
    # Not compared with eager, which loses four digits here.
    assert_accurate("loss", fused.loss, exact.loss, exact.loss)
    torch.testing.assert_close(fused.grad.double(), exact.grad, rtol=2e-6, atol=1e-9)
    touched = problem.index
    torch.testing.assert_close(
        fused.table[touched].double(), exact.table[touched], rtol=2e-6, atol=0
    )
    eager = run_eager("alr_loss", problem, **options)
    assert (eager.loss - exact.loss).abs().max() > 20 * (fused.loss - exact.loss).abs().max()


def test_the_logits_are_not_written(device):
    problem = make_problem(9, 37, device=device)
    before = problem.logits.clone()
    leaf = problem.logits.detach().requires_grad_()
    loss = alr_loss(leaf, problem.table, problem.index)
    loss.backward()
    assert same_bits(problem.logits, before)
