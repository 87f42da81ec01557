"""Runs that are exported or refused: unfinished runs, damaged files, other data."""

import math
import shutil
from itertools import pairwise

import pytest
import torch
import yaml
from safetensors.torch import load_file

from alr_fast.labels.suspicion import recent_changes
from alr_fast.train import main as train
from helpers.exported_runs import exported, make_old, refused, rewrite_bank
from helpers.image_folder import write_folder

pytestmark = pytest.mark.usefixtures("one_thread")


def unfinish(run):
    """Makes a run look as if it was stopped after its last checkpoint."""
    for name in ("summary.json", "alr_bank.safetensors"):
        (run / name).unlink()


def checkpoints_of(run):
    return sorted((run / "checkpoints").iterdir())


def test_an_unfinished_run_is_exported_from_its_checkpoint(run, capsys):
    wanted = exported(run, "--soft").to_pydict()
    unfinish(run)
    capsys.readouterr()
    table = exported(run, "--soft").to_pydict()
    lines = capsys.readouterr().out.splitlines()
    source, first = next(pair for pair in pairwise(lines) if pair[0].startswith("alr: from "))
    newest = checkpoints_of(run)[-1]
    assert source.startswith(f"alr: from {newest}, in epoch ")
    assert first.endswith("1,437 labels refined to another class, in a run that was not finished")
    # The checkpoint is from the end of the last epoch: it has the final bank.
    assert list(table) == list(wanted)
    given_loss = table.pop("given_loss"), wanted.pop("given_loss")
    assert given_loss[0] == pytest.approx(given_loss[1], nan_ok=True)
    assert table == wanted
    assert not [p for p in run.iterdir() if "bank" in p.name]


def test_an_earlier_checkpoint_has_the_labels_of_its_time(run, capsys):
    wanted = exported(run).to_pydict()
    changes = load_file(run / "alr_bank.safetensors")["changes"].numpy()
    unfinish(run)
    shutil.rmtree(checkpoints_of(run)[-1])
    assert len(checkpoints_of(run)) == 1
    capsys.readouterr()
    table = exported(run).to_pydict()
    # From after the last step, but before the changes of that epoch were recorded.
    assert "in epoch 7 after step 12\n" in capsys.readouterr().out
    assert table["refined_label"] == wanted["refined_label"]
    assert table["changes"] == recent_changes(changes >> 1).tolist() != wanted["changes"]


def test_an_unfinished_run_without_a_bank(run, tmp_path, capsys):
    unfinish(run)
    message = refused(capsys, run, "--method", "ce")
    assert "method ce has no label bank; it was not finished" in message
    assert "--resume auto" in message
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
        (["--csv", "--output", "a.csv"], "--csv: --output names the file already; leave"),
        (["--soft", "1"], "unrecognized arguments: 1; --help lists every option"),
    ],
)
def test_wrong_options(run, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, run, *argv)
    assert list(tmp_path.iterdir()) == [run]


@pytest.mark.parametrize("size", [0, 5, 1000, -4])
def test_a_truncated_bank(run, capsys, size):
    path = run / "alr_bank.safetensors"
    with path.open("r+b") as file:
        file.truncate(size if size >= 0 else path.stat().st_size + size)
    message = refused(capsys, run)
    assert f"{path}: cannot be read as a label bank (" in message
    assert "train again, or pass another run" in message


def test_a_file_without_a_bank(run, capsys):
    (run / "ce.safetensors").replace(run / "alr_bank.safetensors")
    assert "cannot be read as a label bank" in refused(capsys, run)


def test_data_that_is_gone_is_not_needed(moved):
    root, run = moved
    wanted = exported(run)
    shutil.rmtree(root)
    assert exported(run) == wanted
    assert wanted["path"].to_pylist()[:2] == ["train/a/000.png", "train/a/001.png"]


def test_an_unfinished_run_is_exported_without_its_data(folder_run, tmp_path):
    root = shutil.copytree(folder_run[0], tmp_path / "set")
    argv = ["--data-root", str(root), "--runs", str(tmp_path / "runs"), "--optim.epochs", "1"]
    argv += ["--optim.batch_size", "8", "--data.workers", "1", "--checkpoint.steps", "3"]
    argv += ["--noise.kind", "symmetric", "--noise.rate", "0.9"]
    assert train([*argv, "--methods", "alr", "--log.to", "csv", "--log.show", "quiet"]) == 0
    run = (tmp_path / "runs" / "latest").resolve()
    wanted = exported(run)
    unfinish(run)
    shutil.rmtree(root)
    table = exported(run)
    # The given labels are those after the noise, the clean ones those before.
    for name in ("id", "path", "given_label", "given_name", "clean_label"):
        assert table[name] == wanted[name]
    (samples,) = run.glob("samples-*.safetensors")
    saved = load_file(samples)
    assert saved["ids"].tolist() == table["id"].to_pylist()
    assert saved["given_labels"].tolist() == table["given_label"].to_pylist()
    assert bytes(saved["paths"].tolist()).decode().split("\0")[:-1] == table["path"].to_pylist()


