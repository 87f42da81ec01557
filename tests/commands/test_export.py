"""The table of a run's labels, how a run is opened for it, and the ten labels at a run's end."""

import csv
import importlib.util
import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alr_fast.data.datasets import open_dataset
from alr_fast.export import main
from alr_fast.labels.suspicion import distributions, recent_changes, row_figures
from alr_fast.labels.table import export
from alr_fast.noise import read_matrix
from alr_fast.train import main as train
from alr_fast.training.open_run import open_run
from helpers.image_folder import write_folder

COLUMNS = [
    *("id", "path", "given_label", "refined_label", "given_name", "refined_name", "score"),
    *("given_probability", "refined_probability", "margin", "entropy", "changes", "given_loss"),
]
OPTIONS = ["--optim.epochs", "7", "--alr.warmup_epochs", "3", "--alr.momentum", "0.6"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Folder of a finished run with checkpoints; no test writes into it."""
    runs = tmp_path_factory.mktemp("digits") / "runs"
    quiet = ["--log.show", "quiet", "--log.to", "csv", "--runs", str(runs)]
    # The last step of all has a checkpoint, of the bank as the run leaves it.
    assert train([*OPTIONS, "--methods", "ce,alr", "--checkpoint.steps", "42", *quiet]) == 0
    return (runs / "latest").resolve()


@pytest.fixture
def run(digits, tmp_path):
    """A copy of the run."""
    return shutil.copytree(digits, tmp_path / "run")


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory):
    """A run on a folder of 24 images: where the images are, and the folder of the run."""
    base = tmp_path_factory.mktemp("folder")
    root = write_folder(base / "set", train={"a": 12, "b": 12}, test={"a": 4, "b": 4})
    argv = ["--data-root", str(root), "--runs", str(base / "runs"), "--optim.epochs", "2"]
    argv += ["--optim.batch_size", "8", "--data.workers", "1", "--bank.dtype", "bfloat16"]
    argv += ["--alr.warmup_epochs", "0", "--alr.momentum", "0.3", "--methods", "alr"]
    assert train([*argv, "--log.to", "csv", "--log.show", "quiet"]) == 0
    return root, (base / "runs/latest").resolve()


@pytest.fixture
def moved(folder_run, tmp_path):
    """Copies of the images and of the run, which looks for them where they are not."""
    root, run = folder_run
    root, run = shutil.copytree(root, tmp_path / "set"), shutil.copytree(run, tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(folder_run[0]), str(tmp_path / "nowhere")))
    return root, run


def lines_of(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def exported(run, *argv, name="labels.parquet"):
    assert main([str(run), *argv]) == 0
    return pq.read_table(run / name)


def refused(capsys, run, *argv):
    """Runs the command, which must write nothing; returns its message."""
    before = sorted(run.iterdir()) if run.is_dir() else None
    assert main([str(run), *argv]) == 2
    assert (sorted(run.iterdir()) if run.is_dir() else None) == before
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


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
    assert (columns["score"] > 0.5).sum() == changed > 100
    # What it is for: most labels that it doubts are wrong.
    wrong = columns["given_label"] != columns["clean_label"]
    assert wrong[columns["score"] > 0.5].mean() > 0.8

    facts = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    assert facts["method"] == "alr"
    assert json.loads(facts["class_names"]) == list(train_index.class_names)
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == f"alr: {changed / 1437:.1%} of 1,437 labels refined to another class"
    assert second.startswith(f"wrong are {wrong.mean():.1%}; error of the estimated transition")
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
        if isinstance(column[0], float):  # of single precision, in as many digits as that needs
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
    monkeypatch.setattr("alr_fast.labels.refined._PIECE_BYTES", 100 * 40)
    assert main([str(run), *argv]) == 0
    if "--csv" in argv:
        assert (run / name).read_text() == whole.read_text()
    else:
        assert pq.read_table(run / name) == pq.read_table(whole)
        assert pq.ParquetFile(run / name).num_row_groups == 15
        assert pq.ParquetFile(whole).num_row_groups == 1


def test_pieces_are_at_least_one_row(run, monkeypatch):
    with open_run(run) as labels:
        monkeypatch.setattr("alr_fast.labels.refined._PIECE_BYTES", 1)
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


def test_the_truth_is_told_only_where_it_is_known(folder_run, tmp_path, capsys):
    _, run = folder_run
    assert main([str(run), "--output", str(tmp_path / "a.csv")]) == 0
    out = capsys.readouterr().out
    assert "wrong are" not in out and len(out.splitlines()) == 2
    assert list(lines_of(tmp_path / "a.csv")[0]) == COLUMNS


def test_rows_that_are_not_scaled_are_exported_as_distributions(run):
    path = run / "alr_bank.safetensors"
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    bank = load_file(path)
    # As early-learning regularisation leaves them, whose rows begin at zero.
    before = torch.tensor(exported(run, "--soft")["probabilities"].to_pylist())
    bank["rows"] *= 0.6
    bank["rows"][5] = 0
    save_file(bank, path, metadata=facts)
    table = exported(run, "--soft")
    after = torch.tensor(table["probabilities"].to_pylist())
    before[5] = torch.eye(10)[bank["given_labels"][5]]
    assert torch.allclose(after, before, atol=1e-6)


def test_a_bank_without_a_history_is_refused(run, capsys):
    path = run / "alr_bank.safetensors"
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    bank = load_file(path)
    save_file({k: bank[k] for k in ("rows", "ids", "given_labels")}, path, metadata=facts)
    message = refused(capsys, run)
    assert f"{path}: cannot be read as a label bank ('given_loss'); train again" in message


def test_small_pieces_without_probabilities_are_gathered(run, tmp_path, monkeypatch):
    assert main([str(run)]) == 0
    whole = pq.read_table((run / "labels.parquet").rename(tmp_path / "whole.parquet"))
    monkeypatch.setattr("alr_fast.labels.refined._PIECE_ROWS", 100)
    monkeypatch.setattr("alr_fast.labels.table._GROUP_ROWS", 250)
    assert exported(run) == whole
    file = pq.ParquetFile(run / "labels.parquet")
    sizes = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
    assert sizes == [300, 300, 300, 300, 237]


@pytest.mark.parametrize("name", ["pyarrow", "safetensors"])
def test_what_the_export_needs_is_named(run, monkeypatch, capsys, name):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == name else find(n))
    message = refused(capsys, run)
    assert message == (
        f"error: the export needs {name}, not installed: pip install 'alr_fast[train]'\n"
    )


def test_another_output_replaces_what_is_there(run, tmp_path, capsys):
    output = tmp_path / "mine.csv"
    output.write_text("old")
    assert main([str(run), "--output", str(output)]) == 0
    assert len(lines_of(output)) == 1437
    assert capsys.readouterr().out.splitlines()[-1] == str(output)
    assert not list(run.glob("labels.*"))


def test_a_name_that_is_no_utf_8_comes_through(moved):
    root, run = moved
    # As if it had been called so when the run was made.
    odd = os.fsencode(root) + b"/train/a/000\xff.png"
    os.rename(root / "train/a/000.png", odd)
    index = open_dataset("folder", str(root)).split("train").index
    path = run / "alr_bank.safetensors"
    with safe_open(path, "pt") as file:
        facts = file.metadata() | {"sample_fingerprint": index.sample_fingerprint()}
    save_file(load_file(path), path, metadata=facts)
    table = exported(run, "--data-root", str(root))
    assert table["path"].to_pylist()[:2] == [b"train/a/000\xff.png", b"train/a/001.png"]
    assert main([str(run), "--data-root", str(root), "--csv"]) == 0
    assert b"0,train/a/000\xff.png," in (run / "labels.csv").read_bytes()


def unfinish(run):
    """Leaves what a run has that was stopped after its last checkpoint."""
    for name in ("summary.json", "alr_bank.safetensors"):
        (run / name).unlink()


def checkpoints_of(run):
    return sorted((run / "checkpoints").iterdir())


def test_an_unfinished_run_is_exported_from_its_checkpoint(run, capsys):
    wanted = exported(run, "--soft").to_pydict()
    unfinish(run)
    capsys.readouterr()
    table = exported(run, "--soft").to_pydict()
    said, first, *_ = capsys.readouterr().out.splitlines()[-4:]
    newest = checkpoints_of(run)[-1]
    assert said.startswith(f"alr: from {newest}, in epoch ")
    assert first.endswith("1,437 labels refined to another class, in a run that was not finished")
    # It is of the end of the last epoch: the bank of the finished run.
    assert list(table) == list(wanted)
    given_loss = table.pop("given_loss"), wanted.pop("given_loss")
    assert given_loss[0] == pytest.approx(given_loss[1], nan_ok=True)
    assert table == wanted
    assert not [p for p in run.iterdir() if "bank" in p.name]


def test_an_earlier_checkpoint_is_of_its_moment(run, capsys):
    wanted = exported(run).to_pydict()
    changes = load_file(run / "alr_bank.safetensors")["changes"].numpy()
    unfinish(run)
    shutil.rmtree(checkpoints_of(run)[-1])
    assert len(checkpoints_of(run)) == 1
    capsys.readouterr()
    table = exported(run).to_pydict()
    # After the last step, but before the epoch ended and its changes were noted.
    assert "in epoch 7 after step 12\n" in capsys.readouterr().out
    assert table["refined_label"] == wanted["refined_label"]
    assert table["changes"] == recent_changes(changes >> 1).tolist() != wanted["changes"]


def test_an_unfinished_run_without_a_bank(run, tmp_path, capsys):
    unfinish(run)
    message = refused(capsys, run, "--method", "ce")
    assert "method ce has no label bank" in message and "--resume auto goes on" in message
    shutil.rmtree(run / "checkpoints")
    message = refused(capsys, run)
    assert f"{run}: it has no label bank" in message and "left no checkpoint of one" in message


def test_the_labels_that_noise_was_injected_into_are_the_true_ones(folder_run, tmp_path):
    root, _ = folder_run
    argv = ["--data-root", str(root), "--runs", str(tmp_path / "runs"), "--optim.epochs", "1"]
    argv += ["--optim.batch_size", "8", "--data.workers", "1", "--alr.warmup_epochs", "0"]
    argv += ["--noise.kind", "symmetric", "--noise.rate", "0.9", "--checkpoint.steps", "3"]
    assert train([*argv, "--methods", "alr", "--log.to", "csv", "--log.show", "quiet"]) == 0
    run = (tmp_path / "runs" / "latest").resolve()
    given, true = load_file(run / "alr_bank.safetensors")["given_labels"].tolist(), [0] * 12
    unfinish(run)
    table = exported(run).to_pydict()
    assert table["given_label"] == given != table["clean_label"] == true + [1] * 12


def test_a_checkpoint_of_a_method_without_a_bank(tmp_path, capsys):
    argv = ["--methods", "ce", "--optim.epochs", "1", "--checkpoint.steps", "12"]
    argv += ["--log.to", "csv", "--log.show", "quiet", "--runs", str(tmp_path / "runs")]
    assert train(argv) == 0
    run = (tmp_path / "runs" / "latest").resolve()
    (run / "summary.json").unlink()
    capsys.readouterr()
    message = refused(capsys, run)
    assert f"{checkpoints_of(run)[-1]}: method ce keeps no label bank; wait" in message


def test_a_folder_that_is_no_run(tmp_path, capsys):
    missing = tmp_path / "none"
    message = refused(capsys, missing)
    assert f"{missing}: no such folder; pass the folder of a run" in message
    message = refused(capsys, tmp_path)
    assert f"{tmp_path}: not the folder of a run, it has no config.yaml; pass one below" in message


@pytest.mark.parametrize("text", ["data: [", "seed: 0", "", "data: {name: digits, of: later}"])
def test_a_configuration_that_cannot_be_read(run, capsys, text):
    (run / "config.yaml").write_text(text)
    message = refused(capsys, run)
    assert f"{run / 'config.yaml'}: cannot be read (" in message
    assert "use the version of alr_fast that wrote it" in message


def test_a_run_without_a_bank(run, capsys):
    (run / "alr_bank.safetensors").unlink()
    message = refused(capsys, run)
    assert f"{run}: it has no label bank; train with a method that keeps one, alr" in message


def test_a_method_that_keeps_no_bank_or_was_not_trained(run, capsys):
    message = refused(capsys, run, "--method", "ce")
    assert "method ce has no label bank; the methods that keep one are alr" in message
    message = refused(capsys, run, "--method", "elr")
    assert f"--method elr: not trained by {run}; it has ce, alr" in message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--output", "a.txt"], "--output a.txt: name a file that ends with .parquet or .csv"),
        (["--output", "no/such/a.csv"], "--output no/such/a.csv: no folder no/such; make it first"),
        (["--csv", "--output", "a.csv"], "--csv: the name that --output gives decides"),
        (["--soft", "1"], "unrecognized arguments: 1; --help lists every option"),
    ],
)
def test_wrong_options(run, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, run, *argv)
    assert list(tmp_path.iterdir()) == [run]


@pytest.mark.parametrize("size", [0, 5, 1000, -4])
def test_a_bank_that_was_cut_off(run, capsys, size):
    path = run / "alr_bank.safetensors"
    with path.open("r+b") as file:
        file.truncate(size if size >= 0 else path.stat().st_size + size)
    message = refused(capsys, run)
    assert f"{path}: cannot be read as a label bank (" in message
    assert "train again, or pass another run" in message


def test_a_file_that_is_no_bank(run, capsys):
    (run / "ce.safetensors").replace(run / "alr_bank.safetensors")
    assert "cannot be read as a label bank" in refused(capsys, run)


def test_data_that_was_moved_is_found_by_its_option(moved, capsys):
    root, run = moved
    assert "nowhere" in refused(capsys, run)
    assert exported(run, "--data-root", str(root)).num_rows == 24


def added(root):
    shutil.copy(root / "train/a/000.png", root / "train/a/0001.png")


def renamed(root):
    (root / "train/b/011.png").rename(root / "train/b/012.png")


def removed(root):
    (root / "train/b/011.png").unlink()


@pytest.mark.parametrize("change", [added, renamed, removed])
def test_other_files_than_the_run_had_are_refused(moved, capsys, change):
    root, run = moved
    change(root)
    message = refused(capsys, run, "--data-root", str(root))
    assert f"{run / 'alr_bank.safetensors'}: its sample fingerprint is not the data's" in message
    assert "pass the data of that run: --data-root DIR" in message


def test_other_classes_than_the_run_had_are_refused(moved, capsys):
    root, run = moved
    for split in ("train", "test"):
        (root / split / "b").rename(root / split / "c")
    message = refused(capsys, run, "--data-root", str(root))
    assert "made with 2 classes (a, b), the data set has 2 (a, c); pass the data" in message


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
    assert f"\nwith images: python -m alr_fast.report {run}\n" in out


def test_the_suspects_are_an_event_of_json(tmp_path, capsys):
    out, run = end_of_a_run(
        tmp_path, capsys, "--methods", "alr", "--alr.momentum", "0.1", "--log.show", "json"
    )
    events = [json.loads(line) for line in out.splitlines()]
    (event,) = [event for event in events if event["event"] == "suspects"]
    assert (event["method"], event["report"]) == ("alr", f"python -m alr_fast.report {run}")
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


def test_a_run_that_doubts_no_label_says_so(tmp_path, capsys):
    out, run = end_of_a_run(
        *(tmp_path, capsys, "--methods", "alr", "--alr.momentum", "0.99"),
        *("--noise.kind", "none", "--log.show", "lines"),
    )
    assert "alr: no suspicious labels\n" in out
    assert "Most suspicious" not in out
    with open_run(run) as labels:
        assert len(labels.most_suspicious(10, above=0.5)) == 0


def test_class_names_that_are_no_utf8_are_written_as_bytes(tmp_path, run):
    names = ("caf\udce9", *"123456789")
    with open_run(run) as labels:
        index = replace(labels.index, class_names=names)
        other = replace(labels, split=replace(labels.split, index=index))
        for suffix in (".parquet", ".csv"):
            export(other, tmp_path / f"labels{suffix}")
    table = pq.read_table(tmp_path / "labels.parquet")
    assert b"caf\xe9" in table.column("given_name").to_pylist()
    assert b",caf\xe9," in (tmp_path / "labels.csv").read_bytes()


def test_the_transition_matrix_is_one_that_the_trainer_takes(run, tmp_path, capsys):
    path = tmp_path / "matrix.csv"
    assert main([str(run), "--transition", str(path)]) == 0
    columns = pq.read_table(run / "labels.parquet").to_pydict()
    counts = np.zeros((10, 10))
    np.add.at(counts, (columns["refined_label"], columns["given_label"]), 1)
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


def test_of_many_classes_no_matrix_is_written(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("alr_fast.labels.refined.MOST_CLASSES", 9)
    assert main([str(run), "--transition", str(tmp_path / "m.csv")]) == 2
    assert "no matrix is estimated of 10 classes" in capsys.readouterr().err
