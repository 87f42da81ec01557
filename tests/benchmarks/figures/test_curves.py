"""Figures of memorisation and shares."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from benchmarks.figures import __main__ as figures
from benchmarks.figures import curves, runs, style
from helpers.finished_runs import (
    EPOCHS,
    assert_png,
    change_metrics,
    column,
    metrics,
    percent,
    summary,
)

pytest.importorskip("timm", reason="training needs the extra train")


def test_memorisation_draws_the_accuracies_of_the_metrics(
    run: Path, out: Path, capsys: pytest.CaptureFixture
) -> None:
    path = out / "figure.png"
    assert figures.main(["memorisation", str(run), "--output", str(path)]) == 0
    assert_png(path)
    (line,) = capsys.readouterr().out.splitlines()
    last = metrics(run, "ce")[-1]
    before = summary(run)["methods"]["ce"]["label_accuracy_before"]
    for shown in (float(last["train_accuracy"]), float(last["test_accuracy"]), before):
        assert percent(shown) in line
    assert line.startswith(f"ce, symmetric 40 %: after epoch {EPOCHS} ")


@pytest.mark.parametrize("method", ["ce", "alr"])
def test_memorisation_lines_are_in_percent(run: Path, method: str) -> None:
    series = runs.read_metrics(runs.open_run(run), method, curves.MEMORISATION)
    assert list(series["epoch"]) == list(range(1, EPOCHS + 1))
    for name in ("train_accuracy", "test_accuracy"):
        assert (series[name] == column(run, method, name)).all()
    figure = curves.draw_memorisation(series, 0.64, title="title")
    (axes,) = figure.axes
    training, test, right = axes.lines
    assert list(training.get_xdata()) == list(range(1, EPOCHS + 1))
    np.testing.assert_allclose(training.get_ydata(), 100 * series["train_accuracy"])
    np.testing.assert_allclose(test.get_ydata(), 100 * series["test_accuracy"])
    np.testing.assert_allclose(right.get_ydata(), 64)
    assert axes.get_ylabel() == "accuracy (%)"
    assert "while training" in axes.get_title()
    # Without true labels this line is missing.
    assert len(curves.draw_memorisation(series, None, title="").axes[0].lines) == 2


def test_memorisation_names_the_best_epoch(
    broken_run: Callable, out: Path, capsys: pytest.CaptureFixture
) -> None:
    def fall(copy: Path) -> None:
        rows = metrics(copy, "ce")
        with (copy / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row, accuracy in zip(rows, (0.5, 0.75, 0.25), strict=True):
                writer.writerow({**row, "test_accuracy": accuracy})

    copy = broken_run(fall)
    assert figures.main(["memorisation", str(copy), "--output", str(out / "f.png")]) == 0
    assert "test accuracy 25.0 %; best 75.0 % in epoch 2" in capsys.readouterr().out


def test_shares_are_those_of_the_metrics(
    run: Path, out: Path, capsys: pytest.CaptureFixture
) -> None:
    path = out / "figure.png"
    assert figures.main(["shares", str(run), "--output", str(path)]) == 0
    assert_png(path)
    (line,) = capsys.readouterr().out.splitlines()
    for method in ("ce", "alr"):
        epochs, groups = curves.share_series(runs.open_run(run), method)
        assert list(epochs) == list(range(1, EPOCHS + 1))
        right, wrong = groups.values()
        assert (right["correct"] == column(run, method, "clean_correct")).all()
        assert (wrong["correct"] == column(run, method, "mislabelled_correct")).all()
        assert (wrong["memorised"] == column(run, method, "mislabelled_memorised")).all()
        assert list(right) == ["correct", "incorrect"]
        assert list(wrong) == ["correct", "memorised", "incorrect"]
        for shares in (right, wrong):
            np.testing.assert_allclose(sum(shares.values()), 1)
            assert all((values >= 0).all() for values in shares.values())
            for name, values in shares.items():
                assert f"{percent(values[-1])} {name}" in line.split(f"{method}: ")[1]


def test_shares_of_known_predictions(
    broken_run: Callable, out: Path, capsys: pytest.CaptureFixture
) -> None:
    known = {"clean_correct": "0.9", "mislabelled_correct": "0.1", "mislabelled_memorised": "0.65"}
    copy = broken_run(change_metrics(**known))
    words = ["shares", str(copy), "--methods", "alr", "--output", str(out / "f.png")]
    assert figures.main(words) == 0
    assert (
        "alr: samples with a right label 90.0 % correct, 10.0 % incorrect, mislabelled samples "
        "10.0 % correct, 65.0 % memorised, 25.0 % incorrect" in capsys.readouterr().out
    )


def test_no_share_is_below_zero(broken_run: Callable) -> None:
    copy = broken_run(change_metrics(mislabelled_correct="0.9", mislabelled_memorised="0.1"))
    assert 1 - 0.9 - 0.1 < 0  # in binary
    _, groups = curves.share_series(runs.open_run(copy), "ce")
    assert (groups["mislabelled samples"]["incorrect"] == 0).all()


@pytest.mark.parametrize("epochs", [1, 4])
def test_shares_are_stacked(epochs: int) -> None:
    x = np.linspace(0.1, 0.4, epochs)
    right = {"correct": x, "incorrect": 1 - x}
    wrong = {"correct": x, "memorised": x / 2, "incorrect": 1 - 1.5 * x}
    groups = {"samples with a right label": right, "mislabelled samples": wrong}
    numbers = np.arange(1.0, epochs + 1)
    figure = curves.draw_shares({m: (numbers, groups) for m in ("ce", "alr", "sat")}, title="t")
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes[:3]] == ["ce", "alr", "sat"]
    assert "while training" in figure.get_suptitle()
    colors = {"correct": style.BLUE, "memorised": style.ORANGE, "incorrect": style.GREY}
    for row, (group, shares) in enumerate(groups.items()):
        assert figure.axes[3 * row].get_ylabel() == f"{group} (%)"
        for axes in figure.axes[3 * row : 3 * row + 3]:
            lower = np.zeros(epochs)
            for area, (name, values) in zip(axes.collections, shares.items(), strict=True):
                assert to_hex(area.get_facecolor()[0]) == colors[name]
                (outline,) = area.get_paths()
                for epoch in range(epochs):
                    # Just inside and outside of both edges, in the middle of the epoch.
                    low, high = 100 * lower[epoch], 100 * (lower + values)[epoch]
                    heights = (low - 0.1, low + 0.1, high - 0.1, high + 0.1)
                    inside = [outline.contains_point((epoch + 1, y)) for y in heights]
                    assert inside == [False, True, True, False]
                lower = lower + values
            np.testing.assert_allclose(lower, 1)
            assert axes.get_xlim() == (0.5, epochs + 0.5)
