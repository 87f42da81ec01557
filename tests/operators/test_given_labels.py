"""The labels of a batch against those given to its samples, and rows ignored by label or sample."""

import re

import pytest
import torch

from alr_fast import LabelBank, _operators, functional, reference
from alr_fast.functional import (
    alr_loss,
    alr_loss_and_grad,
    label_smoothing_cross_entropy,
    soft_target_cross_entropy,
)
from helpers.compare import check, same_bits
from helpers.problems import OPERATIONS, make_problem, problem_for, threads

pytestmark = pytest.mark.usefixtures("autograd_node")

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
TABLE_OPERATIONS = (alr_loss, alr_loss_and_grad, soft_target_cross_entropy)


def labelled(operation, batch, classes, **options):
    """A problem and its labels: {"labels", "given_labels"}, or {"index", "given_labels"}."""
    problem = problem_for(operation, batch, classes, **options)
    device = problem.logits.device
    if problem.table is None:
        samples = torch.randperm(3 * batch, device=device)[:batch]
        given = torch.full((3 * batch,), -1, dtype=torch.int32, device=device)
        given[samples] = problem.index.int()
        return problem, {"index": samples, "given_labels": given}
    given = torch.arange(len(problem.table), dtype=torch.int32, device=device) % classes
    return problem, {"labels": given[problem.index].long(), "given_labels": given}


def wrong_batch(operation, device, **options):
    """As `labelled`, with another label in row 2, and the names of the arguments."""
    problem, labels = labelled(operation, 5, 7, device=device, **options)
    if problem.table is None:
        index = problem.index.clone()
        index[2] = (index[2] + 1) % 7
        return problem.with_(index=index), labels
    labels["labels"][2] = (labels["labels"][2] + 1) % 7
    return problem, labels


def call(function, problem, **options):
    table = () if problem.table is None else (problem.table,)
    return function(problem.logits, *table, problem.index, **options)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=str)
@pytest.mark.parametrize("classes", [10, 515])
def test_right_labels_change_nothing(device, classes, dtype, operation):
    if dtype == F64 and device.type == "cuda":
        pytest.skip("float64 logits are taken on the CPU only")
    problem, labels = labelled(operation, 21, classes, device=device, logits=dtype)
    with_labels = check(operation, problem, **labels)
    without = check(operation, problem)
    assert same_bits(with_labels.loss, without.loss)
    assert same_bits(with_labels.grad, without.grad)
    if problem.table is not None:
        assert same_bits(with_labels.table, without.table)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("checks", [True, False])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_a_row_is_ignored_if_its_label_or_its_index_is(device, dtype, checks, operation):
    problem, labels = labelled(operation, 21, 10, device=device, index=dtype)
    other = "labels" if "labels" in labels else "index"
    index, others = problem.index.clone(), labels[other].to(dtype)
    index[[0, 7]] = torch.tensor([-1, -100], dtype=dtype, device=device)
    others[[3, 7, 20]] = torch.tensor([-5, -1, -2], dtype=dtype, device=device)
    # Any stride.
    strided = torch.stack([others, torch.full_like(others, -9)], -1)[:, 0]
    labels = {**labels, other: strided} if checks else {other: strided}
    for reduction in ("none", "mean", "sum"):
        fused = check(operation, problem.with_(index=index), reduction=reduction, **labels)
        ignored = (index < 0) | (others < 0)
        assert ignored.sum() == 4
        assert torch.equal(fused.grad[ignored], torch.zeros_like(fused.grad[ignored]))
        if reduction == "none":
            assert fused.loss[ignored].tolist() == [0] * 4


@pytest.mark.parametrize("operation", ["alr_loss", "alr_loss_and_grad"])
def test_an_ignored_row_is_in_no_group(device, operation):
    problem, labels = labelled(operation, 21, 10, device=device)
    index = problem.index.clone()
    index[[9, 15]] = index[4].clone()
    others = labels["given_labels"][index].long()
    others[15] = -1
    fused = check(operation, problem.with_(index=index), **{**labels, "labels": others})
    rest = torch.arange(21, device=device) != 15
    without = check(
        operation,
        problem.with_(logits=problem.logits[rest], index=index[rest]),
        labels=others[rest],
        given_labels=labels["given_labels"],
    )
    assert same_bits(fused.table, without.table)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_another_label_is_refused_before_anything_is_written(operation):
    for dtype in (F32, F16, BF16, F64):
        problem, labels = wrong_batch(operation, "cpu", logits=dtype)
        before = None if problem.table is None else problem.table.clone()
        sample = labels["index"] if problem.table is None else problem.index
        for options in ({}, {"reduction": "none"}):
            with pytest.raises(ValueError, match=r"labels\[2\] is \d, but sample") as caught:
                call(getattr(functional, operation), problem, **labels, **options)
            text = str(caught.value)
            assert f"sample {sample[2]} " in text
            assert f"given label {labels['given_labels'][sample[2]]}" in text
            assert "own index" in text and "correct_labels" in text and "check_labels" in text
        assert before is None or same_bits(problem.table, before)
        with pytest.raises(ValueError, match=r"rows \[2\] have other labels"):
            call(getattr(reference, operation), problem, **labels)


def test_a_large_label_is_not_cut_to_32_bits():
    problem, labels = labelled("alr_loss", 5, 7)
    labels["labels"][2] += 2**32
    with pytest.raises(ValueError, match=r"labels\[2\]"):
        call(alr_loss, problem, **labels)


