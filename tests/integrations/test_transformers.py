"""The mix-in for Transformers' Trainer in one process; `test_processes.py` has two."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from alr_fast.errors import UserError
from alr_fast.integrations import IndexedDataset
from helpers.adapter_workers import K, N, new_criterion, new_dataset

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import Trainer, TrainingArguments

from alr_fast.integrations.transformers import FILE_NAME, ALRTrainerMixin


class ALRTrainer(ALRTrainerMixin, Trainer):
    """It records the phase of each training step."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            self.phases = [*getattr(self, "phases", []), self.criterion.warming_up]
            assert inputs["labels"].shape == (len(inputs["x"]), 2)
        return super().compute_loss(model, inputs, *args, **kwargs)


class Model(nn.Module):
    """Returns a mapping as Transformers' models do, or a tuple."""

    def __init__(self, as_tuple: bool = False) -> None:
        super().__init__()
        self.layer, self.as_tuple = nn.Linear(4, K), as_tuple

    def forward(self, x, labels=None):
        assert labels is None
        logits = self.layer(x)
        return (logits,) if self.as_tuple else {"logits": logits}


class OnlyInputs(nn.Module):
    """A model whose `forward` does not name the labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, K)

    def forward(self, x):
        return {"logits": self.layer(x)}


def items(**more) -> list[dict]:
    """Items of the data set, with a column that the model does not take."""
    pairs = zip(*new_dataset().tensors, strict=True)
    return [{"x": x, "label": int(y), "text": "?", **more} for x, y in pairs]


def new_trainer(folder, epochs=2, criterion=None, model=None, data=None, **options):
    arguments = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 13,
        "save_strategy": "epoch",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_strategy": "no",
    } | options
    return ALRTrainer(
        model or Model(),
        TrainingArguments(str(folder), **arguments),
        train_dataset=items() if data is None else data,
        eval_dataset=items(),
        criterion=criterion or new_criterion(),
        compute_metrics=lambda p: {"shape": [*p.predictions.shape, *p.label_ids.shape]},
    )


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("remove_unused_columns", [False, True])
def test_the_index_reaches_the_loss_and_evaluation_is_cross_entropy(
    as_tuple, wrapped, remove_unused_columns, tmp_path
):
    data = items()
    if not remove_unused_columns:  # its model would get the text
        data = [{key: item[key] for key in ("x", "label")} for item in data]
    trainer = new_trainer(
        tmp_path,
        model=Model(as_tuple),
        data=IndexedDataset(data) if wrapped else data,
        remove_unused_columns=remove_unused_columns,
        save_strategy="no",
    )
    trainer.eval_dataset = data
    trainer.train()
    assert trainer.phases == [True, True, False, False]
    bank = trainer.criterion.bank
    assert (bank.rows.amax(1) < 1).all()
    before = bank.rows.clone()
    metrics = trainer.evaluate()
    x, y = new_dataset().tensors
    expected = nn.functional.cross_entropy(trainer.model.layer(x), y)
    assert metrics["eval_loss"] == pytest.approx(float(expected.detach()), rel=1e-4)
    assert metrics["eval_shape"] == [N, K, N]
    assert torch.equal(bank.rows, before)


def test_the_labels_of_a_model_that_does_not_take_them_are_kept(tmp_path):
    trainer = new_trainer(tmp_path, model=OnlyInputs(), save_strategy="no")
    trainer.train()
    assert (trainer.criterion.bank.rows.amax(1) < 1).all()
    assert trainer.evaluate()["eval_shape"] == [N, K, N]


def test_a_training_that_cannot_change_a_label_is_told_at_its_start(tmp_path):
    with pytest.warns(UserWarning, match="2 epochs cannot .* num_train_epochs 8 or more"):
        new_trainer(tmp_path, save_strategy="no").train()


def test_accumulated_steps_have_the_gradient_of_the_whole_batch(tmp_path):
    weights = []
    for batch_size, steps in ((26, 1), (13, 2)):
        torch.manual_seed(0)
        trainer = new_trainer(
            tmp_path,
            epochs=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            save_strategy="no",
            optim="sgd",
            max_grad_norm=0,
            learning_rate=0.1,
        )
        trainer.train()
        weights.append(trainer.model.layer.weight)
    torch.testing.assert_close(*weights)


def test_a_checkpoint_restores_the_bank(tmp_path):
    first = new_trainer(tmp_path)
    first.train()
    saved = torch.load(tmp_path / "checkpoint-4" / FILE_NAME, weights_only=True)
    assert torch.equal(saved["bank.rows"], first.criterion.bank.rows)
    resumed = new_trainer(tmp_path, epochs=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.phases == [False, False]  # epoch 2 of 0, 1, 2
    assert not torch.equal(resumed.criterion.bank.rows, saved["bank.rows"])
    again = new_trainer(tmp_path)
    again.train(str(tmp_path / "checkpoint-4"))  # no epoch left
    assert torch.equal(again.criterion.bank.rows, saved["bank.rows"])
    (tmp_path / "checkpoint-4" / FILE_NAME).unlink()
    with pytest.raises(UserError, match=rf"checkpoint-4: has no {FILE_NAME}"):
        new_trainer(tmp_path).train(str(tmp_path / "checkpoint-4"))


def test_the_bank_is_saved_with_the_model(tmp_path):
    trainer = new_trainer(tmp_path)
    trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / FILE_NAME).is_file()


def test_steps_are_announced_to_a_warmup_in_steps(tmp_path):
    criterion = new_criterion(warmup_epochs=None, warmup_steps=3)
    trainer = new_trainer(tmp_path, criterion=criterion, save_strategy="no")
    trainer.train()
    assert trainer.phases == [True, True, True, False]


def test_another_loss_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"label_smoothing_factor 0\.1: the loss is that of crit"):
        model = Model()
        model.config = SimpleNamespace(problem_type=None)  # which the Trainer asks for
        new_trainer(tmp_path, model=model, label_smoothing_factor=0.1)
    with pytest.raises(UserError, match="criterion CrossEntropyLoss: must be a loss"):
        new_trainer(tmp_path, criterion=nn.CrossEntropyLoss())
    with pytest.raises(UserError, match="compute_loss_func: the loss is that of criterion"):
        ALRTrainer(
            Model(),
            TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"),
            criterion=new_criterion(),
            compute_loss_func=lambda *args, **kwargs: 0,
        )


def test_the_end_of_an_epoch_checks_the_bank(tmp_path):
    trainer = new_trainer(tmp_path)
    trainer.criterion.bank.status[1] = 3  # as a kernel on a GPU counts an index beyond the bank
    with pytest.raises(IndexError, match="3 batch rows had an index beyond"):
        trainer.train()
