"""Tests of runs with several seeds."""

import csv
import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from alr_fast.errors import UserError
from alr_fast.train import main
from alr_fast.training.config.command_line import parse
from alr_fast.training.output.averages import mean_row
from alr_fast.training.output.plot_seeds import curve
from alr_fast.training.output.seeds import SeedResults
from helpers.finished_runs import summary

SMALL = ["--data.limit", "200", "--data.test_limit", "100", "--optim.epochs", "2"]


# Options.


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        (["--seeds", "3"], [0, 1, 2]),
        (["--seeds", "2", "--seed", "7"], [7, 8]),
        (["--seed", "0,1,2"], [0, 1, 2]),
        (["--seed=4,9"], [4, 9]),
        (["--seeds", "[5, 3]"], [5, 3]),
        (["--seeds", "null"], None),
        (["--seed", "3"], None),
    ],
)
def test_seeds_are_a_number_or_a_list(words, seeds):
    assert parse(words).seeds == seeds


@pytest.mark.parametrize(
    "words",
    [
        ["--seeds", "0"],
        ["--seeds", "1000000000"],
        ["--seeds", "some"],
        ["--seeds", "1.5"],
        ["--seed", "1,1"],
        ["--seed", "1,-2"],
        ["--seed", ","],
    ],
)
def test_wrong_seeds_are_refused(words):
    with pytest.raises(UserError, match="--seeds"):
        parse(words)


def test_a_run_that_is_named_has_one_seed(tmp_path):
    with pytest.raises(UserError, match="pass --resume auto"):
        parse(["--seeds", "2", "--resume", str(tmp_path)])


def test_the_noise_follows_the_seed_unless_it_has_its_own():
    following = parse(["--seeds", "3"])
    assert [following.with_seed(seed).noise.seed for seed in (1, 2)] == [1, 2]
    assert parse(["--seeds", "3", "--noise.seed", "9"]).with_seed(2).noise.seed == 9


def test_the_configuration_of_a_seed_is_that_of_a_run_with_it():
    assert parse(["--seeds", "3"]).with_seed(2) == parse(["--seed", "2"])


def test_a_figure_that_a_seed_lacks_has_no_mean():
    rows = [
        {"test_accuracy_last": 0.5, "seconds": 1.0},
        {"test_accuracy_last": None, "seconds": 3.0},
    ]
    assert mean_row(rows) == {"seeds": 2, "seconds": 2.0, "seconds_std": pytest.approx(2**0.5)}


# Runs.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of runs with the seeds 3 and 5, and the printed events."""
    runs = tmp_path_factory.mktemp("seeds")
    words = ["--seed", "3,5", "--runs", str(runs), *SMALL]
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda text, **_: lines.append(text))
        assert main([*words, "--log.show", "json"]) == 0
    return runs, words, [json.loads(line) for line in lines]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "seeds.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_seed_is_an_ordinary_run(trained, tmp_path):
    runs, *_ = trained
    (folder,) = runs.glob("*-digits-seeds")
    of_ce = [row for row in rows(folder) if row["method"] == "ce" and row["run"]]
    assert [row["seed"] for row in of_ce] == ["3", "5"]
    assert [summary(runs / row["run"])["seed"] for row in of_ce] == [3, 5]
    assert main(["--seed", "5", "--runs", str(tmp_path), "--log.show", "quiet", *SMALL]) == 0
    alone = (tmp_path / "latest" / "alr.safetensors").read_bytes()
    assert (runs / of_ce[1]["run"] / "alr.safetensors").read_bytes() == alone