def test_a_wrong_label_is_found_by_any_thread():
    problem, labels = labelled("alr_loss", 4000, 10)
    labels["labels"][3777] = (labels["labels"][3777] + 1) % 10
    before = problem.table.clone()
    with threads(2), pytest.raises(ValueError, match=r"labels\[3777\]"):
        call(alr_loss, problem, **labels)
    assert same_bits(problem.table, before)


@pytest.mark.parametrize("function", [functional, reference])
def test_a_sample_beyond_the_given_labels(function):
    problem, labels = labelled("label_smoothing_cross_entropy", 5, 7)
    labels["index"][3] = 15
    with pytest.raises(IndexError):
        call(function.label_smoothing_cross_entropy, problem, **labels)
    with pytest.raises(IndexError, match=r"index\[3\] is 15, but there are 15 given labels"):
        call(label_smoothing_cross_entropy, problem, **labels)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_on_a_gpu_a_wrong_row_is_counted_and_stored_nowhere(device, operation):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    problem, labels = wrong_batch(operation, device)
    before = None if problem.table is None else problem.table.clone()
    result = call(getattr(functional, operation), problem, reduction="none", **labels)
    loss = result[0] if isinstance(result, tuple) else result
    assert loss.isnan().tolist() == [False, False, True, False, False]
    if operation == "alr_loss":
        assert same_bits(problem.table[problem.index[2]], before[problem.index[2]])
        assert not same_bits(problem.table, before)


def test_the_bank_raises_for_counted_rows():
    bank = LabelBank.from_labels(torch.tensor([0, 1, 2]), 3)
    bank.status[2] = 4  # as a kernel counts them
    with pytest.raises(ValueError, match="4 batch rows had another label"):
        bank.check()
    assert bank.check() == 0


# Wrong arguments.

MISUSES = {
    "int64": (lambda t: t.long(), "given_labels must be a contiguous int32"),
    "strided": (lambda t: t.repeat_interleave(2)[::2], "given_labels must be a contiguous int32"),
    "matrix": (lambda t: t[:, None], "given_labels must be a contiguous int32"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", MISUSES)
def test_given_labels_of_a_wrong_kind(device, case, operation):
    spoil, message = MISUSES[case]
    problem, labels = labelled(operation, 5, 7, device=device)
    labels["given_labels"] = spoil(labels["given_labels"])
    with pytest.raises(RuntimeError, match=message):
        call(getattr(functional, operation), problem, **labels)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_given_labels_need_labels_and_samples(device, operation):
    problem, labels = labelled(operation, 5, 7, device=device)
    other = "labels" if "labels" in labels else "index"
    given = {"given_labels": labels["given_labels"]}
    for module, error in ((functional, RuntimeError), (reference, ValueError)):
        with pytest.raises(error, match="given_labels are compared"):
            call(getattr(module, operation), problem, **given)
    for spoil, message in (
        (lambda t: t[:-1], rf"{other} must have shape \[5\]"),
        (lambda t: t[None], rf"{other} of shape .*must have shape"),
        (lambda t: t.float(), rf"{other} of type torch.float32: must be integers"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=message):
            call(getattr(functional, operation), problem, **{**given, other: spoil(labels[other])})


def test_a_table_has_a_row_for_each_given_label(device):
    for function in TABLE_OPERATIONS:
        problem, labels = labelled("alr_loss", 5, 7, device=device)
        labels["given_labels"] = labels["given_labels"][:-1].contiguous()
        with pytest.raises(RuntimeError, match="given_labels has 12 entries, the table 13 rows"):
            call(function, problem, **labels)


def test_compiled_code_compares_labels(device):
    torch._dynamo.reset()
    problem, labels = labelled("alr_loss", 5, 7, device=device)
    step = torch.compile(
        lambda z, table, i, labels, given: alr_loss(z, table, i, labels=labels, given_labels=given),
        fullgraph=True,
    )
    given = labels["given_labels"]
    table = problem.table.clone()
    loss = step(problem.logits, problem.table, problem.index, labels["labels"], given)
    assert torch.equal(loss, alr_loss(problem.logits, table, problem.index))
    assert same_bits(table, problem.table)
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"labels\[0\]"):
            step(problem.logits, table, problem.index, labels["labels"] + 1, given)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("labels[0] is 1, but sample 0 (index[0]) has the given label 2", ValueError),
        ("given_labels are compared with labels: pass labels as well", RuntimeError),
    ],
)
def test_the_type_of_an_error_does_not_depend_on_torch(monkeypatch, text, kind):
    """torch 2.15 raises RuntimeError for each invalid argument of an operator."""

    def operator(*arguments):
        raise RuntimeError(text)

    fused = _operators._SOFT_TARGET_CROSS_ENTROPY
    monkeypatch.setattr(fused, "call", operator)
    monkeypatch.setattr(fused, "record", fused.record_in_python)
    for logits in (torch.zeros(2, 3), torch.zeros(2, 3, requires_grad=True)):
        with pytest.raises(kind, match=re.escape(text)) as caught:
            soft_target_cross_entropy(logits, torch.full((2, 3), 1 / 3))
        assert type(caught.value) is kind


def test_labels_without_an_index_belong_to_the_rows(device):
    problem = make_problem(5, 7, device=device)
    table = problem.table[:5].contiguous()
    labels = torch.tensor([0, 1, -1, 3, 4], device=device)
    loss = soft_target_cross_entropy(
        problem.logits, table, labels=labels, given_labels=labels.int(), reduction="none"
    )
    want = soft_target_cross_entropy(problem.logits, table, reduction="none")
    want[2] = 0
    assert torch.equal(loss, want)
