"""Class-balanced sampling in a run."""

import shutil

import numpy as np
import pytest
from safetensors.torch import load_file

from alr_fast.train import main
from alr_fast.training.trainer import Trainer
from helpers.image_folder import write_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def root(tmp_path):
    """One class in four images, of which three batches of eight cannot do with each once."""
    return write_folder(tmp_path / "set", train={"a": 20, "b": 4}, test={"a": 4, "b": 2})


def trained(root, *argv):
    words = ["--data-root", str(root), "--runs", str(root.parent / "runs"), "--methods", "elr,alr"]
    words += ["--optim.epochs", "2", "--optim.batch_size", "8", "--data.workers", "0"]
    words += ["--data.balance", "classes", "--log.to", "csv", "--log.show", "quiet"]
    words += ["--alr.momentum", "0.3", "--alr.warmup_epochs", "0"]
    assert main([*words, *argv]) == 0
    return (root.parent / "runs/latest").resolve()


def test_classes_are_balanced_and_rows_may_come_twice(root, monkeypatch):
    labels, promised = [], set()
    step = Trainer.train_step

    def watched(trainer, batch):
        labels.append(batch["label"].tolist())
        promised.add(trainer.criterion.unique_index)
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", watched)
    run = trained(root)
    assert promised == {False}
    epochs = np.array(labels).reshape(4, 24)  # two methods, two epochs of three batches of eight
    assert [np.bincount(epoch).tolist() for epoch in epochs] == [[12, 12]] * 4
    assert np.array_equal(epochs[:2], epochs[2:])  # the same for all methods
    rows = load_file(run / "alr_bank.safetensors")["rows"]
    assert rows.isfinite().all() and (rows.sum(1) - 1).abs().max() < 1e-5
    labels.clear()
    trained(root, "--data.balance", "none", "--methods", "ce", "--optim.epochs", "1")
    assert np.bincount(np.concatenate(labels)).tolist() == [20, 4]


def test_a_balanced_run_resumes_bit_for_bit(root):
    run = trained(root, "--checkpoint.steps", "4", "--checkpoint.keep", "9", "--methods", "alr")
    files = {path: path.read_bytes() for path in run.glob("alr*.safetensors")}
    kept = sorted((run / "checkpoints").iterdir())
    for path in (run / "summary.json", *files):
        path.unlink()
    for path in kept[1:]:
        shutil.rmtree(path)
    assert trained(root, "--methods", "alr", "--checkpoint.steps", "4", "--checkpoint.keep", "9",
                   "--resume", str(run)) == run  # fmt: skip
    assert len(files) == 2
    assert all(path.read_bytes() == before for path, before in files.items())
