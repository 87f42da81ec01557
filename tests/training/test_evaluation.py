"""Accuracies of a test, compared with torchmetrics."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from alr_fast.data.layouts.base import new_index
from alr_fast.training.class_counts import ClassCounts
from alr_fast.training.evaluation import evaluate
from alr_fast.training.output.records import class_table, method_summary
from alr_fast.training.progress import class_counts_from_json, class_counts_to_json
from helpers.forged import bounded
from helpers.records import record

EXACT = torch.autocast("cpu", enabled=False)


def batches(samples, classes, *, present=None, broken=0, size=64):
    """Batches of logits, as images, and labels; -1 for unreadable images."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, present or classes, (samples,), generator=rng)
    logits = torch.randn(samples, classes, generator=rng)
    logits[torch.arange(samples), labels] += 1.5 * (labels % 3)
    labels[:broken] = -1
    pairs = zip(logits.split(size), labels.split(size), strict=True)
    index = SimpleNamespace(num_classes=classes)

    class Loader(list):
        device, split = torch.device("cpu"), SimpleNamespace(index=index)

    return Loader({"image": x, "label": y} for x, y in pairs), logits, labels


@pytest.mark.parametrize("classes", [2, 20, 21, 40])
def test_accuracies_are_those_of_torchmetrics(classes):
    loader, logits, labels = batches(500, classes, broken=7)
    result = evaluate(torch.nn.Identity(), loader, EXACT)

    def expected(**options):
        return MulticlassAccuracy(classes, ignore_index=-1, **options)(logits, labels)

    assert result.accuracy == pytest.approx(expected(average="micro").item(), abs=1e-6)
    assert result.balanced_accuracy == pytest.approx(expected(average="macro").item(), abs=1e-6)
    per_class = expected(average="none").tolist()
    assert result.classes.accuracies == pytest.approx(per_class, abs=1e-6)
    if classes <= 20:
        assert result.top5_accuracy is None
    else:
        top = expected(average="micro", top_k=5).item()
        assert result.top5_accuracy == pytest.approx(top, abs=1e-6)
        assert result.top5_accuracy > result.accuracy
    loss = torch.nn.functional.cross_entropy(logits[7:], labels[7:]).item()
    assert result.loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_equal_logits_are_not_among_the_best(value):
    loader, _, _ = batches(20, 30)
    for batch in loader:
        batch["image"] = torch.full_like(batch["image"], value)
    assert evaluate(torch.nn.Identity(), loader, EXACT).top5_accuracy == 0


def test_classes_without_test_samples_do_not_count():
    loader, logits, labels = batches(300, 10, present=4)
    result = evaluate(torch.nn.Identity(), loader, EXACT)
    assert result.classes.samples[4:] == [0] * 6
    right = logits.argmax(1) == labels
    shares = [right[labels == k].double().mean().item() for k in range(4)]
    assert result.balanced_accuracy == pytest.approx(sum(shares) / 4)
    assert all(math.isnan(share) for share in result.classes.accuracies[4:])


def test_without_readable_images_nothing_is_measured():
    loader, _, _ = batches(10, 3, broken=10)
    result = evaluate(torch.nn.Identity(), loader, EXACT)
    assert all(map(math.isnan, (result.loss, result.accuracy, result.balanced_accuracy)))


def test_many_classes_need_no_pairs_of_classes():
    loader, _, _ = batches(64, 20_000, size=32)
    with bounded(gigabytes=0.5):  # all pairs would need 3.2 GB
        result = evaluate(torch.nn.Identity(), loader, EXACT)
    assert sum(result.classes.samples) == 64


COUNTS = {"test": ClassCounts([10, 0, 4], [9, 0, 1])}


def test_classes_in_summary_and_table():
    names = ("cat", "=1+1", "dog")
    summary = json.loads(json.dumps(method_summary([record(1)], None, COUNTS, names)))
    assert summary["class_accuracy_last"] == {"test": [0.9, None, 0.25]}
    assert list(summary["worst_classes"].items()) == [("dog", 0.25), ("cat", 0.9)]
    index = new_index(["a", "b", "c"], torch.tensor([0, 2, 2]).numpy(), names)
    assert class_table(index, COUNTS) == {
        "class": [0, 1, 2],
        "name": list(names),
        "train_samples": [1, 0, 2],
        "test_samples": [10, 0, 4],
        "test_accuracy": [0.9, "", 0.25],
    }
    unknown = method_summary([record(1)], None)  # of a run that an earlier version began
    assert (unknown["class_accuracy_last"], unknown["worst_classes"]) == ({}, {})


def test_counts_survive_a_checkpoint():
    saved = json.loads(json.dumps({"class_counts": class_counts_to_json({"alr": COUNTS})}))
    assert class_counts_from_json(saved) == {"alr": COUNTS}
    assert class_counts_from_json({}) == {}


@pytest.mark.parametrize(
    "sets",
    [
        [1],
        {"test": [1]},
        {"test": {"samples": [1], "correct": [2]}},
        {"test": {"samples": [1, 2], "correct": [1]}},
        {"test": {"samples": [True], "correct": [0]}},
        {"test": {"samples": [1.5], "correct": [0]}},
        {"test": {"samples": [-1], "correct": [-2]}},
        {"test": {"samples": [10**400], "correct": [0]}},
        {"test": {"samples": "1", "correct": "1"}},
        {"test": {"samples": [1]}},
    ],
)
def test_other_counts_are_refused(sets):
    with pytest.raises((AttributeError, TypeError, ValueError)):
        class_counts_from_json({"class_counts": {"alr": sets}})
