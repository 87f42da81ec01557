"""Loss, gradient, bank and stats of every operation against the float64 reference."""

import pytest
import torch

from alr_fast.functional import alr_loss
from helpers.compare import check, same_bits
from helpers.problems import (
    OPERATIONS,
    make_problem,
    problem_for,
    run_exact,
    run_fused,
    skip_float64_on_cuda,
)

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

# Vectors on the CPU have 4, 8 or 16 elements. On CUDA an access has 4 elements, 8 with a 16-bit
# type; rows of up to 32 classes share a warp, up to 256 have one warp, up to 2048 are in the
# registers of a block, longer ones in its shared memory, from 8193 on in that of a cluster.
CLASSES = {
    1: "one class: loss and gradient of the target part are 0",
    2: "less than any vector",
    3: "less than any vector, odd",
    7: "one under an AVX2 vector",
    8: "one AVX2 vector",
    9: "tail of one after an AVX2 vector",
    10: "CIFAR-10; tail of two",
    14: "tail of six after 8; Clothing1M",
    15: "one under an AVX-512 vector",
    16: "one AVX-512 vector",
    17: "tail of one after every vector",
    31: "one under a shared warp's limit",
    33: "past a shared warp's limit",
    50: "mini-WebVision; tail of two",
    100: "CIFAR-100",
    257: "past a warp's limit; AVX2 rows no longer go several at a time",
    1000: "ImageNet",
    1001: "tail of one",
    1002: "tail of two",
    1003: "tail of three",
    1004: "tail of four, a whole baseline vector",
    1005: "tail of five",
    1006: "tail of six",
    1007: "tail of seven",
    1025: "more than one block of sums with AVX-512, odd; past 64 CUDA threads",
    2049: "past the registers of a CUDA block",
}
LARGE_CLASSES = {
    8193: "the first size with a cluster on CUDA",
    21841: "ImageNet-21k",
    32771: "exponentials on the heap, odd",
    262144: "the largest size",
}
BATCHES = {
    0: "empty: the mean is 0",
    1: "one row",
    5: "less than the rows in flight",
    257: "many blocks of rows, the last one short, two threads",
}
MOMENTA = {0.0: "target is the prediction", 0.7: "average", 1.0: "target is the old row"}
ENTROPY_WEIGHTS = {0.0: "none", 0.1: "default", 1.0: "large", -0.5: "negative: softens"}


def reasons(cases):
    return [pytest.param(value, id=f"{value}: {why}") for value, why in cases.items()]


def upstream(problem):
    """Incoming gradients of single rows, of both signs."""
    rows = torch.arange(1, len(problem.logits) + 1, device=problem.logits.device)
    return torch.where(rows % 3 == 0, -0.25, 1.0) * rows / max(1, len(rows))


