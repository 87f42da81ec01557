"""Runs that are exported or refused: unfinished runs, damaged files, other data."""

import shutil

import pytest
from safetensors.torch import load_file

from alr_fast.labels.suspicion import recent_changes
from alr_fast.train import main as train
from helpers.exported_runs import exported, refused

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
    source, first, *_ = capsys.readouterr().out.splitlines()[-4:]
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
