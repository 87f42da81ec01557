"""Losses at the edges of their interface: ignored rows, transforms of torch, history, state."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.distributed.tensor import DTensor, init_device_mesh
from torch.distributed.tensor.placement_types import Shard
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from alr_fast import ALRLoss, LabelBank
from alr_fast.losses import (
    CrossEntropyLoss,
    DistillationLoss,
    ELRLoss,
    ForwardCorrectionLoss,
    SmearingLoss,
)
from helpers.loss_cases import CASES, CLASSES, GIVEN, INDEX, LABELS, close, numbers

BANKED = [case for case in CASES if case.keeps_bank]
PLAIN = [case for case in CASES if case.name in ("forward", "elr")]
every_loss = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_bank = pytest.mark.parametrize("case", BANKED, ids=lambda case: case.name)
every_plain_loss = pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)


def logits_of(seed, dtype=torch.float32):
    return numbers(len(LABELS), CLASSES, seed=seed, spread=2).to(dtype)


# Memory of a step.


class Largest(TorchDispatchMode):
    """Records how many elements the largest result of an operator has."""

    elements = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@every_loss
def test_a_step_makes_nothing_larger_than_a_few_batches_of_logits(case):
    batch = 2000
    index = torch.arange(batch) % len(GIVEN)
    leaf = numbers(batch, CLASSES, seed=62).float().requires_grad_()
    criterion = case.make()
    with Largest() as largest:
        criterion(leaf, GIVEN[index], index).backward()
    # Statistics of a row and the like are smaller.
    assert batch * CLASSES <= largest.elements <= 4 * batch * CLASSES


# Rows that are ignored.


@every_loss
@pytest.mark.parametrize("options", [{}, {"class_weight": [1.0, 2.0, 3.0, 4.0, 5.0]}], ids=str)
def test_a_row_is_ignored_by_its_index_as_by_its_label(case, options):
    logits = logits_of(60)
    by_label, by_index = LABELS.clone(), INDEX.clone()
    by_label[1] = by_index[1] = -1
    expected, expected_grad = case.make().loss_and_grad(logits, by_label, INDEX, **options)
    for index in (by_index, by_index.int()):
        loss, grad = case.make().loss_and_grad(logits, LABELS, index, **options)
        close(loss, expected, rtol=1e-6, atol=1e-7)
        close(grad, expected_grad, rtol=1e-6, atol=1e-7)
        assert not grad[1].any() and grad[0].any()


def test_class_weights_of_float64_rows_are_not_rounded():
    case = next(case for case in CASES if case.name == "distillation at 2.5")
    logits = logits_of(61, torch.float64)
    criterion = case.make()
    criterion.temperature = 1.3  # its square is no float32
    found = criterion(logits, LABELS, INDEX)
    log_p = (logits / 1.3).log_softmax(-1)
    expected = -(1.3**2) * (criterion.teacher[INDEX].double() * log_p).sum(-1).mean()
    close(found, expected, rtol=1e-13, atol=0)


# What is refused, in the same words by every loss.


@every_loss
def test_logits_that_are_no_predictions_are_refused(case):
    for logits in (torch.ones(6, CLASSES, dtype=torch.int64), logits_of(62).to(torch.complex64)):
        for criterion in (case.make(), case.make().eval()):
            with pytest.raises(ValueError, match=r"logits of type .*: must be float32"):
                criterion(logits, LABELS, INDEX)


@pytest.mark.parametrize("columns", [1, CLASSES + 1])
def test_logits_of_other_classes_are_refused_in_every_phase(columns):
    logits = torch.zeros(6, columns)
    banked = [case.make() for case in BANKED]
    warming_up = ALRLoss(LabelBank.from_labels(GIVEN, CLASSES), warmup_epochs=1)
    warming_up.set_epoch(0)
    others = [case.make() for case in CASES if case.name in ("forward", "backward")]
    for criterion in (*banked, warming_up, *others):
        with pytest.raises(ValueError, match=rf"\(6, {columns}\): must have {CLASSES} columns"):
            criterion(logits, LABELS * 0, INDEX)


@pytest.mark.parametrize("name", ["distillation", "backward", "forward"])
def test_labels_beyond_the_classes_are_refused_as_labels(name):
    case = next(case for case in CASES if case.name == name)
    labels = LABELS.clone()
    labels[2] = 99
    with pytest.raises(IndexError, match="label 99 is out of range"):
        case.make()(logits_of(63), labels, INDEX)


@every_loss
@pytest.mark.parametrize("name", ["row_weight", "class_weight", "class_prior"])
def test_weights_on_another_device_are_refused_by_name(case, name):
    size = len(LABELS) if name == "row_weight" else CLASSES
    weights = torch.ones(size, device="meta")
    with pytest.raises(ValueError, match=f"{name} on meta: must be on cpu.*pass {name}.to"):
        case.make()(logits_of(64), LABELS, INDEX, **{name: weights})


def test_an_infinite_prior_and_an_update_that_is_no_bool_are_refused():
    criterion = CrossEntropyLoss()
    prior = torch.tensor([1.0, 1.0, torch.inf, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"class_prior .*a finite one"):
        criterion(logits_of(65), LABELS, class_prior=prior)
    with pytest.raises(ValueError, match="update 'no': must be True, False or None"):
        criterion(logits_of(65), LABELS, update="no")


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_dtensor_logits_are_refused_by_name(mesh):
    logits = DTensor.from_local(logits_of(66), mesh, [Shard(0)])
    for case in CASES:
        for criterion in (case.make(), case.make().eval()):
            for labels in (LABELS, LABELS[:3]):  # of all ranks, of this rank
                with pytest.raises(ValueError, match="logits: a DTensor"):
                    criterion(logits, labels, INDEX[: len(labels)])


@every_bank
def test_a_loss_that_is_recomputed_in_the_backward_pass_is_refused(case):
    criterion, logits = case.make(), logits_of(67).requires_grad_()
    loss = checkpoint(lambda z: criterion(z * 2, LABELS, INDEX), logits, use_reentrant=False)
    before = criterion.bank.rows.clone()
    with pytest.raises(RuntimeError, match="the bank would be updated a second time"):
        loss.backward()
    assert torch.equal(criterion.bank.rows, before)


# Transforms of torch.


@every_plain_loss
def test_derivatives_of_torch_func_are_those_of_autograd(case):
    logits, direction = logits_of(68, torch.float64), logits_of(69, torch.float64)
    leaf = logits.clone().requires_grad_()
    (grad,) = torch.autograd.grad(case.make()(leaf, LABELS, INDEX), leaf)
    expected = (grad * direction).sum()

    def loss(z):
        return case.make()(z, LABELS, INDEX)

    close(torch.func.jvp(loss, (logits,), (direction,))[1], expected, rtol=1e-9, atol=0)
    close(torch.func.grad(loss)(logits), grad, rtol=1e-9, atol=1e-12)
    criterion = case.make()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, direction)
        tangent = forward_ad.unpack_dual(criterion(dual, LABELS, INDEX)).tangent
        close(tangent, expected, rtol=1e-9, atol=0)
        if criterion.bank is not None:
            assert forward_ad.unpack_dual(criterion.bank.rows).tangent is None


@every_plain_loss
def test_losses_in_plain_pytorch_can_be_traced(case):
    logits, criterion = logits_of(70), case.make()
    traced = make_fx(lambda z: criterion(z, LABELS, INDEX, update=False))(logits)
    other = logits_of(71)
    close(traced(other), case.make()(other, LABELS, INDEX), rtol=1e-6, atol=1e-7)


def test_vmap_maps_forward_correction_and_is_refused_by_elr():
    batches = torch.stack((logits_of(72), logits_of(73)))
    labels, index = LABELS.expand(2, -1), INDEX.expand(2, -1)
    forward, elr = (case.make() for case in PLAIN)
    if isinstance(forward, ELRLoss):
        forward, elr = elr, forward
    found = torch.func.vmap(forward)(batches, labels, index)
    close(found, torch.stack([forward(z, LABELS, INDEX) for z in batches]), rtol=1e-6, atol=1e-7)
    for function in (elr, torch.func.grad(elr)):
        with pytest.raises(RuntimeError, match=r"torch.func.vmap cannot do: pass the batches"):
            torch.func.vmap(function)(batches, labels, index)


@pytest.mark.parametrize("form", [torch.Tensor.tolist, torch.Tensor.numpy], ids=["list", "array"])
def test_weights_of_any_form_compile(form):
    weight = torch.rand(CLASSES) + 0.1
    compiled = torch.compile(CrossEntropyLoss(), fullgraph=True, backend="aot_eager")
    logits = logits_of(74)
    found = compiled(logits, LABELS, class_weight=form(weight))
    close(found, F.cross_entropy(logits, LABELS, weight=weight), rtol=1e-5, atol=1e-6)


# History.


def bank_of(**options):
    return LabelBank.from_labels(GIVEN, CLASSES, **options)


def test_rows_without_effect_are_not_in_the_history():
    history = ALRLoss(bank_of(), warmup_epochs=0, history=True).bank.history
    n = len(GIVEN)
    index = torch.tensor([0, 1, -1, n, 2, 3])
    labels = GIVEN[index.clamp(0, n - 1)].clone()
    labels[1] = -1  # ignored
    labels[4] = (labels[4] + 1) % CLASSES  # not the given one
    history.add(logits_of(75), labels, index, GIVEN.int())
    assert history.passes.nonzero().flatten().tolist() == [0, 3]
    labels[5] = CLASSES  # out of range
    history.add(logits_of(75), labels, index)
    assert history.passes[[0, 1, 2, 3]].tolist() == [2, 0, 1, 1]
    assert history.passes.sum() == 4


def test_epochs_of_a_warm_up_in_steps_are_in_the_history():
    criterion = ALRLoss(bank_of(), warmup_steps=1, momentum=0, history=True)
    for epoch in range(3):
        criterion.set_epoch(epoch)
        criterion.set_step(epoch)
        wrong = F.one_hot((GIVEN + epoch) % CLASSES, CLASSES) * 9.0
        criterion(wrong, GIVEN, torch.arange(len(GIVEN)))
    criterion.set_epoch(3)
    assert criterion.bank.history.changes.unique().tolist() == [0b11]
    alone = ALRLoss(bank_of(), warmup_steps=1)
    alone.set_epoch(5)
    assert alone.warming_up is None  # the step decides


@pytest.mark.parametrize("stop", ["at the start of an epoch", "within an epoch"])
def test_a_resumed_run_has_the_history_of_one_that_went_through(stop):
    def run(resumed):
        criterion = ALRLoss(bank_of(), warmup_epochs=0, momentum=0, history=True)
        for epoch in range(5):
            criterion.set_epoch(epoch)
            for half in range(2):
                if resumed and epoch == 2 and half == (stop == "within an epoch"):
                    state = {name: t.clone() for name, t in criterion.state_dict().items()}
                    criterion = ALRLoss(bank_of(), warmup_epochs=0, momentum=0, history=True)
                    criterion.load_state_dict(state)
                    criterion.set_epoch(epoch)
                logits = numbers(len(GIVEN), CLASSES, seed=80 + 2 * epoch + half, spread=3).float()
                criterion(logits, GIVEN, torch.arange(len(GIVEN)))
        criterion.set_epoch(5)
        return criterion.state_dict()

    found, expected = run(True), run(False)
    assert expected["bank.history.changes"].unique().numel() > 1
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_state_saved_between_two_epochs_ends_the_first_one():
    def started():
        return ALRLoss(bank_of(), warmup_epochs=0, momentum=0, history=True)

    criterion, other = started(), started()
    criterion.set_epoch(0)
    criterion(F.one_hot((GIVEN + 1) % CLASSES, CLASSES) * 9.0, GIVEN, torch.arange(len(GIVEN)))
    other.load_state_dict(criterion.state_dict())
    other.set_epoch(1)
    assert other.bank.history.changes.unique().tolist() == [1]


def test_preserved_rows_keep_their_history():
    criterion = ALRLoss(bank_of(), warmup_epochs=0, history=True)
    with criterion.bank.preserved():
        criterion(logits_of(76), LABELS, INDEX)
        assert criterion.bank.history.passes.any()
    assert not criterion.bank.history.passes.any() and not criterion.bank.history.loss.any()


# Corrections.


def test_a_corrected_sample_starts_again():
    criterion = ALRLoss(bank_of(), warmup_epochs=0, momentum=0, history=True)
    everyone = torch.arange(len(GIVEN))
    for epoch in range(2):
        criterion.set_epoch(epoch)
        criterion(F.one_hot((GIVEN + 1) % CLASSES, CLASSES) * 9.0, GIVEN, everyone)
    criterion.set_epoch(2)
    history, label = criterion.bank.history, int(GIVEN[3] + 2) % CLASSES
    criterion.bank.correct_labels([3], [label])
    assert (history.loss[3], history.passes[3], history.changes[3]) == (0, 0, 0)
    assert history.changes[2] != 0
    criterion.set_epoch(3)
    assert history.changes[3] == 0  # a correction is no change of mind of the model


def test_a_corrected_row_of_elr_starts_at_zero():
    bank = bank_of(one_hot=False)
    criterion = ELRLoss(bank)
    criterion(logits_of(77), LABELS, INDEX)
    sample = int(INDEX[0])
    assert bank.rows[sample].any()
    bank.correct_labels([sample], [(GIVEN[sample] + 1) % CLASSES])
    assert not bank.rows[sample].any()
    assert bank.shard([sample]).one_hot is False


# State.


def test_a_strict_load_names_what_is_missing_or_unknown():
    saved = ALRLoss(bank_of(), warmup_epochs=0, history=True).state_dict()
    target = ALRLoss(bank_of(), warmup_epochs=0, history=True)
    without = {name: t for name, t in saved.items() if "history" not in name}
    with pytest.raises(RuntimeError, match=r'Missing key.*"bank.history.changes"'):
        target.load_state_dict(without)
    assert len(target.load_state_dict(without, strict=False).missing_keys) == 4
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"bank.foo"'):
        target.load_state_dict({**saved, "bank.foo": torch.ones(1)})
    with pytest.raises(RuntimeError, match="rows of type NoneType, not a tensor"):
        target.load_state_dict({**saved, "bank.rows": None})


def test_issues_of_a_shard_are_numbered_as_in_the_whole_bank():
    issues = bank_of().shard([5, 7, 2]).issues()
    assert sorted(issues.to_pandas().iloc[:, 0].tolist()) == [2, 5, 7]


# Constructors.


@pytest.mark.parametrize("form", [torch.Tensor.tolist, torch.Tensor.numpy], ids=["list", "array"])
def test_tables_of_any_form(form):
    logits = logits_of(90)
    for make, table in (
        (SmearingLoss, torch.eye(CLASSES) * 0.5),
        (ForwardCorrectionLoss, torch.full((CLASSES, CLASSES), 0.1) + 0.5 * torch.eye(CLASSES)),
        (DistillationLoss, torch.full((len(GIVEN), CLASSES), 0.2)),
    ):
        found, expected = (make(t)(logits, LABELS, INDEX) for t in (form(table), table))
        close(found, expected, rtol=1e-6, atol=0)


def test_tables_of_something_else_are_refused():
    with pytest.raises(ValueError, match="matrix of type list: must be numbers"):
        SmearingLoss([["a"]])
    with pytest.raises(ValueError, match=r"teacher of type torch.int64: must be floating-point"):
        DistillationLoss([[1, 0], [0, 1]])


@pytest.mark.parametrize("bank", [None, torch.zeros(3, 3), "bank"], ids=["none", "rows", "text"])
def test_a_bank_that_is_none_is_refused(bank):
    made = [lambda: ALRLoss(bank, warmup_epochs=1), lambda: ELRLoss(bank)]
    if bank is not None:
        made.append(lambda: CrossEntropyLoss(bank=bank))
    for make in made:
        with pytest.raises(ValueError, match=r"bank of type .*must be a LabelBank: make one"):
            make()


def test_a_bank_at_zero_is_refused_where_rows_are_targets():
    with pytest.raises(ValueError, match="bank: starts at zero"):
        ALRLoss(bank_of(one_hot=False), warmup_epochs=1)


def test_counts_of_classes_do_not_overflow():
    counts = torch.tensor([3e38, 3e38, 1.0, 1.0, 1.0])
    found = CrossEntropyLoss()(logits_of(91), LABELS, class_prior=counts)
    expected = CrossEntropyLoss()(logits_of(91), LABELS, class_prior=counts / 1e38)
    close(found, expected, rtol=1e-6, atol=0)
