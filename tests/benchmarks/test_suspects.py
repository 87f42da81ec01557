"""Tests of `benchmarks.suspects`: trainings, rankings, tables."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import suspects
from benchmarks.suspects import FOLDS, Task, cleanlab_noise, cleanlab_scores, measure
from benchmarks.tables.suspects import OWN, SCORE, parts_cells, suspects_cells

NOISE = "symmetric-0.4"


def made(seed: int = 0, samples: int = 400, classes: int = 4) -> tuple[dict, list[dict]]:
    """A bank that has corrected most wrong labels, and correct predictions of folds."""
    rng = np.random.default_rng(seed)
    clean = rng.integers(classes, size=samples)
    given = np.where(rng.random(samples) < 0.3, rng.integers(classes, size=samples), clean)
    rows = 0.1 * rng.random((samples, classes)).astype(np.float32)
    rows[np.arange(samples), clean] += 1
    rows /= rows.sum(1, keepdims=True)
    own = rows[np.arange(samples), given]
    ids = np.arange(samples)
    bank = {
        "rows": rows,
        "ids": ids,
        "given": given,
        "clean": clean,
        "given_loss": -np.log(own),
        "changes": np.zeros(samples, np.int64),
        "given_share": np.array(0.0),
        "seconds": np.array(2.0),
    }
    parts = np.array_split(rng.permutation(samples), FOLDS)
    folds = [
        {"rows": rows[part], "ids": ids[part], "given": given[part], "seconds": np.array(1.0)}
        for part in parts
    ]
    return bank, folds


def test_rankings_are_of_the_wrong_labels() -> None:
    rows = measure(NOISE, 0, *made())
    assert {row["source"] for row in rows} == {
        OWN,
        "cleanlab, same probabilities",
        "cleanlab, cross-validated",
    }
    by_score = {(row["source"], row["score"]): row for row in rows}
    assert by_score[OWN, SCORE]["average_precision"] > 0.99
    assert by_score["cleanlab, cross-validated", "self_confidence"]["average_precision"] > 0.99
    for row in rows:
        assert row["training_seconds"] == (FOLDS * 1.0 if "cross" in row["source"] else 2.0)
        assert row["noise_rate_estimate"] == pytest.approx(row["noise_rate"], abs=0.06)
        assert row["transition_error"] < 0.15


def test_a_reversed_ranking_has_a_low_auroc() -> None:
    bank, folds = made()
    bank["rows"] = 1 - bank["rows"]
    bank["rows"] /= bank["rows"].sum(1, keepdims=True)
    found = {row["score"]: row for row in measure(NOISE, 0, bank, folds) if row["source"] == OWN}
    assert found["bank: given probability"]["auroc"] < 0.1


def test_folds_of_other_labels_are_an_error() -> None:
    bank, folds = made()
    folds[0]["given"] = folds[0]["given"][::-1]
    with pytest.raises(AssertionError):
        measure(NOISE, 0, bank, folds)


def test_issues_of_cleanlab_come_first_and_others_follow_by_score() -> None:
    bank, _ = made()
    given, p = bank["given"], bank["rows"].astype(float)
    scores = cleanlab_scores(given, p)
    rank = scores["find_label_issues, self_confidence"]
    issues = np.argsort(-rank)[: (given != p.argmax(1)).sum()]
    assert (given[issues] != p[issues].argmax(1)).all()
    behind = np.argsort(-rank)[len(issues) :]
    own = p[behind, given[behind]]
    assert (np.diff(own) >= 0).all()
    rate, matrix = cleanlab_noise(given, p)
    assert 0 < rate < 1 and matrix.sum(1) == pytest.approx(1)


def test_the_command_trains_each_fold_once_and_resumes(tmp_path: Path, capfd) -> None:
    words = ["--suite", "digits", "--noise", NOISE, "--seeds", "3", "--epochs", "1", "--jobs", "1"]
    words += ["--folder", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    suspects.main(words)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["suite"] for row in rows} == {"suspects_digits"}
    assert {(row["noise"], row["seed"], row["samples"]) for row in rows} == {(NOISE, 3, 1437)}
    folds = [np.load(tmp_path / "digits" / f"{Task(NOISE, 3, k).key}.npz") for k in range(FOLDS)]
    ids = np.concatenate([fold["ids"] for fold in folds])
    assert len(ids) == len(np.unique(ids)) == 1437
    for fold in folds:
        assert fold["rows"].sum(1) == pytest.approx(1, abs=1e-5)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "digits").glob("*.npz")}
    assert len(stamps) == FOLDS + 1
    suspects.main(words)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "digits").glob("*.npz")}
    assert json.loads((tmp_path / "rows.json").read_text())[0]["auroc"] == rows[0]["auroc"]


def test_tables_show_the_best_score_of_cleanlab_and_one_score_of_alr_fast() -> None:
    rows = [row for seed in (0, 1) for row in measure(NOISE, seed, *made(seed))]
    for row in rows:
        row["average_precision"] = {"margin": 0.9}.get(row["score"].split(": ")[-1], 0.5)
        if row["score"] == "normalized_margin":
            row["average_precision"] = 0.7 if row["seed"] else 0.8
    names, lines = suspects_cells(rows)
    assert [line[:3] for line in lines] == [
        (NOISE, OWN, "0.500 ± 0.000"),
        (NOISE, "cleanlab, same probabilities", "**0.750 ± 0.071**"),
        (NOISE, "cleanlab, cross-validated", "**0.750 ± 0.071**"),
    ]
    assert all(len(line) == len(names) for line in lines)
    _, parts = parts_cells(rows)
    assert (OWN, "bank: margin", "0.9000") in parts


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--suite", "digits", "--data-root", "x"], "brings its own data"),
        (["--suite", "cifar10"], "pass --data-root DIR"),
        (["--suite", "digits", "--json", "no/such/rows.json"], "no such folder"),
    ],
)
def test_wrong_arguments(words: list[str], why: str, capsys) -> None:
    with pytest.raises(SystemExit):
        suspects.main(words)
    assert why in capsys.readouterr().err
