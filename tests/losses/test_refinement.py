"""Whether a training can change a label: the rule of each loss against its own bank."""

import warnings

import pytest
import torch

from alr_fast import ALRLoss, LabelBank
from alr_fast.losses import (
    CrossEntropyLoss,
    ELRLoss,
    SATLoss,
    SELCLoss,
    refinement_problem,
)

NAMES = "epochs", "momentum"


def made(loss, **options):
    """A loss with a bank of two samples of class 2 of 3."""
    one_hot = not loss.bank_at_zero
    return loss(LabelBank.from_labels([2, 2], 3, one_hot=one_hot), **options)


def train(criterion, epochs, batches=1):
    """Trains on predictions that are certain of class 0."""
    logits = torch.tensor([[60.0, 0, 0]] * 2)
    for epoch in range(epochs):
        criterion.set_epoch(epoch)
        for batch in range(batches):
            if getattr(criterion, "warmup_unit", "") == "step":
                criterion.set_step(epoch * batches + batch)
            for rows in torch.arange(2).split(2 // batches):
                criterion(logits[rows], torch.full((len(rows),), 2), rows)
    return criterion


@pytest.mark.parametrize("loss", [SELCLoss, ALRLoss, SATLoss])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("warmup", [0, 0.5, 2, 9])
def test_the_share_is_what_the_bank_still_has_of_the_given_label(loss, momentum, warmup):
    for epochs in (1, 2, 3, 7):
        criterion = train(made(loss, momentum=momentum, warmup_epochs=warmup), epochs)
        share = criterion.given_share(epochs)
        assert criterion.bank.rows[:, 2].tolist() == pytest.approx([share] * 2, abs=1e-6)
        assert criterion.bank.given_share == share


def test_the_share_of_a_bank_that_starts_at_zero():
    criterion = made(ELRLoss, momentum=0.9)
    assert (criterion.given_share(0), criterion.given_share(1)) == (1, 0)
    assert made(ELRLoss, momentum=1.0).given_share(5) == 1
    assert train(criterion, 1).bank.refined_labels().tolist() == [0, 0]
    assert criterion.bank.given_share == 0


@pytest.mark.parametrize("one_hot", [True, False])
def test_the_share_of_a_bank_that_only_observes(one_hot):
    for momentum, epochs in ((0.5, 1), (0.9, 3), (1.0, 2)):
        bank = LabelBank.from_labels([2, 2], 3, one_hot=one_hot)
        train(CrossEntropyLoss(bank=bank, momentum=momentum), epochs)
        row = bank.rows[0] if one_hot else bank.rows[0] / bank.rows[0].sum()
        own = float(row[2]) if row.isfinite().all() else 1.0  # a row of zeros
        assert bank.given_share == pytest.approx(own, abs=1e-6)


def test_the_share_is_unknown_where_steps_are_counted_or_no_rule_is_defined():
    assert made(ALRLoss, warmup_steps=1).given_share(5) is None
    assert made(ALRLoss, warmup_steps=0).given_share(5) == 0.9**5
    assert train(made(ALRLoss, warmup_steps=3), 2).bank.given_share is None
    assert CrossEntropyLoss().given_share(5) is None
    assert LabelBank.from_labels([0], 2).given_share is None


def test_a_warm_up_that_is_no_number_of_epochs():
    for warmup in (float("inf"), float("nan")):
        assert made(ALRLoss, warmup_epochs=warmup).given_share(5) == 1


def test_shards_and_copies_of_a_bank_know_the_share():
    bank = train(made(ALRLoss, warmup_epochs=0), 3).bank
    assert bank.shard([1]).given_share == bank.given_share == 0.9**3


@pytest.mark.parametrize("loss", [SELCLoss, ALRLoss, SATLoss, ELRLoss])
@pytest.mark.parametrize("momentum", [0.05, 0.5, 0.6, 0.9, 0.95])
def test_the_advice_is_the_first_training_that_changes_a_label(loss, momentum):
    """Compared with trainings on the predictions that change a label soonest."""

    def make(epochs, changed):
        options = {} if loss is ELRLoss else {"warmup_epochs": max(epochs // 6, 1)}
        return made(loss, momentum=momentum if changed is None else changed, **options)

    def changes(epochs, changed=None):
        return train(make(epochs, changed), epochs).bank.refined_labels().tolist() == [0, 0]

    for epochs in (1, 2, 3, 6, 9):
        problem = refinement_problem(make, epochs, names=NAMES)
        # In a tie the lowest class wins: at exactly one half there is nothing to count on.
        tie = make(epochs, None).given_share(epochs) == 0.5
        assert (problem is None) == (changes(epochs) and not tie)
        if problem is None:
            continue
        words = problem.rpartition("; pass ")[2].replace(",", "").split()
        enough = int(words[words.index("epochs") + 1])
        assert changes(enough)
        assert not changes(enough - 1) or make(enough - 1, None).given_share(enough - 1) == 0.5
        if "momentum" in words:
            low = float(words[words.index("momentum") + 1])
            assert changes(epochs, low) and make(epochs, low + 0.01).given_share(epochs) >= 0.5
        else:
            assert epochs == 1  # it is all warm-up


def test_the_text_of_the_advice():
    def make(epochs, momentum):
        return made(ALRLoss, momentum=0.9 if momentum is None else momentum, warmup_epochs=1)

    assert refinement_problem(make, 6, names=("--epochs", "--m")) == (
        "6 epochs cannot change a label: after them, each row of the label bank still is 59% the "
        "given label (a label can change below 50%); pass --epochs 8 or more, or --m 0.87 or less"
    )
    assert refinement_problem(make, 8, names=NAMES) is None

    def frozen(epochs, momentum):
        return made(ALRLoss, momentum=1.0, warmup_epochs=0)

    assert refinement_problem(frozen, 1, names=NAMES) == (
        "1 epoch cannot change a label: after it, each row of the label bank still is 100% the "
        "given label (a label can change below 50%)"
    )


def test_nothing_is_said_about_losses_without_a_rule():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refinement_problem(lambda *_: CrossEntropyLoss(), 1, names=NAMES) is None
        steps = made(ALRLoss, warmup_steps=1)
        assert refinement_problem(lambda *_: steps, 1, names=NAMES) is None