def test_table_and_event_have_means_and_deviations(trained):
    runs, _, events = trained
    (folder,) = runs.glob("*-digits-seeds")
    event = events[-2] if events[-1]["event"] == "message" else events[-1]
    assert event["event"] == "seeds"
    assert event["seeds"] == [3, 5]
    for method in ("ce", "alr"):
        own = [row for row in rows(folder) if row["method"] == method]
        *each, mean = own
        assert mean["seed"] == "mean"
        for figure in ("test_accuracy_last", "label_accuracy_after"):
            values = [float(row[figure]) for row in each]
            assert float(mean[figure]) == pytest.approx(statistics.fmean(values))
            assert float(mean[f"{figure}_std"]) == pytest.approx(statistics.stdev(values))
            assert event["methods"][method][figure] == pytest.approx(statistics.fmean(values))
            if method == "ce":
                assert values[0] != values[1]


def test_only_a_run_with_one_seed_lists_suspicious_labels(trained, tmp_path, capsys):
    _, _, events = trained
    assert [e["samples"] for e in events if e["event"] == "suspects"] == [[], []]
    words = ["--methods", "alr", "--log.show", "quiet", *SMALL]
    assert main(["--seed", "3,5", "--runs", str(tmp_path), *words]) == 0
    output = capsys.readouterr().out
    assert "Most suspicious" not in output
    assert output.count("; to review them: ") == 2


def test_finished_seeds_are_not_trained_again(trained, capsys):
    runs, words, _ = trained
    before = {path.name for path in runs.iterdir()}
    words = ["3,5,8" if word == "3,5" else word for word in words]
    assert main([*words, "--resume", "auto", "--log.show", "lines"]) == 0
    new = {path.name for path in runs.iterdir()} - before
    assert len(new) == 2  # the run of seed 8, the table
    output = capsys.readouterr().out
    assert output.count("has already finished") == 2
    assert "Mean of 3 seeds" in output
    assert " ± " in output


def test_the_plot_has_a_curve_with_a_band_for_each_method(trained):
    runs, *_ = trained
    (folder, *_) = sorted(runs.glob("*-digits-seeds"))
    assert (folder / "metrics.png").stat().st_size > 10_000
    records = [
        [{"method": "a", "epoch": "1", "test_accuracy": value} for value in (text,)]
        for text in ("0.5", "0.75")
    ]
    epochs, mean, deviation = curve(records, "a", "test_accuracy")
    assert (epochs.tolist(), mean.tolist()) == ([1], [62.5])
    assert deviation[0] == pytest.approx(100 * statistics.stdev([0.5, 0.75]))
    assert np.all(curve(records[:1], "a", "test_accuracy")[2] == 0)


DAMAGED = {
    "no method": '{"epochs": 2, "methods": {}}',
    "no table": '{"epochs": 2, "methods": [1]}',
    "no figures": '{"epochs": 2, "methods": {"ce": "x", "alr": "x"}}',
    "a text": '{"epochs": 2, "methods": {"ce": {"seconds": "=x"}, "alr": {}}}',
    "NaN": '{"epochs": 2, "methods": {"ce": {"seconds": NaN}, "alr": {}}}',
    "epochs": '{"epochs": "2", "methods": {"ce": {}, "alr": {}}}',
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_summaries_of_strangers(tmp_path, name):
    good = '{"epochs": 2, "methods": {"ce": {"seconds": 1.5}, "alr": {}}}'
    for run, text in (("a", good), ("b", DAMAGED[name])):
        (tmp_path / run).mkdir()
        (tmp_path / run / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"b\b.*; train .*b again"):
        SeedResults.read([0, 1], [tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("lines", ["a,b\n1,2\n", "method,epoch,test_accuracy\nce,x,y\n"])
def test_the_table_is_complete_without_a_plot(tmp_path, lines):
    (tmp_path / "metrics.csv").write_text(lines)
    results = SeedResults([0], [tmp_path], {"ce": [{"seconds": 1.5}]}, 2)
    warnings = []
    folder = results.save(tmp_path / "runs", "x", warn=warnings.append)
    assert [path.name for path in folder.iterdir()] == ["seeds.csv"]
    assert len(warnings) == 1 and warnings[0].endswith("; the seeds have no plot")
