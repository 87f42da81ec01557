"""Multi-label targets through the two-class view."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alr_fast import ALRLoss
from alr_fast.losses import CrossEntropyLoss
from alr_fast.losses.multilabel import multilabel_bank, two_class_view

TARGETS = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]])


def test_cross_entropy_of_the_view_is_binary_cross_entropy():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = F.binary_cross_entropy_with_logits(logits, TARGETS.float())
    for targets in (TARGETS, TARGETS.float(), TARGETS.numpy(), TARGETS.bool().int()):
        loss = CrossEntropyLoss()(*two_class_view(logits, targets))
        torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, logits)[0])


def test_unknown_entries_and_samples_are_ignored():
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    targets = TARGETS[:2].clone()
    targets[0, 1] = -1
    rows = CrossEntropyLoss(reduction="none")(*two_class_view(logits, targets))
    assert rows.view(2, 3)[0, 1] == 0
    _, _, index = two_class_view(logits, targets, [2, -1])
    assert index.tolist() == [6, 7, 8, -1, -1, -1]


def test_wrong_labels_of_a_multilabel_set_are_found():
    g = torch.Generator().manual_seed(0)
    truth = torch.rand(400, 4, generator=g) < 0.4
    x = torch.randn(400, 16, generator=g)
    x[:, :4] += 5 * truth - 2
    given = truth ^ (torch.rand(400, 4, generator=g) < 0.15)
    bank = multilabel_bank(given.long())
    criterion = ALRLoss(bank, warmup_epochs=5, momentum=0.8)
    model = torch.nn.Linear(16, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for epoch in range(20):
        criterion.set_epoch(epoch)
        for rows in torch.randperm(400, generator=g).split(50):
            optimizer.zero_grad()
            criterion(*two_class_view(model(x[rows]), given[rows].long(), rows)).backward()
            optimizer.step()
    refined = bank.refined_labels().view(400, 4).bool()
    assert (given == truth).float().mean() < 0.87
    assert (refined == truth).float().mean() > 0.97


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (TARGETS[:, :2], r"targets of shape \(4, 2\): must have the shape of the logits"),
        (TARGETS[0], r"targets of shape \(3,\): must have shape \[samples, labels\]"),
        (TARGETS * 0.5, "targets: must be 0 or 1, not soft"),
    ],
)
def test_wrong_targets_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        two_class_view(torch.zeros(4, 3), targets)


@pytest.mark.parametrize(
    "form",
    [
        Tensor.bool,
        Tensor.float,
        Tensor.numpy,
        lambda t: t.bool().numpy(),
        lambda t: t.float().numpy(),
        Tensor.tolist,
    ],
)
def test_targets_of_any_form(form):
    targets = torch.tensor([[0, 1], [1, 1], [0, 0]])
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    expected = F.binary_cross_entropy_with_logits(logits, targets.float())
    view = two_class_view(logits, form(targets))
    torch.testing.assert_close(CrossEntropyLoss()(*view), expected)
    assert torch.equal(multilabel_bank(form(targets)).given_labels, targets.flatten())


def test_floating_point_targets_compile_and_soft_ones_are_refused():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(logits, targets):
        return CrossEntropyLoss()(*two_class_view(logits, targets))

    logits, targets = torch.zeros(3, 2), torch.tensor([[0.0, 1], [1, 1], [0, 0]])
    torch.testing.assert_close(loss(logits, targets), torch.tensor(2.0).log())
    with pytest.raises(IndexError, match=r"labels\[0\] is 2"):
        loss(logits, targets * 0.5 + 0.1)
