"""Losses and gradients that are not finite."""

from contextlib import contextmanager
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from alr_fast.training.config.command_line import parse
from alr_fast.training.distributed import process_group
from alr_fast.training.loaders import make_loaders, make_transform
from alr_fast.training.methods import METHODS
from alr_fast.training.models import build_model
from alr_fast.training.run_data import load_data, with_labels
from alr_fast.training.trainer import Trainer
from helpers.faults import OPTIONS, STEPS, slow
from helpers.training_process import metrics, run_folder

pytestmark = pytest.mark.faults


@contextmanager
def trainer_of(*argv):
    """A trainer in this process, with its label bank and the batches of an epoch."""
    from alr_fast.bank import LabelBank

    config = parse([*OPTIONS, "--model.name", "conv-tiny", *argv])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with process_group("cpu") as world:
        data = load_data(config.data, None, log=lambda line: None)
        data = with_labels(data, data.train.index.labels)
        transform = make_transform(config.data, data.train)
        loaders = make_loaders(
            config, data, transform, world=world, log=lambda line: None, track=lambda x, **_: x
        )
        labels = torch.from_numpy(data.train.index.labels[loaders.train.sampler.rows])
        bank = LabelBank.from_labels(labels, 10)
        torch.manual_seed(0)
        model = build_model("conv-tiny", num_classes=10, input_shape=(1, 8, 8))
        options = asdict(config.options["alr"])
        criterion = METHODS["alr"](bank, **options, reduction="sum", unique_index=True)
        trainer = Trainer(model, criterion, config, loaders.train, world)
        yield SimpleNamespace(trainer=trainer, bank=bank, batches=list(loaders.train))
    torch.set_num_threads(threads)


def copies(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("at", [0, 2])
def test_a_step_of_nan_changes_nothing(optimizer, precision, at):
    options = ["--precision", precision, "--alr.warmup_epochs", "0", "--optim.clip_norm", "1"]
    options += ["--optim.optimizer", optimizer, "--optim.lr", "0.01"]
    with trainer_of(*options[: 4 if at else 6], *options[6:]) as setup:
        trainer, bank = setup.trainer, setup.bank
        trainer.begin_epoch()
        for batch in setup.batches[:at]:
            trainer.train_step(batch)

        def state():
            weights = dict(trainer.model.named_parameters())
            own = {
                f"{number}.{key}": value
                for number, weight in enumerate(weights.values())
                for key, value in trainer.optimizer.state[weight].items()
            }
            return copies({**weights, **own, "rows": bank.rows})

        before = state()
        assert all(tensor.isfinite().all() for tensor in before.values())
        batch = setup.batches[at]
        trainer.train_step({**batch, "image": batch["image"] * torch.nan})
        after = state()
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
        assert trainer.check_skipped() == 1
        assert all(buffer.isfinite().all() for buffer in trainer.model.buffers())

        trainer.train_step(setup.batches[at + 1])
        trainer.train_step(setup.batches[at + 2])
        last = state()
        assert trainer.check_skipped() == 1
        assert all(tensor.isfinite().all() for tensor in last.values())
        assert not torch.equal(last["head.weight"], before["head.weight"])
        changed = (last["rows"] != before["rows"]).any(1).nonzero().flatten().tolist()
        touched = torch.cat([setup.batches[at + 1]["index"], setup.batches[at + 2]["index"]])
        assert changed == sorted(touched.tolist())


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ([], 0),
        (["--precision", "float16", "--log-every", "20"], STEPS + 2),
        slow(["--precision", "bfloat16", "--model.ema_decay", "0.9"], 2 * STEPS - 1),
        slow(
            ["--precision", "float16", "--model.ema_decay", "0.9", "--log-every", "20"],
            2 * STEPS + 1,
        ),
        slow(["--optim.optimizer", "adamw", "--optim.accumulate", "2"], 0),
        slow(["--precision", "float16", "--optim.optimizer", "adamw"], STEPS),
    ],
)
def test_a_run_with_one_step_of_nan(start, runs, undisturbed, options, at):
    training = start(*OPTIONS, *options, faults={"nan_images": {"first": at, "last": at}})
    assert training.wait() == 0, training.output
    rows = metrics(runs)
    # With float16 the scaler skips further steps until it has found its scale.
    usual = [int(row["skipped_steps"]) for row in undisturbed(*OPTIONS, *options)["metrics"]]
    usual[at // STEPS] += 1
    assert [int(row["skipped_steps"]) for row in rows] == usual
    for row in rows:
        assert float(row["train_loss"]) < 10
        assert float(row["test_loss"]) < 10
    assert float(rows[-1]["test_accuracy"]) > 0.2
    weights = load_file(run_folder(runs) / "alr.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    saved = load_file(run_folder(runs) / "alr_bank.safetensors")
    torch.testing.assert_close(saved["rows"].sum(1), torch.ones(200), atol=1e-3, rtol=0)


@pytest.mark.parametrize("every", [1, 20])
def test_persistent_nan_ends_the_run(start, runs, every):
    options = ["--optim.max_skipped", "4", "--log-every", every]
    training = start(*OPTIONS, *options, faults={"nan_images": {"first": 5, "last": 99}})
    assert training.wait() == 2
    message = training.output.splitlines()[-1]
    assert message.startswith("error: the gradients of the last ")
    assert "not finite" in message
    assert "--optim.lr" in message
    assert "Traceback" not in training.output
    assert not (runs / "latest").exists()
