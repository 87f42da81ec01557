"""When checkpoints are written, and how."""

import pytest

from alr_fast.train import main
from alr_fast.training.checkpoint.store import CheckpointStore


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