@pytest.mark.parametrize("bank", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("logits", [F32, F16, BF16, F64], ids=str)
@pytest.mark.parametrize("classes", reasons(CLASSES))
def test_alr_loss_over_classes_and_dtypes(device, classes, logits, bank):
    skip_float64_on_cuda(logits, device)
    for spread in (1, 10):
        problem = make_problem(5, classes, device=device, logits=logits, bank=bank, spread=spread)
        check("alr_loss", problem, reduction="sum")


@pytest.mark.parametrize("operation", OPERATIONS[1:])
@pytest.mark.parametrize("classes", reasons(CLASSES))
def test_other_operations_over_classes(device, classes, operation):
    for spread, logits in ((1, F32), (10, F32), (1, BF16), (1, F16)):
        problem = problem_for(operation, 5, classes, device=device, logits=logits, spread=spread)
        check(operation, problem)


@pytest.mark.parametrize("classes", reasons(LARGE_CLASSES))
def test_large_rows(device, classes):
    for logits in (F32, BF16):
        check("alr_loss", make_problem(2, classes, device=device, logits=logits))
    # The reference would create a table [K, K] for label smoothing: here one row for each sample.
    problem = make_problem(2, classes, rows=2, device=device)
    smooth = torch.full((2, classes), 0.1 / classes, device=device)
    labels = torch.tensor([classes // 2, classes - 1], device=device)
    smooth[[0, 1], labels] += 0.9
    exact = run_exact("soft_target_cross_entropy", problem.with_(table=smooth, index=None))
    fused = run_fused(
        "label_smoothing_cross_entropy",
        problem.with_(table=None, index=labels),
        smoothing=0.1,
    )
    # Equal addends round the same way each time; long rows must be accurate all the same.
    bound = 4 * torch.finfo(F32).eps
    torch.testing.assert_close(fused.loss.double(), exact.loss, rtol=bound, atol=0)
    torch.testing.assert_close(fused.grad.double(), exact.grad, rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("batch", reasons(BATCHES))
def test_batches_and_reductions(device, batch, reduction, operation):
    for classes, logits in ((10, F32), (10, F16), (1003, F32), (50, BF16)):
        problem = problem_for(operation, batch, classes, device=device, logits=logits, spread=3)
        fused = check(operation, problem, reduction=reduction)
        assert fused.loss.shape == ((batch,) if reduction == "none" else ())


def test_an_empty_batch_has_loss_zero_and_changes_nothing(device):
    problem = make_problem(0, 10, device=device)
    for reduction in ("mean", "sum"):
        fused = run_fused("alr_loss", problem, reduction=reduction)
        assert fused.loss.item() == 0
        assert fused.grad.shape == (0, 10)
        assert same_bits(fused.table, problem.table)


@pytest.mark.parametrize("entropy_weight", reasons(ENTROPY_WEIGHTS))
@pytest.mark.parametrize("momentum", reasons(MOMENTA))
@pytest.mark.parametrize("logits", [F32, F16, BF16, F64], ids=str)
def test_momentum_entropy_weight_and_update(device, logits, momentum, entropy_weight):
    skip_float64_on_cuda(logits, device)
    for classes in (10, 101):
        for update in (True, False):
            problem = make_problem(33, classes, device=device, logits=logits, spread=3)
            options = dict(momentum=momentum, entropy_weight=entropy_weight, update=update)
            fused = check("alr_loss", problem, **options)
            if not update:
                assert same_bits(fused.table, problem.table)
            check("alr_loss_and_grad", problem, **options)


@pytest.mark.parametrize(
    "operation", ["soft_target_cross_entropy", "label_smoothing_cross_entropy"]
)
@pytest.mark.parametrize("entropy_weight", reasons(ENTROPY_WEIGHTS))
def test_entropy_weight_of_the_fixed_targets(device, entropy_weight, operation):
    for logits in (F32, F16, BF16):
        problem = problem_for(operation, 33, 17, device=device, logits=logits, spread=3)
        check(operation, problem, entropy_weight=entropy_weight)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("logits", [F32, F16, BF16, F64], ids=str)
def test_row_weight_and_incoming_gradient(device, logits, operation):
    skip_float64_on_cuda(logits, device)
    problem = problem_for(operation, 37, 19, device=device, logits=logits)
    weight = torch.linspace(0, 2, 37, device=device)  # the first row has weight 0
    for reduction in ("none", "mean", "sum"):
        check(operation, problem, row_weight=weight, reduction=reduction)
        check(operation, problem, row_weight=weight.to(BF16).double(), reduction=reduction)
    if operation != "alr_loss_and_grad":
        check(operation, problem, reduction="none", grad_output=upstream(problem))
        check(
            operation,
            problem,
            reduction="none",
            grad_output=upstream(problem),
            row_weight=weight[::2].repeat_interleave(2)[:37],
        )
        for reduction in ("mean", "sum"):
            factor = torch.tensor(0.37, device=device)
            check(operation, problem, reduction=reduction, grad_output=factor)


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_index_types_and_strides(device, operation, index):
    problem = problem_for(operation, 29, 12, device=device, index=index)
    check(operation, problem)
    wide = torch.full((29, 3), 2**31 - 1, dtype=index, device=device)
    wide[:, 1] = problem.index
    check(operation, problem.with_(index=wide[:, 1]))
    constant = problem.index[:1].expand(29)
    check(operation, problem.with_(index=constant))


@pytest.mark.parametrize("logits", [F32, F16, BF16, F64], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_logits_strides_and_offsets(device, operation, logits):
    skip_float64_on_cuda(logits, device)
    for classes in (3, 16, 37):
        problem = problem_for(operation, 21, classes, device=device, logits=logits, spread=3)
        z = problem.logits
        wide = z.new_full((21, classes + 5), torch.nan)  # NaN for reads with a wrong stride
        wide[:, :classes] = z
        wide_tail = z.new_full((22, classes + 3), torch.nan)
        wide_tail[1:, 3:] = z
        views = {
            "row stride": wide[:, :classes],
            "odd offset and row stride": wide_tail[1:, 3:],
            "every other row": torch.stack([z, z * torch.nan], 1).flatten(0, 1)[::2],
            "expanded rows": z[:1].expand(21, classes),
        }
        for view in views.values():
            assert not view.is_contiguous()
            check(operation, problem.with_(logits=view))


def test_one_column_of_a_wider_tensor_is_one_class(device):
    wide = torch.full((9, 4), torch.nan, device=device)
    wide[:, 2] = torch.arange(9.0, device=device)
    problem = make_problem(9, 1, device=device)
    check("alr_loss", problem.with_(logits=wide[:, 2:3]), momentum=0.7)


@pytest.mark.parametrize("bank", [F32, F16, BF16], ids=str)
def test_table_strides_and_offsets(device, bank):
    problem = make_problem(11, 13, device=device, bank=bank)
    wide = torch.full((len(problem.table) + 1, 20), torch.nan, dtype=bank, device=device)
    view = wide[1:, 3:16]
    view.copy_(problem.table)
    before = wide.clone()
    expected = run_fused("alr_loss", problem)
    loss = alr_loss(problem.logits, view, problem.index)
    assert torch.equal(loss, expected.loss)
    assert same_bits(view, expected.table)
    before[1:, 3:16] = expected.table
    assert same_bits(wide, before)  # nothing around the rows was written


@pytest.mark.parametrize("table", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("logits", [F32, F16, BF16, F64], ids=str)
def test_soft_targets_for_each_row_and_with_negative_entries(device, logits, table):
    skip_float64_on_cuda(logits, device)
    one_a_row = make_problem(23, 21, rows=23, device=device, logits=logits, bank=table)
    check("soft_target_cross_entropy", one_a_row.with_(index=None), entropy_weight=0.1)
    # Backward correction: the inverse of a noise matrix, rows of mass 1 with negative entries.
    noise = 0.6 * torch.eye(21, dtype=F64) + 0.4 / 21
    inverse = torch.linalg.inv(noise).contiguous().to(device, table)
    assert (inverse < 0).any()
    corrected = one_a_row.with_(table=inverse, index=torch.arange(23, device=device) % 21)
    for reduction in ("none", "mean", "sum"):
        check("soft_target_cross_entropy", corrected, reduction=reduction)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0, -0.4, -2.0])
@pytest.mark.parametrize("logits", [F32, F16, BF16, F64], ids=str)
def test_label_smoothing_rates(device, logits, smoothing):
    skip_float64_on_cuda(logits, device)
    for classes in (1, 5, 16, 100):
        problem = problem_for(
            "label_smoothing_cross_entropy", 17, classes, device=device, logits=logits, spread=3
        )
        check("label_smoothing_cross_entropy", problem, smoothing=smoothing)


@pytest.mark.parametrize("bank", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("operation", ["alr_loss", "alr_loss_and_grad"])
def test_stats(device, operation, bank):
    for classes in (1, 2, 10, 33, 515):
        problem = make_problem(31, classes, device=device, bank=bank, spread=3)
        for update in (True, False):
            check(operation, problem, return_stats=True, update=update, momentum=0.3)
    ignored = torch.where(problem.index % 4 == 0, -1, problem.index)
    check(operation, problem.with_(index=ignored), return_stats=True)
    broken = problem.logits.clone()
    broken[3, 100] = torch.nan
    check(operation, problem.with_(logits=broken), return_stats=True)
    shared = problem.with_(index=problem.index % 5)
    check(operation, shared, return_stats=True, momentum=0.1)


def test_the_predicted_class_has_the_largest_logit_even_if_the_probabilities_tie(device):
    problem = make_problem(1, 20, device=device)
    problem = problem.with_(logits=torch.zeros_like(problem.logits))
    problem.logits[0, 17] = 1e-9
    assert run_fused("alr_loss", problem, return_stats=True).stats.predicted.tolist() == [17]


def test_stats_have_the_lowest_class_on_a_tie(device):
    for classes in (2, 10, 40, 300):
        logits = torch.zeros(3, classes, device=device)
        logits[1, classes // 2 :] = 1
        logits[2, -1] = 1
        bank = torch.full((3, classes), 0.5, device=device)
        problem = make_problem(3, classes, device=device).with_(
            logits=logits, table=bank, index=torch.arange(3, device=device)
        )
        stats = run_fused("alr_loss", problem, momentum=1.0, return_stats=True).stats
        assert stats.predicted.tolist() == [0, classes // 2, classes - 1]
        assert stats.class_before.tolist() == [0, 0, 0]
        assert stats.class_after.tolist() == [0, 0, 0]


@pytest.mark.parametrize("unique_index", [True, False])
def test_the_promise_of_unique_indices_changes_nothing(device, unique_index):
    problem = make_problem(70, 10, device=device, rows=40_000)  # a sparse batch: indices are hashed
    check("alr_loss", problem, unique_index=unique_index, return_stats=True)
