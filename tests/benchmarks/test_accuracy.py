"""Tests of `benchmarks.accuracy`, `.study` and `.transitions`: cells, resuming, tables."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from alr_fast.noise import inject
from alr_fast.training.config.command_line import parse
from alr_fast.training.methods import METHODS
from benchmarks import accuracy, study, transitions
from benchmarks.harness import grid
from benchmarks.harness.averages import mean_rows
from benchmarks.harness.grid import Cell, CellFailed, read_rows, run_cell, run_grid, split_noise
from benchmarks.report import report
from benchmarks.tables import accuracy as report_accuracy
from helpers.benchmark_rows import CPU

TINY = ("--recipe", "digits", "--data.limit", "100", "--data.test_limit", "40")
TINY += ("--optim.epochs", "2", "--optim.batch_size", "50")


def cell(name="ce", noise="symmetric-0.4", seed=0, methods=("ce",), options=TINY):
    return Cell(name, noise, seed, methods, options)


def grid_of(cells, folder, **options):
    return run_grid(
        cells, folder, **{"jobs": 1, "device": "cpu", "threads": 1, "log": lambda text: None,
                          **options}
    )  # fmt: skip


def row_of(method="ce", noise="symmetric-0.4", seed=0, **figures):
    values = {"test_accuracy_last": 0.8, "test_accuracy_best": 0.9, "label_accuracy_before": 0.64,
              "label_accuracy_after": 0.64, "validation_accuracy_last": None, "seconds": 3.0,
              "noise_rate": 0.36, "epochs": 60, "train_samples": 1437}  # fmt: skip
    named = {"suite": "accuracy_digits", "method": method, "noise": noise, "seed": seed}
    return {**named, **values, **figures, "environment": CPU}


@pytest.mark.parametrize("name", accuracy.SUITES)
def test_every_cell_of_a_suite_is_a_command_that_the_trainer_takes(name, tmp_path):
    suite = accuracy.SUITES[name]
    cells = accuracy.cells_of(
        suite,
        methods=suite.methods,
        noises=suite.noises,
        seeds=1,
        epochs=suite.epochs,
        folder=tmp_path,
    )
    assert len({cell.key for cell in cells}) == len(cells) == len(suite.methods) * len(suite.noises)
    root = ["--data-root", "somewhere"] if suite.needs_root else []
    for cell in cells:
        config = parse([*cell.command(), *root])
        assert config.methods == list(cell.methods)
        kind, rate = split_noise(cell.noise)
        assert (config.noise.kind, config.noise.rate) == (kind, rate)
        assert config.optim.epochs == suite.epochs


def test_the_digits_suite_has_all_methods():
    trained = {accuracy.VARIANTS[name][0][-1] for name in accuracy.SUITES["digits"].methods}
    assert trained == set(METHODS)


def test_the_smearing_matrix_inverts_the_noise(tmp_path):
    matrix = np.loadtxt(accuracy.write_posterior(tmp_path, "asymmetric-0.4", 3), delimiter=",")
    from alr_fast.training.run_data import load_data

    index = load_data(parse([]).data, None, log=print).train.index
    noise = inject(
        index.labels, num_classes=10, kind="asymmetric", rate=0.4, seed=3, class_names="0123456789"
    )
    for given in range(10):
        true = noise.original[noise.labels == given]
        np.testing.assert_allclose(matrix[given], np.bincount(true, minlength=10) / len(true))
    assert matrix[7, 2] > 0.1 > matrix[2, 7] == 0


def test_the_study_goes_through_one_factor_at_a_time_and_crossings():
    settings = study.settings()
    assert settings[0] == study.MIDDLE
    assert len(set(settings)) == len(settings)
    for place, values in enumerate((study.MOMENTA, study.ENTROPY_WEIGHTS, study.WARMUPS)):
        others = [m for p, m in enumerate(study.MIDDLE) if p != place]
        found = {s[place] for s in settings if [v for p, v in enumerate(s) if p != place] == others}
        assert found >= set(values)
    cells = study.cells_of("digits", study.SEEDS, 60)
    assert not {cell.seed for cell in cells} & set(range(accuracy.SUITES["digits"].seeds))
    for cell in cells[:: len(settings) + 1]:
        config = parse(cell.command())
        assert config.data.validation == 0.1
        options = config.options["alr"]
        name = f"a={options.momentum:g} lam={options.entropy_weight:g}"
        assert cell.name == f"{name} warm-up={options.warmup_epochs}"


@pytest.mark.parametrize("noise", ["symmetric", "symmetric-2", "0.4", "-0.4", "symmetric-0"])
def test_invalid_noises(noise):
    with pytest.raises(ValueError, match=r"no noise|could not convert"):
        split_noise(noise)


def test_a_cell_is_one_run_of_the_trainer(tmp_path):
    row = run_cell(cell(), tmp_path, (), "cpu", 1)
    assert (row["method"], row["noise"], row["seed"], row["epochs"]) == (
        "ce",
        "symmetric-0.4",
        0,
        2,
    )
    assert 0 <= row["test_accuracy_last"] <= row["test_accuracy_best"] <= 1
    assert row["train_samples"] == 100
    assert row["options"] == cell().command()
    assert not (tmp_path / "ce").exists() or not list((tmp_path / "ce").rglob("*.safetensors"))
    # The same command returns the same row.
    again = run_cell(cell(), tmp_path, (), "cpu", 1)
    for key in ("test_accuracy_last", "test_accuracy_best", "label_accuracy_after", "noise_rate"):
        assert again[key] == row[key]


def test_the_last_method_of_a_cell_counts(tmp_path):
    made = cell("alr", methods=("ce", "alr"), options=(*TINY, "--alr.warmup_epochs", "0"))
    assert run_cell(made, tmp_path, (), "cpu", 1)["labels_changed"] >= 0
    alone = cell("alr", methods=("alr",), options=(*TINY, "--alr.warmup_epochs", "0"))
    assert (
        run_cell(made, tmp_path, (), "cpu", 1)["test_accuracy_last"]
        == run_cell(alone, tmp_path, (), "cpu", 1)["test_accuracy_last"]
    )


def test_the_error_of_a_failed_cell_has_its_cause_and_output(tmp_path):
    wrong = cell(options=("--recipe", "digits", "--optim.lr", "-1"))
    with pytest.raises(CellFailed, match=r"ce/symmetric-0.4/0: status 2: .*--optim.lr -1.* in "):
        run_cell(wrong, tmp_path, (), "cpu", 1)


def test_a_grid_runs_in_workers_and_keeps_finished_rows(tmp_path, monkeypatch):
    cells = [cell(seed=seed) for seed in (0, 1, 2)]
    messages = []
    first = grid_of(cells[:2], tmp_path, log=messages.append)
    assert [row["seed"] for row in first] == [0, 1]
    assert messages[0].endswith("0 of 2 cells are finished")
    assert messages[-1].startswith("2 of 2 cells")
    # A line that was truncated when the process was killed, and a row with other options.
    lines = (tmp_path / grid.ROWS).read_text().splitlines()
    other = json.dumps({**json.loads(lines[1]), "options": ["--optim.epochs", "9"], "seed": 2})
    (tmp_path / grid.ROWS).write_text("\n".join([lines[0], other, lines[1][:40]]))
    kept = json.loads(lines[0])
    assert list(read_rows(tmp_path, cells).values()) == [kept]
    made = []
    monkeypatch.setattr(grid, "run_cell", lambda *_: made.append(1))
    assert grid_of([cells[kept["seed"]]], tmp_path) == [kept]
    assert not made  # nothing was left to train
    monkeypatch.undo()
    again = grid_of(cells, tmp_path, jobs=2)
    assert [row["seed"] for row in again] == [0, 1, 2]
    assert again[1]["test_accuracy_last"] == first[1]["test_accuracy_last"]
    assert read_rows(tmp_path, cells).keys() == {c.key for c in cells}


def test_a_failing_cell_keeps_what_was_finished(tmp_path):
    cells = [cell(), cell("wrong", options=("--optim.lr", "-1")), cell("after")]
    with pytest.raises(CellFailed, match="wrong/"):
        grid_of(cells, tmp_path)
    assert "ce/symmetric-0.4/0" in read_rows(tmp_path, cells)


def test_a_damaged_file_of_rows_is_named(tmp_path):
    (tmp_path / grid.ROWS).write_text('{"method": 3}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl: line 1 is no row: move the file away"):
        read_rows(tmp_path, [cell()])


def test_the_command_writes_rows_and_means(tmp_path, capsys, monkeypatch):
    suite = accuracy.Suite(TINY[:-4], 2, ("ce", "alr"), ("symmetric-0.4", "none"), 2, False)
    monkeypatch.setitem(accuracy.SUITES, "digits", suite)
    file = tmp_path / "rows.json"
    argv = ["--suite", "digits", "--folder", str(tmp_path), "--json", str(file), "--jobs", "1"]
    accuracy.main([*argv, "--methods", "ce", "alr", "--epochs", "2"])
    rows = json.loads(file.read_text())
    assert len(rows) == 8 + 4
    single, means = rows[:8], rows[8:]
    for row in single:
        assert {"method", "noise", "seed", "test_accuracy_last", "test_accuracy_best"} <= row.keys()
        assert row["suite"] == "accuracy_digits"
    for mean in means:
        own = [r["test_accuracy_last"] for r in single
               if (r["method"], r["noise"]) == (mean["method"], mean["noise"])]  # fmt: skip
        assert mean["seeds"] == len(own) == 2
        assert mean["test_accuracy_last"] == pytest.approx(statistics.fmean(own))
        assert mean["test_accuracy_last_std"] == pytest.approx(statistics.stdev(own))
    assert "8 of 8 cells" in capsys.readouterr().out
    folder = tmp_path / "digits"
    assert "| symmetric-0.4 | `alr` |" in (folder / "accuracy.md").read_text()
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--suite digits --seeds 0", "--seeds 0: pass 1 or more"),
        ("--suite cifar10-small", "--suite cifar10-small: pass --data-root DIR"),
        ("--suite digits --data-root x", "brings its own data; leave --data-root out"),
        (
            "--suite digits --noise nosuch-0.4",
            "nosuch-0.4: no such kind; choose from none, symmetric",
        ),
        ("--suite digits --noise symmetric", "symmetric: no noise; write a kind and a rate"),
        ("--suite digits --json /no/such/file", "/no/such/file: there is no such folder"),
        ("--suite cifar10 --data-root x --methods smearing", "exists for the suite digits only"),
        ("--suite digits --device cuda", "no GPU was found"),
    ],
)
def test_wrong_arguments(argv, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        accuracy.main(argv.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_study_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "settings", lambda: [(0.9, 0.1, 0.5), (0.5, 0.4, 0.5)])
    monkeypatch.setitem(study.NOISES, "digits", ("symmetric-0.4",))
    suite = accuracy.Suite(TINY, 2, (), (), 1, False)
    monkeypatch.setitem(accuracy.SUITES, "digits", suite)
    file = tmp_path / "rows.json"
    study.main(["--suite", "digits", "--seeds", "1", "--jobs", "1", "--folder", str(tmp_path),
                "--epochs", "2", "--json", str(file)])  # fmt: skip
    rows = [row for row in json.loads(file.read_text()) if "seed" in row]
    assert len(rows) == 2
    assert {row["suite"] for row in rows} == {"study_digits"}
    assert all(0 <= row["validation_accuracy_last"] <= 1 for row in rows)
    assert all(row["train_samples"] == 90 for row in rows)
    assert "the best setting by validation first" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as stop:  # CIFAR-10 needs the data
        study.main(["--suite", "cifar10"])
    assert stop.value.code == 2


def test_the_transitions_command(tmp_path, capsys):
    file = tmp_path / "rows.json"
    transitions.main(["--tiny", "--seeds", "1", "--threads", "1", "--json", str(file)])
    rows = json.loads(file.read_text())
    assert [(r["source"], r["net_epochs"]) for r in rows] == [
        ("known", None), ("anchor", 1), ("confident", 1), ("anchor", 2), ("confident", 2)
    ]  # fmt: skip
    assert rows[0]["error"] == 0
    assert all(0 < row["error"] <= 2 for row in rows[1:])
    assert "confident" in capsys.readouterr().out


def test_means_and_deviations():
    rows = [row_of(seed=s, test_accuracy_last=a) for s, a in enumerate((0.7, 0.8, 0.9))]
    (mean,) = mean_rows(rows)
    assert mean["test_accuracy_last"] == pytest.approx(0.8)
    assert mean["test_accuracy_last_std"] == pytest.approx(0.1)
    assert "validation_accuracy_last" not in mean
    assert "test_accuracy_last_std" not in mean_rows(rows[:1])[0]


def test_the_highest_of_a_column_is_bold():
    rows = [row_of("ce", seed=s, test_accuracy_last=0.7 + s / 100) for s in (0, 2)]
    rows += [row_of("alr", seed=s, test_accuracy_last=0.9) for s in (0, 2)]
    rows += [row_of("ce", "none", test_accuracy_last=0.95)]
    names, lines = report_accuracy.by_method(rows, "test_accuracy_last")
    assert names == ("method", "symmetric-0.4", "none")
    assert lines == [["`ce`", "71.0 ± 1.4", "**95.0**"], ["`alr`", "**90.0 ± 0.0**", ""]]


def test_runs_without_test_samples_have_no_cell():
    rows = [row_of("ce", test_accuracy_last=None), row_of("alr", test_accuracy_last=None)]
    _, lines = report_accuracy.by_method(rows, "test_accuracy_last")
    assert lines == [["`ce`", ""], ["`alr`", ""]]
    assert [cells[2] for cells in report_accuracy.accuracy_cells(rows)[1]] == ["", ""]


def test_settings_are_ranked_by_validation_and_not_by_test():
    rows = [
        row_of("better", validation_accuracy_last=0.6, test_accuracy_last=0.5),
        row_of("worse", validation_accuracy_last=0.5, test_accuracy_last=0.9),
    ]
    names, lines = report_accuracy.study_cells(rows)
    assert [line[0] for line in lines] == ["better", "worse"]
    assert names[-2:] == ["symmetric-0.4: val.", "symmetric-0.4: test"]


def test_sections_of_the_report(tmp_path):
    rows = [row_of("alr", label_accuracy_after=0.98), row_of("ce", label_accuracy_after=0.64)]
    text = report({("A CPU", "accuracy_digits"): ("a.json", rows)}, ["accuracy_digits"])
    section = text.split("## Accuracy under label noise: digits\n")[1].split("\n## ")[0]
    assert "`python -m benchmarks.accuracy --suite digits`; [a.json](results/a.json)" in section
    assert "| `alr` | **98.0** |" in section  # in the table of label accuracy, where ce has no line
    assert section.count("`ce`") == 2
    assert "![Accuracy under label noise: digits: last epoch](accuracy-digits.png)" in section
    drawn = tmp_path / "plot.png"
    assert report_accuracy.plot_accuracy(drawn, [("A CPU", rows)])
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert not report_accuracy.plot_accuracy(Path(tmp_path / "none.png"), [])
    assert not (tmp_path / "none.png").exists()
