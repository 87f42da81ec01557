"""From a loop of one's own to the list of wrong labels."""

import numpy as np
import pytest
import torch
from torch import nn

from alr_fast import ALRLoss, LabelBank
from alr_fast.labels import find_issues
from alr_fast.losses import CrossEntropyLoss, ELRLoss

CLASSES, SAMPLES = 4, 240


@pytest.fixture(scope="module")
def data():
    g = torch.Generator().manual_seed(0)
    true = torch.arange(SAMPLES) % CLASSES
    x = torch.randn(SAMPLES, 6, generator=g) + 4 * torch.eye(CLASSES, 6)[true]
    wrong = torch.rand(SAMPLES, generator=g) < 0.2
    given = torch.where(wrong, (true + torch.randint(1, CLASSES, (SAMPLES,), generator=g)), true)
    return x, given % CLASSES, true


def train(criterion, data, epochs=15):
    torch.manual_seed(0)
    x, given, _ = data
    model = nn.Linear(6, CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for epoch in range(epochs):
        criterion.set_epoch(epoch)
        for rows in torch.arange(SAMPLES).split(40):
            optimizer.zero_grad()
            criterion(model(x[rows]), given[rows], rows).backward()
            optimizer.step()


@pytest.mark.parametrize("method", ["alr", "ce"])
def test_the_wrong_labels_of_a_loop_are_listed(data, method, tmp_path):
    _, given, true = data
    bank = LabelBank.from_labels(given, CLASSES)
    if method == "alr":
        criterion = ALRLoss(bank, warmup_epochs=3, momentum=0.7, history=True)
    else:
        criterion = CrossEntropyLoss(bank=bank, momentum=0.7)
    train(criterion, data)
    names = ["ant", "bee", "cat", "dog"]
    issues = bank.issues(class_names=names, paths=[f"{i}.png" for i in range(SAMPLES)])
    wrong = (given != true).numpy()
    assert abs(issues.noise_rate - wrong.mean()) < 0.03
    assert wrong[np.argsort(-issues.scores)[: wrong.sum()]].mean() > 0.9
    table = issues.to_pandas()
    assert table.given_loss.notna().all()
    assert table.changes.max() > 0
    assert list(table.score) == sorted(table.score, reverse=True)
    assert issues.given_share == bank.given_share == 0.7 ** (12 if method == "alr" else 15)
    history = bank.history.means(bank.refined_labels())
    same = find_issues(given, bank.rows, history, given_share=bank.given_share)
    assert np.array_equal(same.scores, issues.scores)
    issues.to_csv(tmp_path / "issues.csv")
    assert (tmp_path / "issues.csv").read_text().count("\n") == SAMPLES + 1


def test_corrections_find_their_way_back(data):
    _, given, true = data
    bank = LabelBank.from_labels(given, CLASSES)
    train(ALRLoss(bank, warmup_epochs=3, momentum=0.7), data)
    found = np.flatnonzero(bank.issues().scores > 0.5)
    bank.correct_labels(found, bank.refined_labels()[found])
    assert (bank.given_labels == true).float().mean() > 0.97


def test_the_issues_stay_as_they_were(data):
    _, given, _ = data
    bank = LabelBank.from_labels(given, CLASSES)
    issues = bank.issues()
    bank.rows.zero_().add_(0.25)
    bank.correct_labels(torch.arange(3), (given[:3] + 1) % CLASSES)
    assert issues.columns()["given_probability"].tolist() == [1.0] * SAMPLES
    assert issues.labels.tolist() == given.tolist()


def test_the_bank_of_early_learning_regularisation(data):
    """Its rows start at zero, and their sums rise to one."""
    _, given, true = data
    bank = LabelBank.from_labels(given, CLASSES, one_hot=False)
    issues = bank.issues()
    assert np.isnan(issues.noise_rate) and "none has been refined" in issues.estimate_problem
    train(ELRLoss(bank, momentum=0.9), data, epochs=8)
    assert bank.rows.sum(1).max() < 0.6
    issues = bank.issues()
    wrong = (given != true).numpy()
    assert wrong[issues.order[: wrong.sum()]].mean() > 0.9


def test_rows_of_16_bits_whose_sums_drifted_are_read():
    torch.manual_seed(0)
    bank = LabelBank.from_labels(
        torch.zeros(8, dtype=torch.int64), num_classes=1000, dtype=torch.bfloat16
    )
    criterion = ALRLoss(bank, momentum=0.99, warmup_epochs=0)
    criterion.set_epoch(0)
    for _ in range(400):
        criterion.loss_and_grad(3 * torch.randn(8, 1000), bank.given_labels, torch.arange(8))
    assert bank.rows.float().sum(1).max() > 1.02  # the limit for float32
    assert len(bank.issues()) == 8


def test_a_share_holds_only_for_samples_that_were_trained_on_alike(data):
    _, given, true = data
    bank = LabelBank.from_labels(given, CLASSES)
    criterion = ALRLoss(bank, warmup_epochs=1, momentum=0.9, history=True)
    train(criterion, data, epochs=1)
    assert bank.issues().given_share is None  # the predictions of an untrained model
    train(criterion, data, epochs=6)  # seven epochs, as the history has counted
    assert bank.known_share(None) == 0.9**5 and bank.issues().given_share is None
    bank.history.passes -= 1
    issues = bank.issues()
    assert issues.given_share == 0.9**5 and issues.refined_share == 0
    assert abs(issues.noise_rate - (given != true).float().mean()) < 0.05
    bank.history.passes[:2] += 1  # two of 240 samples: nearly all are alike
    assert bank.issues().given_share == 0.9**5
    bank.history.passes[:20] += 1
    assert "too few epochs" in bank.issues().estimate_problem


def test_rows_that_did_not_start_from_the_given_labels_have_no_share(data):
    bank = LabelBank.from_labels(data[1], CLASSES)
    bank.rows.fill_(1 / CLASSES)
    bank.from_given = False
    train(ALRLoss(bank, warmup_epochs=1), data, epochs=3)
    assert bank.given_share is None and bank.shard([0, 5]).from_given is False
