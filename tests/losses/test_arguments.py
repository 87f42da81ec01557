"""What a loss accepts, refuses and writes: labels, index, weights, prior, modes."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alr_fast import ALRLoss, LabelBank
from alr_fast.errors import UserError
from alr_fast.losses import CrossEntropyLoss, ELRLoss, SELCLoss
from helpers.loss_cases import CASES, CLASSES, GIVEN, INDEX, LABELS, close, numbers

BANKED = [case for case in CASES if case.keeps_bank]
every_loss = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_bank = pytest.mark.parametrize("case", BANKED, ids=lambda case: case.name)


@pytest.fixture
def batch(device):
    logits = numbers(len(LABELS), CLASSES, seed=50, spread=2).to(device, torch.float32)
    return logits.requires_grad_(), LABELS.to(device, copy=True), INDEX.to(device, copy=True)


def rows_of(criterion):
    return criterion.bank.rows.cpu().clone()


# Forms of labels and indices.

FORMS = {
    "list": lambda t: t.tolist(),
    "array": lambda t: t.cpu().numpy(),
    "uint8": lambda t: t.to(torch.uint8),
    "int16 array": lambda t: t.cpu().numpy().astype(np.int16),
    "int32": lambda t: t.int(),
    "column": lambda t: t[:, None],
}


@every_loss
@pytest.mark.parametrize("form", FORMS)
def test_labels_and_index_of_any_form(device, batch, case, form):
    logits, labels, index = batch
    one, other, third = (case.make(device) for _ in range(3))
    expected = one(logits, labels, index)
    assert torch.equal(other(logits, FORMS[form](labels), FORMS[form](index)), expected)
    found, _ = third.loss_and_grad(logits, FORMS[form](labels), index=FORMS[form](index))
    close(found, expected.detach(), rtol=1e-6, atol=1e-7)


@every_loss
def test_pairs_of_label_and_index(device, batch, case):
    logits, labels, index = batch
    pairs = torch.stack((labels, index), 1)
    one, other = case.make(device), case.make(device)
    assert torch.equal(one(logits, pairs), other(logits, labels, index))
    if case.keeps_bank:
        assert torch.equal(rows_of(one), rows_of(other))
    close(one.eval()(logits, pairs).detach(), F.cross_entropy(logits, labels).detach())


WRONG = {
    "none": (None, "labels: missing"),
    "soft": (
        torch.full((6, CLASSES), 0.2),
        r"labels of type torch.float32: .*Soft labels \(of mixup",
    ),
    "too few": (LABELS[:4], "labels with 4 entries: must have 6 entries"),
    "float": (LABELS.float(), "labels of type torch.float32: must be integers"),
    "bool": (LABELS > 1, "labels of type torch.bool: must be integers"),
    "three columns": (LABELS[:, None].expand(6, 3), r"labels of shape \(6, 3\)"),
    "names": (["a"] * 6, "labels of type list: .*map class names"),
    "number": (3, r"labels of shape \(\)"),
}


@every_loss
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_labels_are_refused_in_every_phase(batch, case, wrong):
    labels, message = WRONG[wrong]
    logits, index = batch[0].detach().cpu(), INDEX
    for criterion in (case.make(), case.make().eval()):
        before = None if criterion.bank is None else rows_of(criterion)
        for call in (criterion, criterion.loss_and_grad):
            with pytest.raises(ValueError, match=message):
                call(logits, labels, index)
        if before is not None:
            assert torch.equal(rows_of(criterion), before)


@every_bank
def test_wrong_indices_are_refused(batch, case):
    logits = batch[0].detach().cpu()
    for index, message in (
        (INDEX.float(), "index of type torch.float32: must be integers"),
        (INDEX[:3], "index with 3 entries: must have 6 entries"),
        (INDEX[None], r"index of shape \(1, 6\)"),
    ):
        criterion = case.make()
        with pytest.raises(ValueError, match=message):
            criterion(logits, LABELS, index)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(6), r"logits of shape \(6,\): must have shape \[B, K\]"),
        ([[0.0] * CLASSES] * 6, "logits of type list: must be a tensor"),
    ],
)
def test_wrong_logits_are_refused(logits, message):
    for case in CASES:
        with pytest.raises(ValueError, match=message):
            case.make()(logits, LABELS, INDEX)


def test_an_epoch_or_a_warm_up_that_is_no_number_is_refused(batch):
    bank = LabelBank.from_labels(GIVEN, CLASSES)
    for options in ({"warmup_epochs": "2"}, {"warmup_steps": [2]}):
        (name,) = options
        with pytest.raises(UserError, match=f"{name} .*: must be a number"):
            ALRLoss(bank, **options)
    criterion = ALRLoss(bank, warmup_epochs=2)
    for epoch in ("1", None):
        with pytest.raises(UserError, match=f"epoch {epoch!r}: must be a number"):
            criterion.set_epoch(epoch)
    assert criterion.warming_up is None


# Given labels.


@every_bank
def test_a_shifted_index_is_found_at_once(device, batch, case):
    logits, labels, index = batch
    for criterion in (case.make(device), case.make(device)):
        before = rows_of(criterion)
        if device.type == "cpu":
            with pytest.raises(ValueError, match=r"labels\[0\] is 0, but sample 4 .*given label 3"):
                criterion(logits, labels, index - 1)
        else:
            criterion(logits, labels, index - 1)
            with pytest.raises(ValueError, match="batch rows had another label"):
                criterion.bank.check()
        wrong = GIVEN[INDEX - 1] != LABELS
        assert torch.equal(rows_of(criterion)[(INDEX - 1)[wrong]], before[(INDEX - 1)[wrong]])
        assert criterion.bank.check() == 0


@every_bank
def test_labels_that_differ_pass_where_they_are_corrected_or_unchecked(device, batch, case):
    logits, labels, index = batch
    other = (labels + 1) % CLASSES
    unchecked = case.make(device, check_labels=False)
    unchecked(logits, other, index)
    corrected = case.make(device)
    corrected.bank.correct_labels(index, other, reset=False)
    corrected(logits, other, index)
    assert torch.equal(rows_of(corrected), rows_of(unchecked))
    if device.type == "cpu":
        with pytest.raises(IndexError, match="label 99 is out of range"):
            case.make(check_labels=False)(logits, labels.masked_fill(labels == 1, 99), index)


# Writing.


@every_bank
def test_the_bank_is_written_only_where_a_gradient_is_asked_for(device, batch, case):
    writes = "warm-up" not in case.name

    def changed(call, **options):
        criterion = case.make(device)
        before = rows_of(criterion)
        call(criterion, *batch, **options)
        return not torch.equal(rows_of(criterion), before)

    def without_grad(criterion, *arguments, **options):
        with torch.no_grad():
            criterion(*arguments, **options)

    def of_loss_and_grad(criterion, *arguments, **options):
        with torch.no_grad():
            criterion.loss_and_grad(*arguments, **options)

    def plain(criterion, *arguments, **options):
        criterion(*arguments, **options)

    assert changed(plain) is writes
    assert changed(of_loss_and_grad) is writes
    assert not changed(without_grad)
    assert changed(without_grad, update=True) is writes
    assert not changed(plain, update=False)
    assert not changed(of_loss_and_grad, update=False)


@every_bank
def test_update_does_not_change_loss_and_gradient(device, batch, case):
    one, other = case.make(device), case.make(device)
    loss, grad = one.loss_and_grad(*batch, update=False)
    expected, want = other.loss_and_grad(*batch)
    close(loss, expected, rtol=1e-6, atol=1e-7)
    close(grad, want, rtol=1e-6, atol=1e-7)


# Weights and prior.


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_weights_are_those_of_torch(device, batch, reduction):
    logits, labels, index = batch
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0], device=device)
    labels[2] = -100
    index[2] = -100
    expected = F.cross_entropy(logits, labels, weight=weight, reduction=reduction)
    (want,) = torch.autograd.grad(expected.sum(), logits)
    for criterion in (
        CrossEntropyLoss(reduction=reduction),
        CASES_BY_NAME["alr in warm-up"].make(device, reduction=reduction),
    ):
        loss = criterion(logits, labels, index, class_weight=weight)
        close(loss.detach(), expected.detach())
        close(torch.autograd.grad(loss.sum(), logits)[0], want)
        found, grad = criterion.loss_and_grad(logits, labels, index, class_weight=weight.tolist())
        close(found, expected.detach())
        close(grad, want)


CASES_BY_NAME = {case.name: case for case in CASES}


@every_loss
def test_class_weights_and_row_weights_of_every_loss(device, batch, case):
    logits, labels, index = batch
    weight, row_weight = torch.rand(CLASSES, device=device), torch.rand(len(labels), device=device)
    rows, grads = case.make(device, reduction="none").loss_and_grad(*batch)
    factor = weight[labels] * row_weight
    loss, grad = case.make(device).loss_and_grad(*batch, class_weight=weight, row_weight=row_weight)
    total = weight[labels].sum()
    close(loss, (rows * factor).sum() / total)
    close(grad, grads * factor[:, None] / total)
    one = case.make(device)(logits, labels, index, class_weight=weight, row_weight=row_weight)
    close(one.detach(), loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(class_weight=[1.0, 2.0]), r"class_weight of shape \(2,\): must have shape \[5\]"),
        (dict(row_weight=torch.ones(3)), r"row_weight of shape \(3,\): must have shape \[6\]"),
        (dict(row_weight=torch.ones(6, requires_grad=True)), "row_weight: is a constant"),
        (dict(class_prior=[1, 1, 1, 1, 0]), r"class_prior .*every class needs a frequency above 0"),
        (dict(class_prior="uniform"), "class_prior of type str: must be numbers"),
    ],
)
def test_wrong_weights_are_refused(batch, options, message):
    for case in CASES:
        criterion = case.make()
        before = None if criterion.bank is None else rows_of(criterion)
        with pytest.raises(ValueError, match=message):
            criterion(batch[0].cpu(), LABELS, INDEX, **options)
        if before is not None:
            assert torch.equal(rows_of(criterion), before)


def test_all_class_weights_zero_give_a_loss_of_zero(device, batch):
    loss, grad = CrossEntropyLoss().loss_and_grad(*batch, class_weight=[0.0] * CLASSES)
    assert loss == 0
    assert not grad.any()


PRIOR = torch.tensor([100.0, 5.0, 20.0, 1.0, 50.0])


@pytest.mark.parametrize("method", ["forward", "loss_and_grad"])
def test_logit_adjustment_of_refinement_leaves_the_prediction_for_the_bank(device, batch, method):
    logits, _, index = batch
    plain, adjusted = (CASES_BY_NAME["alr"].make(device) for _ in range(2))
    before = plain.bank.rows.clone()
    plain(*batch)
    if method == "forward":
        loss = adjusted(*batch, class_prior=PRIOR)
        (grad,) = torch.autograd.grad(loss, logits)
    else:
        loss, grad = adjusted.loss_and_grad(*batch, class_prior=PRIOR.tolist())
    assert torch.equal(adjusted.bank.rows, plain.bank.rows)
    z = logits.detach().cpu().double().requires_grad_()
    target = 0.7 * before[index].cpu().double() + 0.3 * z.detach().softmax(-1)
    log_p = (z + (PRIOR / PRIOR.sum()).log()).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    expected = (-(target * log_p).sum(-1) + 0.4 * entropy).mean()
    close(loss.detach(), expected.detach())
    close(grad, torch.autograd.grad(expected, z)[0])


@pytest.mark.parametrize("name", ["ce", "smoothing", "forward", "distillation at 2.5", "backward"])
def test_logit_adjustment_adds_the_prior_to_the_logits(device, batch, name):
    logits, labels, index = batch
    case = CASES_BY_NAME[name]
    log_prior = (PRIOR / PRIOR.sum()).log().to(device)
    expected, want = case.make(device).loss_and_grad(logits + log_prior, labels, index)
    loss, grad = case.make(device).loss_and_grad(*batch, class_prior=PRIOR)
    close(loss, expected)
    close(grad, want)


def test_logit_adjustment_of_elr_and_sat(device, batch):
    logits, labels, _ = batch
    log_prior = (PRIOR / PRIOR.sum()).log().to(device)
    elr, other = (CASES_BY_NAME["elr"].make(device, reduction="none") for _ in range(2))
    difference = elr(*batch, class_prior=PRIOR) - other(*batch)
    expected = F.cross_entropy(logits + log_prior, labels, reduction="none")
    close(
        (difference).detach(),
        (expected - F.cross_entropy(logits, labels, reduction="none")).detach(),
    )
    assert torch.equal(elr.bank.rows, other.bank.rows)
    sat, other = (CASES_BY_NAME["sat"].make(device) for _ in range(2))
    assert sat(*batch, class_prior=PRIOR) != other(*batch)
    assert torch.equal(sat.bank.rows, other.bank.rows)


def test_rows_without_a_value_stay_so_with_a_prior(device, batch):
    logits, labels, index = batch
    criterion = CASES_BY_NAME["alr"].make(device, reduction="none")
    before = rows_of(criterion)
    logits = logits.detach().clone()
    logits[0] = torch.nan
    labels[1] = -1
    loss, grad = criterion.loss_and_grad(logits, labels, index, class_prior=PRIOR)
    assert loss[0].isnan()
    assert grad[0].isnan().all()
    assert loss[1] == 0
    assert not grad[1].any()
    assert loss[2:].isfinite().all()
    assert criterion.bank.check() == 1
    assert torch.equal(rows_of(criterion)[INDEX[:2]], before[INDEX[:2]])


# History, and a bank that observes.


def train(criterion, device, epochs=4):
    """A linear model on separable data with some wrong labels."""
    g = torch.Generator().manual_seed(0)
    true = torch.arange(90) % 3
    x = torch.randn(90, 5, generator=g) + 4 * torch.eye(3, 5)[true]
    x, given, index = x.to(device), criterion.bank.given_labels.to(device), torch.arange(90)
    model = nn.Linear(5, 3).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    losses = []
    for epoch in range(epochs):
        criterion.set_epoch(epoch)
        for rows in index.split(30):
            rows = rows.to(device)
            logits = model(x[rows])
            losses.append(F.cross_entropy(logits.detach(), given[rows], reduction="none"))
            optimizer.zero_grad()
            criterion(logits, given[rows], rows).backward()
            optimizer.step()
    return torch.cat(losses).view(epochs, 90).mean(0)


def noisy_bank(device, **options):
    labels = torch.arange(90) % 3
    labels[::10] = (labels[::10] + 1) % 3
    return LabelBank.from_labels(labels, 3, device=device, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda bank: ALRLoss(bank, warmup_epochs=1, momentum=0.5, history=True),
        lambda bank: CrossEntropyLoss(bank=bank, momentum=0.5),
        lambda bank: ELRLoss(bank, history=True),
    ],
    ids=["alr", "ce", "elr"],
)
def test_a_loss_keeps_the_history(device, make):
    criterion = make(noisy_bank(device))
    losses = train(criterion, device, epochs=8)
    history = criterion.bank.history
    assert history.passes.tolist() == [8] * 90
    means = history.means(criterion.bank.refined_labels())
    close(means["given_loss"], losses, rtol=1e-4, atol=1e-5)
    changed = criterion.bank.refined_labels().cpu() != criterion.bank.given_labels
    # A label that was refined to another class has changed at least once.
    assert changed[::10].any()
    assert (means["changes"][changed] > 0).all()


def test_an_observing_bank_follows_the_predictions(device, batch):
    case = CASES_BY_NAME["alr"]
    observer = CrossEntropyLoss(bank=case.make(device).bank, momentum=0.7)
    follower = case.make(device)
    loss = observer(*batch)
    assert torch.equal(loss, CrossEntropyLoss()(*batch))
    (grad,) = torch.autograd.grad(loss, batch[0])
    (want,) = torch.autograd.grad(CrossEntropyLoss()(*batch), batch[0])
    assert torch.equal(grad, want)
    follower(*batch)
    assert torch.equal(observer.bank.rows, follower.bank.rows)
    assert observer.bank.history.passes.sum() == len(INDEX)
    with pytest.raises(ValueError, match="index: missing"):
        observer(*batch[:2])
    before = rows_of(observer)
    with torch.no_grad():
        observer(*batch)
    observer(*batch, update=False)
    assert torch.equal(rows_of(observer), before)
    assert observer.bank.history.passes.sum() == len(INDEX)


# Modules around a loss.


def test_data_parallel_is_refused_by_name(batch):
    case = CASES_BY_NAME["alr"]
    with pytest.raises(
        RuntimeError, match=r"torch.nn.DataParallel copies.*DistributedDataParallel"
    ):
        case.make()._replicate_for_data_parallel()
    CrossEntropyLoss()._replicate_for_data_parallel()
    # On the CPU it makes no copies.
    assert nn.DataParallel(case.make())(batch[0].cpu(), LABELS, INDEX).isfinite()


@every_loss
def test_a_pickled_loss_continues(device, batch, case):
    criterion = case.make(device)
    criterion(*batch)
    other = pickle.loads(pickle.dumps(criterion))
    assert torch.equal(other(*batch), criterion(*batch))
    if case.keeps_bank:
        assert torch.equal(rows_of(other), rows_of(criterion))


def test_two_losses_on_one_bank_stay_together(device, batch):
    bank = CASES_BY_NAME["alr"].make(device).bank
    pair = nn.ModuleDict(
        {"a": ALRLoss(bank, warmup_epochs=0), "b": SELCLoss(bank, warmup_epochs=0)}
    )
    other = copy.deepcopy(pair)
    assert other["a"].bank is other["b"].bank
    pair["a"](*batch)
    other.load_state_dict(pair.state_dict())
    assert torch.equal(rows_of(other["b"]), rows_of(pair["a"]))


@every_loss
def test_every_loss_compiles_whole(batch, case):
    logits = batch[0].detach().cpu()
    criterion, other = case.make(), case.make()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda z, *rest: criterion(z, *rest), fullgraph=True, backend="aot_eager"
    )
    for _ in range(2):
        one, two = (logits.clone().requires_grad_() for _ in range(2))
        loss, expected = compiled(one, LABELS, INDEX), other(two, LABELS, INDEX)
        close(loss.detach(), expected.detach(), rtol=1e-6, atol=1e-7)
        loss.backward()
        expected.backward()
        close(one.grad, two.grad, rtol=1e-6, atol=1e-7)
        if case.keeps_bank:
            close(rows_of(criterion), rows_of(other), rtol=1e-6, atol=1e-7)
