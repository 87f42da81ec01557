"""What every adapter does at the start of a training."""

import warnings

import pytest
import torch

from alr_fast.integrations.progress import start_training
from alr_fast.losses import CrossEntropyLoss, ELRLoss
from helpers.adapter_workers import new_criterion


def told(criterion, epochs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start_training(criterion, epochs, name="epochs")
    return [str(warning.message) for warning in caught]


def test_the_advice_leaves_the_loss_as_it_is():
    criterion = new_criterion()
    (text,) = told(criterion, 6)
    assert text.startswith("6 epochs cannot change a label")
    assert text.endswith("; pass epochs 8 or more, or momentum 0.87 or less")
    assert criterion.momentum == 0.9 and (criterion.bank.rows.amax(1) == 1).all()


@pytest.mark.parametrize("epochs", [None, -1, 0.5, float("inf"), 8])
def test_a_length_that_suffices_or_is_unknown(epochs):
    assert told(new_criterion(), epochs) == []


def test_a_bank_that_was_refined_or_starts_at_zero():
    refined = new_criterion()
    refined.bank.rows.mul_(0.6).add_(0.1)
    bank = new_criterion().bank
    zero = ELRLoss(type(bank).from_labels(bank.given_labels, bank.num_classes, one_hot=False))
    assert told(refined, 2) == told(zero, 1) == told(CrossEntropyLoss(), 1) == []
    assert len(told(CrossEntropyLoss(bank=bank), 3)) == 1
    assert torch.equal(bank.rows.argmax(1), bank.given_labels)
