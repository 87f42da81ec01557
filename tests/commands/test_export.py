"""The table of the labels of a run, and the list of suspects at the end of a run."""

import importlib.util
import json
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from alr_fast.data.datasets import open_dataset
from alr_fast.errors import UserError
from alr_fast.export import main
from alr_fast.labels.suspicion import distributions, recent_changes, row_figures
from alr_fast.labels.table import export, save_transition
from alr_fast.noise import read_matrix
from alr_fast.train import main as train
from alr_fast.training.open_run import open_run
from alr_fast.utils.requirements import install_command
from helpers.commands import arguments, commands
from helpers.exported_runs import (
    exported,
    lines_of,
    refused,
    rewrite_bank,
)

COLUMNS = [
    *("id", "path", "given_label", "refined_label", "given_name", "refined_name", "score"),
    *("given_probability", "refined_probability", "margin", "entropy", "changes", "given_loss"),
]


pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_table_agrees_with_the_bank(run, capsys):
    table = exported(run)
    assert table.column_names == [*COLUMNS, "clean_label"]
    bank = load_file(run / "alr_bank.safetensors")
    rows, given = bank["rows"].numpy(), bank["given_labels"].numpy()
    columns = {name: np.array(table[name]) for name in table.column_names}
    assert columns["id"].tolist() == bank["ids"].tolist() == list(range(1437))
    train_index = open_dataset("digits", None).split("train").index
    assert columns["path"].tolist() == list(train_index.paths)
    assert np.array_equal(columns["given_label"], given)
    assert np.array_equal(columns["clean_label"], train_index.labels)
    assert np.array_equal(columns["refined_label"], rows.argmax(1))
    assert columns["given_name"].tolist() == [str(k) for k in given]
    assert columns["refined_name"].tolist() == [str(k) for k in rows.argmax(1)]
    for name, wanted in row_figures(rows, given).items():
        assert np.array_equal(columns[name], wanted), name
    assert columns["given_probability"] == pytest.approx(rows[np.arange(1437), given], abs=1e-6)
    assert np.array_equal(columns["given_loss"], bank["given_loss"].numpy())
    assert np.array_equal(columns["changes"], recent_changes(bank["changes"].numpy()))
    assert columns["changes"].max() > 0
    changed = int((rows.argmax(1) != given).sum())
    wrong = columns["given_label"] != columns["clean_label"]
    # Not all wrong labels have changed after four refining epochs.
    suspicious = columns["score"] > 0.5
    assert 100 < changed < 0.6 * suspicious.sum()
    assert abs(suspicious.mean() - wrong.mean()) < 0.03
    # The purpose of the score: most suspicious labels are wrong.
    assert wrong[suspicious].mean() > 0.8

    facts = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    assert facts["method"] == "alr"
    assert json.loads(facts["class_names"]) == list(train_index.class_names)
    first, second, third, last = capsys.readouterr().out.splitlines()
    assert first == f"alr: {changed / 1437:.1%} of 1,437 labels refined to another class"
    assert second == (
        f"alr: {suspicious.mean():.1%} of the labels are estimated to be wrong, "
        f"{suspicious.sum()} are suspicious"
    )
    assert third.startswith(
        f"{wrong.mean():.1%} of the given labels are wrong; error of the estimated transition"
    )
    assert last == str(run / "labels.parquet")


@pytest.mark.parametrize("soft", [False, True])
def test_parquet_and_csv_hold_the_same(run, soft):
    more = ["--soft"] if soft else []
    table = exported(run, *more).to_pydict()
    assert main([str(run), "--csv", *more]) == 0
    lines = lines_of(run / "labels.csv")
    bank = load_file(run / "alr_bank.safetensors")
    probabilities = table.pop("probabilities", None)
    if soft:
        wanted = distributions(bank["rows"].numpy(), bank["given_labels"].numpy())
        assert probabilities == wanted.tolist()
        assert np.allclose(wanted, bank["rows"], atol=1e-5)
        table |= {f"p{k}": wanted[:, k].tolist() for k in range(10)}
    assert list(lines[0]) == list(table)
    for name, column in table.items():
        found = [type(column[0])(line[name]) for line in lines]
        if isinstance(column[0], float):  # single precision, with as many digits as necessary
            found = np.array(found, dtype=np.float32).tolist()
            assert max(len(line[name]) for line in lines) < 17
        assert found == column, name
    number = sum(name[0] == "p" and name[1:].isdigit() for name in lines[0])
    assert number == (10 if soft else 0)


@pytest.mark.parametrize("argv", [["--soft"], ["--soft", "--csv"]])
def test_small_pieces_give_the_same_table(run, tmp_path, monkeypatch, argv):
    name = "labels.csv" if "--csv" in argv else "labels.parquet"
    assert main([str(run), *argv]) == 0
    whole = (run / name).rename(tmp_path / name)
    monkeypatch.setattr("alr_fast.labels.scored._PIECE_BYTES", 100 * 40)
    monkeypatch.setattr("alr_fast.data.tables.writing._GROUP_BYTES", 100 * 40)
    assert main([str(run), *argv]) == 0
    if "--csv" in argv:
        assert (run / name).read_text() == whole.read_text()
    else:
        assert pq.read_table(run / name) == pq.read_table(whole)
        assert pq.ParquetFile(run / name).num_row_groups == 15
        assert pq.ParquetFile(whole).num_row_groups == 1


