"""When checkpoints are written, and how."""

import pytest
import torch

from alr_fast.train import main
from alr_fast.training.checkpoint.store import CheckpointStore
from alr_fast.training.trainer import Trainer


@pytest.mark.parametrize(("placement", "waits"), [("file", True), ("device", False)])
def test_only_a_bank_in_a_file_makes_training_wait(
    tmp_path, monkeypatch, one_thread, placement, waits
):
    """Its rows may be larger than the memory: there is no copy to write in the background."""
    found, genuine = [], CheckpointStore.save

    def save(self, *arguments, wait):
        found.append(wait)
        return genuine(self, *arguments, wait=wait)

    monkeypatch.setattr(CheckpointStore, "save", save)
    words = ["--methods", "alr", "--optim.epochs", "2", "--data.limit", "100"]
    words += ["--data.test_limit", "20", "--optim.batch_size", "50", "--checkpoint.steps", "2"]
    words += ["--bank.placement", placement, "--log.show", "quiet", "--runs", str(tmp_path)]
    assert main(words) == 0
    assert set(found) == {waits}


def test_a_checkpoint_of_an_earlier_version_has_more_than_the_counters_of_the_bank(
    tmp_path, monkeypatch, one_thread
):
    """The kernels had scratch in the same tensor."""
    genuine = Trainer.tensors

    def tensors(self):
        found = genuine(self)
        scratch = found["rank0.bank_status"].new_tensor([7, 9])
        return found | {"rank0.bank_status": torch.cat((self.criterion.bank.status, scratch))}

    words = ["--methods", "alr", "--data.limit", "100", "--data.test_limit", "20"]
    words += ["--optim.epochs", "2", "--optim.batch_size", "50", "--checkpoint.steps", "1"]
    words += ["--checkpoint.keep", "9", "--log.show", "quiet", "--runs", str(tmp_path)]
    with monkeypatch.context() as earlier:
        earlier.setattr(Trainer, "tensors", tensors)
        assert main(words) == 0
    run = (tmp_path / "latest").resolve()
    (run / "summary.json").unlink()
    oldest = min((run / "checkpoints").iterdir())
    assert main([*words, "--resume", str(oldest)]) == 0