def added(root):
    shutil.copy(root / "train/a/000.png", root / "train/a/0001.png")


def renamed(root):
    (root / "train/b/011.png").rename(root / "train/b/012.png")


def removed(root):
    (root / "train/b/011.png").unlink()


def other_class(root):
    for split in ("train", "test"):
        (root / split / "a").rename(root / split / "c")


CHANGES = [added, renamed, removed, other_class]


@pytest.mark.parametrize("change", CHANGES)
def test_data_that_has_changed_is_no_error(moved, change):
    root, run = moved
    wanted = exported(run)
    change(root)
    assert exported(run, "--data-root", str(root)) == wanted


def test_another_data_set_is_refused_if_it_is_asked_for(moved, tmp_path, capsys):
    _, run = moved
    other = write_folder(tmp_path / "other", train={"x": 3, "y": 3}, test={"x": 2, "y": 2})
    message = refused(capsys, run, "--data-root", str(other))
    assert f"--data-root {other}: has none of the 24 samples of the run (train/a/000.png" in message
    message = refused(capsys, run, "--data-root", str(tmp_path / "none"))
    assert f"--data-root {tmp_path / 'none'}: no such file or folder" in message


def test_an_old_run_is_exported_with_its_data(moved, capsys):
    root, run = moved
    wanted = exported(run)
    make_old(run)
    assert "nowhere" in refused(capsys, run)
    assert exported(run, "--data-root", str(root)) == wanted


@pytest.mark.parametrize("change", [added, renamed, removed])
def test_an_old_run_needs_the_files_that_it_had(moved, capsys, change):
    root, run = moved
    make_old(run)
    change(root)
    message = refused(capsys, run, "--data-root", str(root))
    assert f"{run / 'alr_bank.safetensors'}: its sample fingerprint is not the data's" in message
    assert "pass the data of that run: --data-root DIR" in message


def test_an_old_run_needs_the_classes_that_it_had(moved, capsys):
    root, run = moved
    make_old(run)
    for split in ("train", "test"):
        (root / split / "b").rename(root / split / "c")
    message = refused(capsys, run, "--data-root", str(root))
    assert "made with 2 classes (a, b), the data set has 2 (a, c); pass the data" in message


def test_an_old_unfinished_run_is_exported_with_its_data(run):
    wanted = exported(run).to_pydict()
    unfinish(run)
    (samples,) = run.glob("samples-*.safetensors")
    samples.unlink()
    assert exported(run)["clean_label"].to_pylist() == wanted["clean_label"]


def test_methods_are_a_text_as_printed(run):
    path = run / "config.yaml"
    options = yaml.safe_load(path.read_text())
    wanted = exported(run)
    path.write_text(yaml.safe_dump(options | {"methods": ",".join(options["methods"])}))
    assert exported(run) == wanted


@pytest.mark.parametrize("methods", [3, {"alr": 1}, ["alr", 3], None, "../alr"])
def test_methods_that_are_no_names(run, capsys, methods):
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"methods": methods}))
    assert f"{path}: cannot be read (" in refused(capsys, run)


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, value) for name in ("data", "noise", "data_root") for value in (3, [1])),
     ("data_root", {"a": 1}), ("noise", {"odd": 1}), ("data", None)],
)  # fmt: skip
def test_options_of_another_type(run, capsys, name, value):
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {name: value}))
    assert f"{path}: cannot be read (" in refused(capsys, run)


def nan(bank, facts):
    bank["rows"][7, 2] = math.nan


def negative(bank, facts):
    bank["rows"][7, 2] = -0.1


def too_large(bank, facts):
    bank["rows"][7] = 0.9


def infinite(bank, facts):
    bank["rows"][7, 2] = math.inf


def replaced(name, value):
    def change(bank, facts):
        if isinstance(value, str):
            facts[name] = value
        else:
            bank[name] = value(bank[name]).contiguous()

    return change


def without(name):
    return lambda bank, facts: bank.pop(name)


def edited(name, value, row=3):
    def change(column):
        column[row] = value
        return column

    return replaced(name, change)