def test_pieces_are_at_least_one_row(run, monkeypatch):
    with open_run(run) as labels:
        monkeypatch.setattr("alr_fast.labels.scored._PIECE_BYTES", 1)
        slices = list(labels.slices())
        assert len(slices) == 1437
        assert (slices[0], slices[-1]) == (slice(0, 1), slice(1436, 1437))


def test_a_bank_of_sixteen_bits(folder_run, tmp_path):
    _, run = folder_run
    output = tmp_path / "labels.parquet"
    assert main([str(run), "--soft", "--output", str(output)]) == 0
    bank, table = load_file(run / "alr_bank.safetensors"), pq.read_table(output)
    assert bank["rows"].dtype == torch.bfloat16
    probabilities = np.array(table["probabilities"].to_pylist())
    assert probabilities == pytest.approx(bank["rows"].float().numpy(), abs=0.01)
    assert probabilities.sum(1) == pytest.approx(np.ones(24), abs=1e-6)
    assert table["path"][0].as_py() == "train/a/000.png"
    assert not (run / "labels.parquet").exists()


def test_unknown_true_labels_are_left_out(folder_run, tmp_path, capsys):
    _, run = folder_run
    assert main([str(run), "--output", str(tmp_path / "a.csv")]) == 0
    out = capsys.readouterr().out
    assert "given labels are wrong" not in out and len(out.splitlines()) == 3
    assert list(lines_of(tmp_path / "a.csv")[0]) == COLUMNS


def test_rows_that_are_not_scaled_are_exported_as_distributions(run):
    before = torch.tensor(exported(run, "--soft")["probabilities"].to_pylist())
    labels = []

    def scale(bank, facts):
        # As in early-learning regularisation, whose rows begin at zero.
        bank["rows"] *= 0.6
        bank["rows"][5] = 0
        labels.append(bank["given_labels"])

    rewrite_bank(run, scale)
    table = exported(run, "--soft")
    after = torch.tensor(table["probabilities"].to_pylist())
    before[5] = torch.eye(10)[labels[0][5]]
    assert torch.allclose(after, before, atol=1e-6)


def test_small_pieces_without_probabilities_are_gathered(run, tmp_path, monkeypatch):
    assert main([str(run)]) == 0
    whole = pq.read_table((run / "labels.parquet").rename(tmp_path / "whole.parquet"))
    monkeypatch.setattr("alr_fast.labels.scored._PIECE_ROWS", 100)
    monkeypatch.setattr("alr_fast.data.tables.writing._GROUP_ROWS", 250)
    assert exported(run) == whole
    file = pq.ParquetFile(run / "labels.parquet")
    sizes = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
    assert sizes == [300, 300, 300, 300, 237]


@pytest.mark.parametrize("name", ["pyarrow", "yaml"])
def test_missing_packages_are_named(run, monkeypatch, capsys, name):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == name else find(n))
    message = refused(capsys, run)
    command = install_command([name], "train")
    assert message == f"error: the export needs {name}, not installed: {command}\n"


def test_output_replaces_an_existing_file(run, tmp_path, capsys):
    output = tmp_path / "mine.csv"
    output.write_text("old")
    assert main([str(run), "--output", str(output)]) == 0
    assert len(lines_of(output)) == 1437
    assert capsys.readouterr().out.splitlines()[-1] == str(output)
    assert not list(run.glob("labels.*"))


def test_a_path_that_is_not_utf_8_is_written_as_bytes(moved):
    _, run = moved

    def rename(bank, facts):
        blob = bytes(bank["paths"].tolist()).replace(b"train/a/000.png", b"train/a/00\xff.png", 1)
        bank["paths"] = torch.tensor(list(blob), dtype=torch.uint8)

    rewrite_bank(run, rename)
    table = exported(run)
    assert table["path"].to_pylist()[:2] == [b"train/a/00\xff.png", b"train/a/001.png"]
    assert main([str(run), "--csv"]) == 0
    assert b"0,train/a/00\xff.png," in (run / "labels.csv").read_bytes()


def end_of_a_run(tmp_path, capsys, *argv):
    argv = ["--runs", str(tmp_path / "runs"), "--log.to", "csv", *argv]
    assert train([*argv, "--optim.epochs", "2", "--alr.warmup_epochs", "0"]) == 0
    return capsys.readouterr().out, (tmp_path / "runs" / "latest").resolve()


