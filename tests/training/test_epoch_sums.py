"""Training figures of an epoch."""

import math

import torch

from alr_fast.training.epoch_sums import EpochResult, EpochSums

CPU = torch.device("cpu")


def test_sums_of_a_long_epoch_are_exact():
    sums = EpochSums(CPU)
    sums.correct += 2**24  # above, float32 has no odd numbers
    sums.loss += 2.0**24
    given = torch.tensor([1])
    sums.add(torch.tensor(1.0), given, given, None)
    assert (sums.correct.item(), sums.loss.item()) == (2**24 + 1, 2**24 + 1)


def test_predictions_are_counted_by_the_kind_of_their_label():
    sums = EpochSums(CPU)
    given, clean = torch.tensor([0, 0, 1, 1, -1]), torch.tensor([0, 0, 2, 2, 0])
    sums.add(torch.tensor(math.nan), torch.tensor([0, 1, 2, 1, 0]), given, clean)
    sums.add(torch.tensor(3.0), torch.tensor([0, 0, 2]), torch.tensor([0, 0, 1]), clean[:3])
    sums.samples += 7
    result = EpochResult.from_sums(sums.values.tolist(), clean_labels=True)
    assert result.loss == 1.0  # of the micro-batch with a finite loss
    assert (result.accuracy, result.samples) == (4 / 7, 7)
    assert result.clean_correct == 3 / 4
    assert (result.mislabelled_correct, result.mislabelled_memorised) == (2 / 3, 1 / 3)


def test_an_epoch_without_samples_or_clean_labels():
    result = EpochResult.from_sums(EpochSums(CPU).values.tolist(), clean_labels=False)
    assert math.isnan(result.loss)
    assert (result.accuracy, result.samples, result.clean_correct) == (0, 0, None)
