"""Resuming a run whose data set has grown, shrunk or been put into another order."""

import csv
import shutil

import pytest
import torch
from safetensors.torch import load_file

from alr_fast.train import main as train
from helpers.image_folder import write_folder

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = ["--optim.epochs", "3", "--optim.batch_size", "8", "--data.workers", "1"]
OPTIONS += ["--alr.warmup_epochs", "0", "--alr.momentum", "0.4", "--log.to", "csv"]
OPTIONS += ["--checkpoint.steps", "2", "--checkpoint.keep", "20", "--log.show", "lines"]
LAST, MIDDLE = -1, 2  # after all epochs (9 steps), and in the second of three epochs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of 24 images, and of a finished run of alr on them with all its checkpoints."""
    base = tmp_path_factory.mktemp("trained")
    root = write_folder(base / "set", train={"a": 12, "b": 12}, test={"a": 4, "b": 4})
    return _train(base, root, "alr")


def _train(base, root, methods, *argv):
    words = ["--data-root", str(root), "--runs", str(base / "runs"), "--methods", methods, *argv]
    assert train([*OPTIONS, *words, "--checkpoint.steps", "1"]) == 0
    return root, (base / "runs/latest").resolve()


@pytest.fixture
def resume(trained, tmp_path, capsys):
    """Resumes a copy of the run from one of its checkpoints, after a change of its data."""
    root, run = trained
    root = shutil.copytree(root, tmp_path / "set")
    copy = shutil.copytree(run, tmp_path / "runs" / run.name)

    def resume(change, position, *argv, methods="alr"):
        for name in ("summary.json", f"{methods}_bank.safetensors"):
            (copy / name).unlink(missing_ok=True)
        checkpoints = sorted((copy / "checkpoints").iterdir())
        for path in checkpoints[len(checkpoints) + position + 1 if position < 0 else 5 :]:
            shutil.rmtree(path)
        change(root)
        capsys.readouterr()
        words = ["--data-root", str(root), "--runs", str(copy.parent), "--methods", methods]
        status = train([*OPTIONS, *words, "--checkpoint.steps", "1", "--resume", "auto", *argv])
        found = capsys.readouterr()
        return status, found.out + found.err, copy

    resume.before = load_file(run / "alr_bank.safetensors")
    return resume


def by_path(bank):
    """Row of each path in a bank file."""
    paths = bytes(bank["paths"].tolist()).decode().split("\0")[:-1]
    return {path: row for row, path in enumerate(paths)}


def grow_and_shrink(root):
    """Takes one image away, which moves the ids of the others, and adds three."""
    (root / "train/a/003.png").unlink()
    for name in ("a/0001.png", "a/zz.png", "b/0051.png"):
        shutil.copy(root / "train/b/000.png", root / "train" / name)


def shrink(root):
    (root / "train/b/011.png").unlink()


def grow(root):
    shutil.copy(root / "train/b/000.png", root / "train/a/0001.png")


LINES = {
    grow_and_shrink: "26 samples, the checkpoint 24: 23 continue, 1 is gone, 3 start from their "
    "labels",
    shrink: "23 samples, the checkpoint 24: 23 continue, 1 is gone",
    grow: "25 samples, the checkpoint 24: 24 continue, 1 starts from its label",
}


@pytest.mark.parametrize("change", LINES)
def test_known_samples_keep_their_rows_and_new_ones_start_from_their_labels(resume, change):
    status, output, run = resume(change, LAST)
    assert status == 0, output
    assert output.count(f"the data set has {LINES[change]}\n") == 1
    after = load_file(run / "alr_bank.safetensors")
    # After the last epoch nothing is trained any more: the rows are those of the checkpoint.
    before_rows, after_rows = by_path(resume.before), by_path(after)
    for path, row in after_rows.items():
        wanted = torch.eye(2)[after["given_labels"][row]]
        loss = torch.tensor(torch.nan)
        if path in before_rows:
            wanted = resume.before["rows"][before_rows[path]]
            loss = resume.before["given_loss"][before_rows[path]]
        assert torch.equal(after["rows"][row], wanted), path
        assert torch.equal(after["given_loss"][row].isnan(), loss.isnan())
    assert before_rows.keys() - after_rows.keys() == (
        {"train/a/003.png"} if change is grow_and_shrink
        else {"train/b/011.png"} if change is shrink else set()
    )  # fmt: skip