@pytest.mark.parametrize("show", ["quiet", "lines"])
def test_a_run_ends_with_its_most_suspicious_labels(tmp_path, capsys, show):
    out, run = end_of_a_run(
        tmp_path, capsys, "--methods", "alr", "--alr.momentum", "0.1", "--log.show", show
    )
    title, _, table = out.partition("Most suspicious labels, as alr sees them")[0:3]
    assert "test acc" in title
    with open_run(run) as labels:
        wanted = labels.samples(labels.most_suspicious(10, above=0.5))
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in table.splitlines()]
    assert [c for c in cells if c] == [
        [str(s["id"]), s["path"], s["given_name"], s["refined_name"], f"{s['score']:.3f}"]
        for s in wanted
    ]
    assert len(wanted) == 10
    found = [s["score"] for s in wanted]
    assert found == sorted(found, reverse=True)
    assert commands(out) == [["review", str(run)]]


def test_the_suspects_are_an_event_of_json(tmp_path, capsys):
    out, run = end_of_a_run(
        tmp_path, capsys, "--methods", "alr", "--alr.momentum", "0.1", "--log.show", "json"
    )
    events = [json.loads(line) for line in out.splitlines()]
    (event,) = [event for event in events if event["event"] == "suspects"]
    assert (event["method"], arguments(event["review"])) == ("alr", ["review", str(run)])
    with open_run(run) as labels:
        wanted = labels.samples(labels.most_suspicious(10, above=0.5))
    assert event["samples"] == [
        {
            "id": int(s["id"]),
            "path": s["path"],
            "given": s["given_name"],
            "refined": s["refined_name"],
            "score": pytest.approx(float(s["score"])),
        }
        for s in wanted
    ]
    assert len(wanted) == 10 and type(event["samples"][0]["score"]) is float


def test_a_run_without_a_bank_ends_without_suspects(tmp_path, capsys):
    out, _ = end_of_a_run(tmp_path, capsys, "--methods", "ce", "--log.show", "lines")
    assert "suspicious" not in out and "alr_fast.report" not in out


@pytest.mark.parametrize("show", ["lines", "json"])
def test_without_an_estimate_a_run_ends_with_the_highest_scores(tmp_path, capsys, show):
    out, run = end_of_a_run(
        *(tmp_path, capsys, "--methods", "alr", "--alr.momentum", "1", "--log.show", show)
    )
    with open_run(run) as labels:
        highest = [int(s["id"]) for s in labels.samples(labels.most_suspicious(10))]
        assert labels.suspicious == 0 and np.isnan(labels.noise_rate)
        with pytest.raises(UserError, match=r"no matrix is estimated: the rows are .* more epochs"):
            save_transition(labels, tmp_path / "matrix.csv")
    if show == "json":
        events = [json.loads(line) for line in out.splitlines()]
        (event,) = [event for event in events if event["event"] == "suspects"]
        assert [sample["id"] for sample in event["samples"]] == highest
        assert event["suspicious"] is event["estimated_rate"] is None
        assert "none has been refined" in event["problem"]
        return
    table = out.partition("Most suspicious labels, as alr sees them")[2]
    assert re.findall(r"^│ +(\d+) │", table, re.MULTILINE) == [str(id) for id in highest]
    assert "\nalr: how many labels are wrong cannot be estimated: the rows are the given" in out
    assert "\nNone of these samples counts as suspicious" in out


def test_class_names_that_are_not_utf_8_are_written_as_bytes(tmp_path, run):
    names = ("caf\udce9", *"123456789")
    with open_run(run) as labels:
        other = replace(labels, class_names=names)
        for suffix in (".parquet", ".csv"):
            export(other, tmp_path / f"labels{suffix}")
    table = pq.read_table(tmp_path / "labels.parquet")
    assert b"caf\xe9" in table.column("given_name").to_pylist()
    assert b",caf\xe9," in (tmp_path / "labels.csv").read_bytes()


def test_training_takes_the_transition_matrix(run, tmp_path, capsys):
    path = tmp_path / "matrix.csv"
    assert main([str(run), "--transition", str(path)]) == 0
    with open_run(run) as labels:
        assert labels.noise.joint is not None  # the refined labels have not changed enough yet
        counts = labels.noise.joint.T
    matrix = read_matrix(path)
    assert matrix == pytest.approx(counts / counts.sum(1, keepdims=True), abs=1e-8)
    argv = ["--methods", "forward_correction", "--transition.source", str(path)]
    argv += ["--optim.epochs", "1", "--log.show", "quiet", "--runs", str(tmp_path / "runs")]
    assert train(argv) == 0


@pytest.mark.parametrize(
    ("name", "why"),
    [("m.npy", "name a file that ends with .csv"), ("no/m.csv", "no folder .*; make it first")],
)
def test_a_matrix_that_cannot_be_written(run, tmp_path, capsys, name, why):
    path = tmp_path / name
    assert main([str(run), "--transition", str(path)]) == 2
    assert re.search(rf"--transition {path}: {why}", capsys.readouterr().err)
    assert not path.exists()


def test_no_matrix_is_written_for_many_classes(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("alr_fast.labels.scored.MOST_CLASSES", 9)
    assert main([str(run), "--transition", str(tmp_path / "m.csv")]) == 2
    assert "m.csv: no matrix is estimated for 10 classes" in capsys.readouterr().err