BAD_BANKS = {
    "NaN": (nan, "row 7 has a NaN or infinite value"),
    "infinite": (infinite, "row 7 has a NaN or infinite value"),
    "negative": (negative, "row 7 has a negative value, -0.1"),
    "no probabilities": (too_large, "row 7 sums to 9, not to 1"),
    "names": (replaced("class_names", "[1, 2]"), "class_names is not a list of texts"),
    "no list": (replaced("class_names", '{"a": 1}'), "class_names is not a list of texts"),
    "nested": (replaced("class_names", "[" * 9999), "class_names is missing or damaged"),
    "fewer names": (replaced("class_names", '["a"]'), "1 class_names for 10 classes"),
    "label": (edited("given_labels", 10), r"given_labels are not all in [0, 10)"),
    "label below": (edited("given_labels", -1), r"given_labels are not all in [0, 10)"),
    "clean label": (edited("clean_labels", 10), r"clean_labels are not all in [0, 10)"),
    "float labels": (replaced("given_labels", lambda t: t.float()), "given_labels is float32"),
    "fewer labels": (replaced("given_labels", lambda t: t[:-1]), "given_labels is int64 [1436]"),
    "no labels": (without("given_labels"), "it has no given_labels"),
    "no ids": (without("ids"), "it has no ids"),
    "twice": (edited("ids", 2), "ids are not ascending numbers"),
    "order": (replaced("ids", lambda t: t.flip(0)), "ids are not ascending numbers"),
    "negative ids": (replaced("ids", lambda t: t - 1), "ids are not ascending numbers"),
    "flat ids": (replaced("ids", lambda t: t.view(-1, 1)), "ids is int64 [1437, 1]"),
    "no history": (without("given_loss"), "it has no given_loss"),
    "history": (replaced("changes", lambda t: t.int()), "changes is int32 [1437]"),
    "losses": (edited("given_loss", -1.0), "given_loss and changes are not those"),
    "infinite loss": (edited("given_loss", math.inf), "given_loss and changes are not those"),
    "negative changes": (edited("changes", -1), "given_loss and changes are not those"),
    "no paths": (without("path_offsets"), "it has no path_offsets"),
    "fewer paths": (replaced("path_offsets", lambda t: t[:-1]), "path_offsets is int64 [1437]"),
    "bytes of paths": (replaced("paths", lambda t: t[:-1]), "paths are not those of 1437 samples"),
    "zero in a path": (edited("paths", 0), "paths are not those of 1437 samples"),
    "end of a path": (edited("path_offsets", 5), "paths are not those of 1437 samples"),
    "far offset": (edited("path_offsets", 2**62), "paths are not those of 1437 samples"),
    "offset below 0": (edited("path_offsets", -(2**63)), "paths are not those of 1437 samples"),
    "wrapping": (
        replaced("path_offsets", lambda t: torch.cat([t[:1], t[:1] - 1 + 2**63 - 1, t[2:]])),
        "paths are not those of 1437 samples",
    ),
    "fewer rows": (replaced("rows", lambda t: t[:-1]), "1437 ids for 1436 rows"),
    "only offsets": (without("paths"), "it has no paths"),
}


@pytest.mark.parametrize("case", BAD_BANKS)
def test_a_bank_with_wrong_content(run, capsys, case):
    change, why = BAD_BANKS[case]
    rewrite_bank(run, change)
    message = refused(capsys, run)
    assert f"{run / 'alr_bank.safetensors'}: cannot be read as a label bank ({why}" in message


@pytest.mark.parametrize("case", ["NaN", "negative", "no probabilities"])
def test_an_old_bank_with_wrong_rows(run, capsys, case):
    change, why = BAD_BANKS[case]
    make_old(run, change)
    assert f"cannot be read as a label bank ({why}" in refused(capsys, run)


def test_a_flipped_bit_anywhere_in_a_bank(folder_run, tmp_path, capsys):
    run = shutil.copytree(folder_run[1], tmp_path / "run")
    path = run / "alr_bank.safetensors"
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        message = refused(capsys, run)
        assert f"{path}: cannot be read as a label bank (" in message


def test_a_flipped_bit_in_the_samples(folder_run, tmp_path, capsys):
    root, run = folder_run
    argv = ["--data-root", str(root), "--runs", str(tmp_path / "runs"), "--optim.epochs", "1"]
    argv += ["--optim.batch_size", "8", "--data.workers", "1", "--checkpoint.steps", "3"]
    assert train([*argv, "--methods", "alr", "--log.to", "csv", "--log.show", "quiet"]) == 0
    capsys.readouterr()
    run = (tmp_path / "runs" / "latest").resolve()
    unfinish(run)
    (path,) = run.glob("samples-*.safetensors")
    good = path.read_bytes()
    for position in range(0, len(good), 101):
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        assert f"{path}: cannot be read as the samples of a run (" in refused(capsys, run)