@pytest.mark.parametrize("change", LINES)
def test_the_interrupted_epoch_starts_anew(resume, change):
    status, output, run = resume(change, MIDDLE)
    assert status == 0, output
    assert "alr: resumes in epoch 2 after step 0, from " in output
    assert f"the data set has {LINES[change]}; epoch 2 starts anew\n" in output
    with (run / "metrics.csv").open() as file:
        assert [line["epoch"] for line in csv.DictReader(file)] == ["1", "2", "3"]
    after = load_file(run / "alr_bank.safetensors")
    assert after["given_loss"].isfinite().all()  # each sample was trained on
    # The next start finds the samples of now.
    assert len(list(run.glob("samples-*.safetensors"))) == 2


def test_an_older_checkpoint_still_finds_its_samples(resume, capsys):
    status, output, run = resume(grow, MIDDLE)
    assert status == 0, output
    (run / "summary.json").unlink()
    oldest = min((run / "checkpoints").iterdir())
    words = ["--data-root", str(run.parent.parent / "set"), "--runs", str(run.parent)]
    words += ["--methods", "alr", "--checkpoint.steps", "1", "--resume", str(oldest)]
    assert train([*OPTIONS, *words]) == 0
    assert LINES[grow] in capsys.readouterr().err


def test_a_file_that_was_renamed_is_another_sample(resume):
    def rename(root):
        (root / "train/a/003.png").rename(root / "train/a/zz.png")

    status, output, _ = resume(rename, MIDDLE)
    assert status == 0
    assert "24 samples, the checkpoint 24: 23 continue, 1 is gone, 1 starts from its" in output


def test_an_image_that_moved_to_another_class_is_another_sample(resume):
    def move(root):
        (root / "train/a/003.png").rename(root / "train/b/zz.png")

    status, output, _ = resume(move, MIDDLE)
    assert status == 0
    assert "23 continue, 1 is gone, 1 starts from its label" in output


def test_another_data_set_is_refused(resume):
    def replace(root):
        for path in sorted((root / "train").rglob("*.png"))[::2]:
            path.rename(path.with_name(f"x{path.name}"))
        (root / "train/a/001.png").unlink()

    status, output, run = resume(replace, MIDDLE)
    assert status == 2
    assert "was made with other training samples (24, now 23, 11 of them the same)" in output
    assert not (run / "summary.json").exists()


def test_classes_that_came_or_went_are_named(resume):
    def rename(root):
        (root / "train/a").rename(root / "train/z")
        (root / "test/a").rename(root / "test/z")

    status, output, _ = resume(rename, MIDDLE)
    assert status == 2
    assert "was made with 2 classes (a, b), this data set has 2 (without a, with z); pass" in output


def test_a_run_of_an_earlier_version_needs_the_samples_that_it_had(resume):
    def forget(root):
        for path in (root.parent / "runs").rglob("samples-*"):
            path.unlink()
        grow(root)

    status, output, _ = resume(forget, MIDDLE)
    assert status == 2
    assert "was made with other training samples (24, now 25); its label bank" in output


def test_a_method_without_a_bank_goes_on_too(trained, tmp_path, capsys):
    root = shutil.copytree(trained[0], tmp_path / "set")
    _, run = _train(tmp_path, root, "ce")
    (run / "summary.json").unlink()
    for path in sorted((run / "checkpoints").iterdir())[5:]:
        shutil.rmtree(path)
    grow(root)
    words = ["--data-root", str(root), "--runs", str(run.parent), "--methods", "ce"]
    capsys.readouterr()
    assert train([*OPTIONS, *words, "--checkpoint.steps", "1", "--resume", "auto"]) == 0
    assert "24 continue, 1 starts from its label; epoch 2 starts anew" in capsys.readouterr().err


def test_noise_that_is_drawn_anew_gives_other_labels(trained, tmp_path, capsys):
    root = shutil.copytree(trained[0], tmp_path / "set")
    noise = ["--noise.kind", "symmetric", "--noise.rate", "0.5"]
    _, run = _train(tmp_path, root, "alr", *noise, "--data.validation", "0.1")
    for name in ("summary.json", "alr_bank.safetensors"):
        (run / name).unlink()
    for path in sorted((run / "checkpoints").iterdir())[5:]:
        shutil.rmtree(path)
    grow(root)
    words = ["--data-root", str(root), "--runs", str(run.parent), "--methods", "alr", *noise]
    words += ["--data.validation", "0.1", "--checkpoint.steps", "1", "--resume", "auto"]
    capsys.readouterr()
    assert train([*OPTIONS, *words]) == 2
    error = capsys.readouterr().err
    assert "other given labels of the same samples (noise is drawn anew" in error
    assert train([*OPTIONS, *words, "--checkpoint.other_labels", "true"]) == 0
    error = capsys.readouterr().err
    assert " with another label; epoch 2 starts anew; the held-out samples are drawn anew" in error
