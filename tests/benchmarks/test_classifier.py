"""Tests of `benchmarks.classifier`: rows, resuming, tables."""

import json
from pathlib import Path

import pytest

from benchmarks import classifier
from benchmarks.tables.classifier import SECTIONS, digits_cells, study_cells

pytest.importorskip("rich", reason="benchmarks need the extra bench")
NOISE = "symmetric-0.4"


def test_the_grid_resumes_and_compares(tmp_path: Path, monkeypatch) -> None:
    kept = ("logistic regression, all labels", "ALRClassifier, linear")
    monkeypatch.setitem(classifier.GRIDS, "digits", (classifier.digits_row, kept, (0,)))
    words = ["--suite", "digits", "--noise", NOISE, "--threads", "1", "--folder", str(tmp_path)]
    words += ["--json", str(tmp_path / "rows.json")]
    classifier.main(words)
    rows = json.loads((tmp_path / "rows.json").read_text())
    logistic, linear = rows
    assert linear["label_accuracy_before"] == logistic["label_accuracy_before"] < 0.66
    assert linear["label_accuracy_after"] > 0.85
    assert linear["test_accuracy"] > logistic["test_accuracy"]
    assert linear["average_precision"] > 0.95
    classifier.main(words)
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    assert len((tmp_path / "digits" / "rows.jsonl").read_text().splitlines()) == 2
    assert [line[1] for line in digits_cells(rows)[1]] == [kept[0], f"`{kept[1]}`"]
    assert NOISE in SECTIONS["classifier_digits"].text(rows)


def test_clean_learning_finds_labels() -> None:
    row = classifier.digits_row("CleanLearning, logistic regression", NOISE, 0)
    assert row["label_accuracy_after"] > row["label_accuracy_before"] + 0.1
    assert row["average_precision"] > 0.8


def test_the_study_ranks_by_held_out_noisy_labels() -> None:
    row = classifier.study_row("linear", NOISE, 100)
    # At most the share of right labels, and 4 % that are random and right by chance.
    assert 0.45 < row["held_out_accuracy"] < 0.7 < row["test_accuracy"]
    rows = [row, row | {"variant": "other", "held_out_accuracy": 0.99, "test_accuracy": 0.1}]
    assert [line[0] for line in study_cells(rows)[1]] == ["other", "linear"]


def test_epochs_of_both_loops_take_time(capsys) -> None:
    rows = list(classifier.speed_rows("cpu", 0, samples=600))
    assert [row["variant"] for row in rows] == ["linear"] * 2 + [
        "fit of the digits, linear",
        "fit of the digits",
    ]
    for row in rows[:2]:
        assert 0 < row["loss_share"] < 1 and row["relative_speed"] > 0 and row["epochs"] == 3
    assert "600 x 1,280" in SECTIONS["classifier_speed"].text(rows)
