import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from alr_fast.training.output.records import (
    EpochRecord,
    Histogram,
    method_summary,
    plot_records,
)
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


def test_accuracy_that_was_not_measured_is_null():
    untested = record(1, test_loss=None, test_accuracy=None, validation_accuracy=0.5)
    result = json.loads(json.dumps(method_summary([untested], None), allow_nan=False))
    names = ("test_accuracy_last", "test_accuracy_best", "best_epoch")
    assert [result[name] for name in names] == [None] * 3
    assert result["validation_accuracy_last"] == 0.5


@pytest.mark.parametrize(
    ("loss", "accuracy", "again"),
    [(None, None, None), (math.inf, 0.1, math.nan), (math.nan, 0.1, math.nan), (0.5, 0.1, 0.5)],
)
def test_records_survive_json(loss, accuracy, again):
    saved = json.dumps(record(1, test_loss=loss, test_accuracy=accuracy).to_json(), allow_nan=False)
    loaded = EpochRecord.from_json(json.loads(saved))
    assert loaded.test_accuracy == accuracy
    assert (
        loaded.test_loss == pytest.approx(again, nan_ok=True)
        if again is not None
        else (loaded.test_loss is None)
    )


def colour(picture, rgb):
    """Pixels of about this colour."""
    distance = np.abs(np.asarray(picture.convert("RGB")).astype(int) - rgb).max(2)
    return int((distance < 40).sum())


BLUE, ORANGE, GREEN = (31, 119, 180), (255, 127, 14), (44, 160, 44)  # the first of matplotlib


def plotted(path, methods, epochs=60):
    """The plot of methods with the same values at every epoch; ``methods``: name -> warm-up."""
    records = [
        record(epoch, name, test_accuracy=epoch / epochs, warming_up=epoch <= warmup)
        for name, warmup in methods.items()
        for epoch in range(1, epochs + 1)
    ]
    plot_records(records, path)
    return Image.open(path)


@pytest.mark.parametrize("epochs", [5, 60])
def test_methods_with_equal_values_are_all_visible(tmp_path, epochs):
    """At half size, too: each has a third of the pixels of the widest, at least."""
    picture = plotted(tmp_path / "a.png", {"ce": 0, "alr": 0, "sat": 0}, epochs)
    half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
    # Without the legend below.
    shown = half.crop((0, 0, half.width, int(0.8 * half.height)))
    counts = [colour(shown, rgb) for rgb in (BLUE, ORANGE, GREEN)]
    assert min(counts) > 150 and 3 * min(counts) > max(counts)


def test_the_end_of_a_warm_up_is_marked(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    lines = []
    draw = Axes.axvline
    monkeypatch.setattr(
        Axes, "axvline", lambda self, x, **o: lines.append((x, o["label"])) or draw(self, x, **o)
    )
    plotted(tmp_path / "a.png", {"ce": 0, "alr": 10, "sat": 10, "selc": 20})
    both = [(10.5, "end of warm-up (alr, sat)"), (20.5, "end of warm-up (selc)")]
    assert lines == 2 * both
    lines.clear()
    plotted(tmp_path / "a.png", {"ce": 0})
    assert lines == []


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
