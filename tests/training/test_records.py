import pytest
import torch

from alr_fast.training.output.records import Histogram, method_summary
from helpers.records import record


def test_summary_adds_up_the_epochs():
    history = [
        record(e, test_accuracy=acc, skipped_steps=e, samples_per_second=100.0 * e, seconds=2.0)
        for e, acc in enumerate([0.5, 0.9, 0.9, 0.7], start=1)
    ]
    result = method_summary(history, 0.6)
    assert (result["test_accuracy_last"], result["test_accuracy_best"]) == (0.7, 0.9)
    assert (result["best_epoch"], result["label_accuracy_before"]) == (2, 0.6)
    assert (result["skipped_steps"], result["seconds"]) == (10, 8.0)
    assert result["samples_per_second"] == pytest.approx(250.0)


def test_probabilities_are_counted():
    values = torch.tensor([[0.0, 0.24, 0.25], [1.0, 1.0001, float("nan")]], dtype=torch.bfloat16)
    histogram = Histogram.of_probabilities(values, bins=4)
    assert histogram == Histogram([2, 1, 0, 2], [0.0, 0.25, 0.5, 0.75, 1.0])
    assert Histogram.of_probabilities(torch.empty(0), bins=2).counts == [0, 0]


def test_histograms_of_processes_add_up():
    edges = [0.0, 0.5, 1.0]
    assert Histogram([1, 2], edges) + Histogram([10, 20], edges) == Histogram([11, 22], edges)
    with pytest.raises(ValueError, match="different bins"):
        Histogram([1, 2], edges) + Histogram([1, 2], [0.0, 0.4, 1.0])
    with pytest.raises(ValueError, match="2 bins need one more edge, not 2"):
        Histogram([1, 2], [0.0, 1.0])
