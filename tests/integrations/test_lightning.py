"""The Lightning callback in one process; `test_processes.py` has two."""

import pytest
import torch
from torch.utils.data import DataLoader

from alr_fast.errors import UserError
from alr_fast.integrations import IndexedDataset
from helpers.adapter_workers import K, N, Recorder, new_criterion, new_dataset

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer

from alr_fast.integrations.lightning import ALRCallback

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(LightningModule):
    """With losses as attributes, by name; it records phases and losses of validation."""

    def __init__(self, criterion, /, **attributes):
        super().__init__()
        self.model = Recorder()
        for name, loss in attributes.items():
            setattr(self, name, loss)
        self.used = [criterion]  # a list does not make it a submodule
        self.phases, self.validated = [], []

    def training_step(self, batch, _):
        criterion = self.used[0]
        self.phases.append(criterion.warming_up)
        return criterion(self.model(batch[0]), batch[1])

    def validation_step(self, batch, _):
        logits = self.model(batch[0])
        expected = torch.nn.functional.cross_entropy(logits, batch[1])
        self.validated.append((float(self.used[0](logits, batch[1])), float(expected)))

    test_step = validation_step

    def train_dataloader(self):
        return DataLoader(IndexedDataset(new_dataset()), batch_size=13, shuffle=True)

    def val_dataloader(self):
        return DataLoader(new_dataset(), batch_size=13)

    test_dataloader = val_dataloader

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder, epochs, *callbacks):
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=[*callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


@pytest.mark.parametrize("part_of_module", [True, False])
def test_epochs_are_announced_and_validation_is_cross_entropy(part_of_module, tmp_path):
    criterion = new_criterion(warmup_epochs=2)
    module = Module(criterion, **({"criterion": criterion} if part_of_module else {}))
    run = trainer(tmp_path, 3, ALRCallback(None if part_of_module else criterion))
    run.fit(module)  # with the sanity check before any epoch
    assert module.phases == [True, True, True, True, False, False]
    assert len(module.validated) == 2 * 4
    for loss, expected in module.validated:
        assert loss == pytest.approx(expected, rel=1e-5)
    assert criterion.training
    run.test(module)
    assert len(module.validated) == 2 * 5
    loss, expected = module.validated[-1]
    assert loss == pytest.approx(expected, rel=1e-5)
    assert (criterion.bank.rows.amax(1) < 1).all()


def test_a_training_that_cannot_change_a_label_is_told_at_its_start(tmp_path):
    criterion = new_criterion()
    with pytest.warns(UserWarning, match="2 epochs cannot change a label.* max_epochs 8 or more"):
        trainer(tmp_path, 2, ALRCallback(criterion)).fit(Module(criterion))


def test_steps_are_announced_to_a_warmup_in_steps(tmp_path):
    criterion = new_criterion(warmup_epochs=None, warmup_steps=3, history=True)
    trainer(tmp_path, 2, ALRCallback(criterion)).fit(module := Module(criterion))
    assert module.phases == [True, True, True, False]
    assert (criterion.bank.history.passes == 2).all()


@pytest.mark.parametrize("part_of_module", [True, False])
def test_the_bank_is_saved_once_and_restored(part_of_module, tmp_path):
    def new():
        criterion = new_criterion()
        module = Module(criterion, **({"criterion": criterion} if part_of_module else {}))
        return criterion, module, ALRCallback(None if part_of_module else criterion)

    criterion, module, callback = new()
    run = trainer(tmp_path, 2, callback)
    run.fit(module)
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    names = [name for name in saved["state_dict"] if "bank" in name]
    assert bool(names) == part_of_module
    assert bool(saved["callbacks"].get("ALRCallback")) == (not part_of_module)
    other, module, callback = new()
    trainer(tmp_path, 2, callback).fit(module, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(other.bank.rows, criterion.bank.rows)
    assert not module.phases  # there was no epoch left
    resumed, module, callback = new()
    trainer(tmp_path, 3, callback).fit(module, ckpt_path=tmp_path / "last.ckpt")
    assert module.phases == [False, False]
    assert not torch.equal(resumed.bank.rows, criterion.bank.rows)


def test_a_loss_that_cannot_be_found_is_asked_for(tmp_path):
    for count in (0, 2):
        losses = {f"loss{i}": new_criterion() for i in range(count)}
        message = rf"criterion: missing; the module Module has {count} losses"
        with pytest.raises(UserError, match=message):
            trainer(tmp_path, 1, ALRCallback()).fit(Module(new_criterion(), **losses))
    with pytest.raises(UserError, match=r"criterion CrossEntropyLoss: must be a loss of alr_fast"):
        ALRCallback(torch.nn.CrossEntropyLoss())
    with pytest.raises(RuntimeError, match=r"when Trainer\.fit begins"):
        _ = ALRCallback().criterion


def test_the_end_of_an_epoch_checks_the_bank(tmp_path):
    criterion = new_criterion()
    criterion.bank.status[1] = 3  # as a kernel on a GPU counts an index beyond the bank
    with pytest.raises(IndexError, match="3 batch rows had an index beyond"):
        trainer(tmp_path, 1, ALRCallback(criterion)).fit(Module(criterion))
    assert len(criterion.bank) == N and criterion.bank.num_classes == K
