"""Training on tables of labels: those of a run, marks of the report, samples to leave out."""

import csv

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from alr_fast.data.broken import read_exclusions, write_exclusions
from alr_fast.data.datasets import open_dataset
from alr_fast.data.label_files.label_table import (
    read_left_out,
)
from alr_fast.export import main as export
from alr_fast.train import main as train

MARKS = ["id", "path", "given", "refined", "score", "mark", "label", "given_name", "refined_name"]
QUIET = ["--log.to", "csv", "--log.show", "quiet"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A folder with labels.parquet and labels.csv of a run on the digits, with probabilities."""
    folder = tmp_path_factory.mktemp("tables")
    argv = ["--methods", "alr", "--optim.epochs", "6", "--alr.warmup_epochs", "2"]
    assert train([*argv, "--alr.momentum", "0.6", *QUIET, "--runs", str(folder / "runs")]) == 0
    for name in ("labels.parquet", "labels.csv"):
        argv = [str(folder / "runs/latest"), "--soft", "--output", str(folder / name)]
        assert export(argv) == 0
    return folder


@pytest.fixture(scope="module")
def columns(tables):
    return pq.read_table(tables / "labels.parquet").to_pydict()


@pytest.fixture
def trained(tmp_path, capsys):
    """Trains an epoch on the digits without noise; returns the tensors of its bank file."""

    def train_on(*argv, methods="alr"):
        runs = tmp_path / "runs"
        options = ["--methods", methods, "--optim.epochs", "1", "--noise.kind", "none"]
        options += ["--noise.rate", "0", *QUIET, "--runs", str(runs)]
        if methods == "alr":
            # With a momentum of one the bank does not change.
            options += ["--alr.warmup_epochs", "0", "--alr.momentum", "1"]
        assert train([*options, *argv]) == 0
        if methods == "ce":
            return None
        return load_file(runs / "latest" / f"{methods}_bank.safetensors")

    return train_on


def message_of(capsys, *argv):
    assert train([*argv, *QUIET]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", ["labels.parquet", "labels.csv"])
def test_refined_labels_are_trained_on(tables, columns, trained, name):
    bank = trained("--labels", str(tables / name))
    assert bank["given_labels"].tolist() == columns["refined_label"]
    assert columns["refined_label"] != columns["given_label"]
    assert bank["ids"].tolist() == columns["id"]
    assert torch.equal(bank["rows"].argmax(1), bank["given_labels"])
    # Corrected labels do not change the clean labels.
    assert bank["clean_labels"].tolist() == columns["clean_label"]


def test_a_limit_selects_the_same_images_for_all_labels(tables, columns, trained):
    limit = ["--data.limit", "300"]
    before = trained(*limit)["ids"].tolist()
    bank = trained(*limit, "--labels", str(tables / "labels.parquet"))
    assert bank["ids"].tolist() == before
    refined = dict(zip(columns["id"], columns["refined_label"], strict=True))
    assert bank["given_labels"].tolist() == [refined[sample] for sample in before]


def test_links_to_a_table_are_resolved_in_the_configuration(tables, trained, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(tables)
    for option in ("--labels", "--data.exclude"):
        trained(option, str(link / "labels.parquet"), methods="ce")
        config = yaml.safe_load((tmp_path / "runs/latest/config.yaml").read_text())
        key = "label_file" if option == "--labels" else "exclude"
        assert config["data"][key] == str(tables / "labels.parquet")


@pytest.mark.parametrize("name", ["labels.parquet", "labels.csv"])
def test_a_bank_starts_from_soft_labels(tables, columns, trained, name):
    argv = ["--labels", str(tables / name), "--data.label_key", "probabilities"]
    bank = trained(*argv)
    assert torch.allclose(bank["rows"], torch.tensor(columns["probabilities"]), atol=1e-6)
    assert bank["given_labels"].tolist() == columns["refined_label"]


def test_soft_labels_of_some_samples_do_not_change_the_others(tables, trained, tmp_path):
    part = pq.read_table(tables / "labels.parquet").slice(100, 50)
    pq.write_table(part, tmp_path / "part.parquet")
    argv = ["--labels", str(tmp_path / "part.parquet"), "--data.label_key", "probabilities"]
    rows = trained(*argv)["rows"]
    index = open_dataset("digits", None).split("train").index
    wanted = torch.eye(10)[torch.from_numpy(index.labels)]
    wanted[100:150] = torch.tensor(part["probabilities"].to_pylist())
    assert torch.allclose(rows, wanted, atol=1e-6)


def test_another_column_of_labels(tables, columns, trained):
    bank = trained("--labels", str(tables / "labels.csv"), "--data.label_key", "given_label")
    assert bank["given_labels"].tolist() == columns["given_label"]


def test_distillation_from_a_table_of_some_samples(tables, tmp_path, capsys):
    part = tmp_path / "part.parquet"
    pq.write_table(pq.read_table(tables / "labels.parquet").slice(100, 50), part)
    argv = ["--methods", "distillation", "--optim.epochs", "1", "--runs", str(tmp_path / "runs")]
    argv += ["--log.to", "csv", "--noise.kind", "none", "--distillation.teacher", str(part)]
    assert train(argv) == 0
    line = f"{part}: 50 of 1,437 samples are listed; the others keep their given label"
    assert capsys.readouterr().out.splitlines().count(line) == 1


def test_distillation_from_a_table(tables, tmp_path, capsys):
    argv = ["--methods", "distillation", "--optim.epochs", "1", "--runs", str(tmp_path / "runs")]
    argv += ["--log.to", "csv", "--log.show", "quiet", "--noise.kind", "none"]
    table = tables / "labels.parquet"
    assert train([*argv, "--distillation.teacher", str(table)]) == 0
    pq.write_table(pq.read_table(table).drop_columns("probabilities"), tmp_path / "hard.parquet")
    hard = tmp_path / "hard.parquet"
    message = message_of(capsys, *argv, "--distillation.teacher", str(hard))
    assert f"--distillation.teacher {hard}: has no probabilities; export it with" in message


def test_suspicious_samples_are_left_out(tables, columns, trained):
    scores = dict(zip(columns["id"], columns["score"], strict=True))
    for above, argv in ((0.5, []), (0.3, ["--data.exclude_above", "0.3"])):
        bank = trained("--data.exclude", str(tables / "labels.csv"), *argv)
        kept = [sample for sample, score in scores.items() if score <= above]
        assert bank["ids"].tolist() == kept
        assert 0 < len(kept) < 1437
    assert trained("--data.exclude", str(tables / "labels.parquet"))["ids"].tolist() == [
        sample for sample, score in scores.items() if score <= 0.5
    ]


@pytest.fixture
def marks(columns, tmp_path):
    """Marks of a report for samples whose refined label differs from the given one."""
    path = tmp_path / "marks.csv"
    changed = [i for i in columns["id"] if columns["given_label"][i] != columns["refined_label"][i]]
    marked = {}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(MARKS)
        for number, i in enumerate(changed[:30]):
            mark = ("keep", "fix", "unsure")[number % 3]
            given, refined = columns["given_label"][i], columns["refined_label"][i]
            label = {"keep": given, "fix": refined, "unsure": ""}[mark]
            marked[i] = mark, label
            names = columns["given_name"][i], columns["refined_name"][i]
            line = [i, columns["path"][i], given, refined, columns["score"][i], mark, label, *names]
            writer.writerow([f"'{x}" if column == "path" and number % 2 else x
                             for column, x in zip(MARKS, line, strict=True)])  # fmt: skip
    return path, marked


def test_marks_change_only_labels_set_by_a_person(marks, trained):
    path, marked = marks
    labels = trained("--labels", str(path))["given_labels"].tolist()
    wanted = open_dataset("digits", None).split("train").index.labels.tolist()
    before = list(wanted)
    for i, (_, label) in marked.items():
        if label != "":
            wanted[i] = label
    assert labels == wanted != before


def test_marks_leave_out_all_samples_except_kept_ones(marks, trained):
    path, marked = marks
    out = {i for i, (mark, _) in marked.items() if mark != "keep"}
    assert len(out) == 20
    ids = trained("--data.exclude", str(path))["ids"].tolist()
    assert ids == [i for i in range(1437) if i not in out]


def test_a_list_of_broken_files_is_not_a_table_of_labels(trained, tmp_path):
    index = open_dataset("digits", None).split("train").index
    path = tmp_path / "list.csv"
    write_exclusions(path, [(i, index.paths[i], "cut off") for i in (3, 1000)])
    assert read_left_out(path, index, 0.5) is None
    assert read_exclusions(path, index) == {3: "cut off", 1000: "cut off"}
    ids = trained("--data.exclude", str(path))["ids"].tolist()
    assert ids == [i for i in range(1437) if i not in (3, 1000)]


def test_noise_is_not_injected_into_the_labels_of_a_table(tables, tmp_path, capsys):
    table, runs = str(tables / "labels.csv"), tmp_path / "runs"
    message = message_of(capsys, "--labels", table, "--runs", str(runs))
    assert f"--data.label_file {table}: noise would be injected into these labels" in message
    assert "pass --noise.kind none" in message
    assert not runs.exists()


def test_a_missing_table_is_named(tmp_path, capsys):
    argv = ["--noise.kind", "none", "--runs", str(tmp_path / "runs")]
    path = tmp_path / "none.csv"
    message = message_of(capsys, *argv, "--labels", str(path))
    assert f"--data.label_file {path}: no such file" in message
    message = message_of(capsys, *argv, "--data.exclude", str(path))
    assert f"--data.exclude {path}: no such file; pass a table of" in message
    message = message_of(
        capsys, *argv, "--methods", "distillation", "--distillation.teacher", str(path)
    )
    assert f"--distillation.teacher {path}: neither a method" in message


def _with(columns, marked, before):
    """These labels, with those that people chose in their places."""
    row_of = {sample: row for row, sample in enumerate(columns["id"])}
    wanted = list(before)
    for i, (_, label) in marked.items():
        if label != "":
            wanted[row_of[i]] = label
    assert wanted != list(before)
    return wanted


def test_marks_come_after_the_noise(marks, columns, trained):
    """The default recipe: its marks are about labels with noise."""
    path, marked = marks
    noise = ["--noise.kind", "symmetric", "--noise.rate", "0.4"]
    bank = trained("--data.marks", str(path), *noise)
    assert bank["given_labels"].tolist() == _with(columns, marked, columns["given_label"])
    assert bank["clean_labels"].tolist() == columns["clean_label"]
    part = trained("--data.marks", str(path), "--data.limit", "300", *noise)
    plain = trained("--data.limit", "300", *noise)
    differing = (part["given_labels"] != plain["given_labels"]).nonzero().flatten()
    ids = set(part["ids"][differing].tolist())
    assert ids and ids <= {i for i, (_, label) in marked.items() if label != ""}


def test_marks_come_after_another_file_of_labels(marks, columns, tables, trained):
    path, marked = marks
    base = ["--labels", str(tables / "labels.csv"), "--data.label_key", "given_label"]
    bank = trained("--data.marks", str(path), *base)
    assert bank["given_labels"].tolist() == _with(columns, marked, columns["given_label"])


def test_marks_of_soft_labels(marks, columns, tables, trained):
    """A person's label replaces the soft one, too; others keep theirs."""
    path, marked = marks
    soft = ["--labels", str(tables / "labels.parquet"), "--data.label_key", "probabilities"]
    bank = trained("--data.marks", str(path), *soft)
    assert bank["given_labels"].tolist() == _with(columns, marked, columns["refined_label"])
    wanted = torch.tensor(columns["probabilities"])
    kept = [i for i, (mark, _) in marked.items() if mark == "keep"]
    wanted[kept] = torch.eye(10)[torch.tensor([marked[i][1] for i in kept])]
    assert torch.allclose(bank["rows"], wanted, atol=1e-6)


def test_marks_of_other_data(marks, tmp_path, capsys):
    path, _ = marks
    other = tmp_path / "other.csv"
    other.write_text(path.read_text().replace("digits/", "elsewhere/x"))
    message = message_of(capsys, "--data.marks", str(other), "--runs", str(tmp_path / "runs"))
    assert message.startswith(f"error: --data.marks {other}: 30 of its 30 samples are not in this")
    missing = message_of(capsys, "--data.marks", str(tmp_path / "none.csv"))
    assert missing.startswith(f"error: --data.marks {tmp_path / 'none.csv'}: ")


def test_marks_that_correct_and_leave_out(marks, columns, trained):
    """With both options what was fixed stays, with its label; what is unsure goes."""
    path, marked = marks
    base = ["--noise.kind", "symmetric", "--noise.rate", "0.4"]
    bank = trained("--data.marks", str(path), "--data.exclude", str(path), *base)
    unsure = {i for i, (mark, _) in marked.items() if mark == "unsure"}
    assert len(unsure) == 10
    corrected = _with(columns, marked, columns["given_label"])
    wanted = {i: k for i, k in zip(columns["id"], corrected, strict=True) if i not in unsure}
    assert dict(zip(bank["ids"].tolist(), bank["given_labels"].tolist(), strict=True)) == wanted
