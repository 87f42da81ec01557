"""The history of samples: an epoch that has not ended, ignored rows."""

import torch

from alr_fast.bank.history import SampleHistory


def test_an_epoch_that_has_not_ended_counts_if_labels_have_changed():
    given = torch.tensor([0, 1, 2])
    history = SampleHistory(given, torch.device("cpu"))
    history.end_epoch(torch.tensor([0, 2, 2]))
    assert history.means()["changes"].tolist() == [0, 1, 0]
    assert history.means(torch.tensor([0, 2, 2]))["changes"].tolist() == [0, 1, 0]
    assert history.means(torch.tensor([1, 2, 2]))["changes"].tolist() == [1, 2, 0]
    assert history.changes.tolist() == [0, 1, 0]  # nothing was recorded
