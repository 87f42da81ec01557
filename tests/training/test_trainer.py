"""The training step: its results, and that it never waits for the device."""

import gc
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from alr_fast.bank import LabelBank
from alr_fast.data.datasets import Split
from alr_fast.data.images.sources import ArrayImages
from alr_fast.data.layouts.base import new_index
from alr_fast.data.loaders.memory import MemoryLoader
from alr_fast.data.loaders.transform import Transform
from alr_fast.data.sampler import ShuffledSampler
from alr_fast.errors import SharedError
from alr_fast.losses import ALRLoss, CrossEntropyLoss
from alr_fast.training.config.schema import Config, ModelConfig, OptimConfig
from alr_fast.training.distributed import World
from alr_fast.training.optim import learning_rate_factor
from alr_fast.training.trainer import Trainer

CPU = torch.device("cpu")
SAMPLES, CLASSES = 40, 4
SGD = OptimConfig(epochs=4, batch_size=8, lr=0.05)


def make_loader(device, dtype=torch.float32):
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(SAMPLES, 1, 6, 6)).astype(np.uint8)
    names = tuple(str(k) for k in range(CLASSES))
    index = new_index([f"p{i}" for i in range(SAMPLES)], rng.integers(CLASSES, size=SAMPLES), names)
    sampler = ShuffledSampler(SAMPLES, 8)
    return MemoryLoader(
        Split(index, ArrayImages(pixels)), sampler, Transform(6), device=device, dtype=dtype
    )


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, CLASSES)
    )


def make_trainer(config, device=CPU, *, method="alr"):
    loader = make_loader(device, getattr(torch, config.precision))
    criterion = CrossEntropyLoss(reduction="sum")
    if method == "alr":
        labels = torch.from_numpy(loader.split.index.labels[loader.sampler.rows])
        bank = LabelBank.from_labels(labels, CLASSES, device=device)
        criterion = ALRLoss(bank, warmup_epochs=0, reduction="sum", unique_index=True)
    return Trainer(make_net().to(device), criterion, config, loader, World(0, 1, 1, device))


def train(trainer, epochs=1):
    for _ in range(epochs):
        trainer.begin_epoch()
        for batch in trainer.loader:
            trainer.train_step(batch)
        trainer.end_epoch()
    return trainer


def test_predictions_are_counted_separately_for_correct_and_wrong_given_labels():
    trainer = make_trainer(Config(optim=SGD), method="ce")
    trainer._true = torch.tensor([1, 1, 0, 2, 2, 0])
    labels = torch.tensor([1, 1, 2, 1, 0, -1])  # two correct, three wrong, one unreadable
    predicted = torch.tensor([1, 0, 0, 2, 0, 1])  # the last one is the clean label of sample 0
    index = torch.tensor([0, 1, 2, 3, 4, -1])
    logits = nn.functional.one_hot(predicted, CLASSES).float()
    trainer._add(torch.tensor(1.0), logits, {"label": labels, "index": index})
    trainer.sums.samples.fill_(5)  # valid samples, counted by train_step
    result = trainer.progress()
    assert result.clean_correct == 1 / 2
    assert result.mislabelled_correct == 2 / 3
    assert result.mislabelled_memorised == 1 / 3


VARIANTS = {
    "float32": Config(optim=SGD),
    "bfloat16": Config(optim=SGD, precision="bfloat16"),
    "float16": Config(optim=SGD, precision="float16"),
    "micro-batches, clipped": Config(optim=replace(SGD, accumulate=2, clip_norm=0.1)),
    "adamw, ema": Config(optim=replace(SGD, optimizer="adamw"), model=ModelConfig(ema_decay=0.99)),
}


@pytest.mark.parametrize("method", ["ce", "alr"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_never_waits_for_a_value(variant, method, device, monkeypatch):
    trainer = make_trainer(VARIANTS[variant], device, method=method)
    trainer.begin_epoch()
    batches = list(trainer.loader)
    trainer.train_step(batches[0])  # the first step may wait for one-time set-up
    asked = []

    def noting(name):
        original = getattr(torch.Tensor, name)
        return lambda self, *args: asked.append(name) or original(self, *args)

    names = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")
    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(torch.Tensor, name, noting(name))
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.train_step(batches[1])
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        assert asked == []
        trainer.progress()
        assert asked == ["tolist"]


def test_plain_sgd_on_the_mean_loss():
    """The step equals a plain PyTorch loop."""
    optim = replace(SGD, schedule="constant", weight_decay=0.01, clip_norm=0.5)
    trainer = make_trainer(Config(optim=optim), method="ce")
    net = make_net()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01
    )
    trainer.begin_epoch()
    for batch in trainer.loader:
        trainer.train_step(batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch["image"]), batch["label"]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    for a, b in zip(trainer.model.state_dict().values(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_micro_batches_change_batch_statistics_alone():
    """Without batch normalisation, micro-batches have the same result as the whole batch."""
    results = []
    for accumulate in (1, 3):
        trainer = make_trainer(Config(optim=replace(SGD, accumulate=accumulate)))
        trainer.model[1] = nn.Identity()
        calls = []
        trainer.model.register_forward_pre_hook(lambda module, given, c=calls: c.append(given))
        train(trainer)
        assert {len(images) for (images,) in calls} == ({8} if accumulate == 1 else {2, 3})
        results.append((list(trainer.model.parameters()), trainer.criterion.bank.rows))
    (weights, rows), (other_weights, other_rows) = results
    torch.testing.assert_close(weights, other_weights)
    torch.testing.assert_close(rows, other_rows)


def test_sums_of_an_epoch():
    trainer = make_trainer(Config(optim=replace(SGD, lr=1e-12)), method="ce")
    trainer.begin_epoch()
    losses, right = [], 0
    for batch in trainer.loader:
        batch["label"][0] = -1  # unreadable image
        trainer.train_step(batch)
        logits = trainer.model(batch["image"])  # as in training
        losses += [
            nn.functional.cross_entropy(row, label).item()
            for row, label in zip(logits[1:], batch["label"][1:], strict=True)
        ]
        right += (logits.argmax(1) == batch["label"]).sum().item()
    result = trainer.progress()
    assert result.samples == len(losses) == SAMPLES - 5
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.accuracy == right / result.samples
    assert result.clean_correct is result.mislabelled_correct is None
    trainer.end_epoch()
    assert math.isnan(trainer.progress().loss)
    assert (trainer.epoch, trainer.step, trainer.steps_made) == (1, 0, 5)


def test_the_model_is_freed_with_its_trainer():
    """Immediately, without the garbage collector: the next method needs its memory."""
    gc.disable()
    try:
        trainer = train(make_trainer(Config(optim=SGD)))
        model = weakref.ref(trainer.model)
        del trainer
        assert model() is None
    finally:
        gc.enable()


def test_the_ema_follows_the_weights():
    trainer = train(make_trainer(Config(optim=SGD, model=ModelConfig(ema_decay=0.5))), 2)
    averages, weights = (list(net.parameters()) for net in (trainer.evaluated, trainer.model))
    assert trainer.evaluated is not trainer.model
    assert not any(torch.equal(a, w) for a, w in zip(averages, weights, strict=True))
    for a, w in zip(averages, weights, strict=True):
        assert (a - w).norm() < 0.5 * w.norm() + 0.1
    buffers = zip(trainer.evaluated.buffers(), trainer.model.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in buffers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_with_nonfinite_gradients_are_skipped(variant):
    """The first step and a later one; the statistics of batch normalisation recover."""
    trainer = make_trainer(VARIANTS[variant])
    bank = trainer.criterion.bank.rows
    trainer.begin_epoch()
    finite = []
    for number, batch in enumerate(trainer.loader):
        if number in (0, 3):
            batch["image"][:2] = math.nan
            batch["image"][2:] = math.nan  # batch normalisation spreads it anyway
        weights = [w.clone() for w in trainer.model.parameters()]
        rows = bank.clone()
        trainer.train_step(batch)
        moved = [
            not torch.equal(a, b) for a, b in zip(weights, trainer.model.parameters(), strict=True)
        ]
        touched = (rows != bank).any(1)
        if number in (0, 3):
            assert not any(moved)
            assert not touched.any()
        elif variant != "float16":  # its scale may have to decrease first
            assert any(moved)
            assert touched.nonzero().flatten().tolist() == sorted(batch["index"].tolist())
            finite.append(number)
        if number == 3:
            assert not all(b.isfinite().all() for b in trainer.model.buffers())
        if number in (0, 3):
            assert trainer.check_skipped() == (1 if number == 0 else 2)
            assert all(b.isfinite().all() for b in trainer.model.buffers())
            assert all(b.isfinite().all() for b in trainer.evaluated.buffers())
    assert all(w.isfinite().all() for w in trainer.evaluated.parameters())
    assert all(
        value.isfinite().all() and value.abs().max() < 1e3
        for state in trainer.optimizer.state.values()
        for value in state.values()
    )
    assert math.isfinite(trainer.progress().loss)
    trainer.end_epoch()
    assert trainer.check_skipped() == 0


@pytest.mark.parametrize("same", [True, False])
def test_with_another_number_of_processes_the_epoch_starts_again(same):
    config = Config(optim=replace(SGD, warmup_steps=20))
    trainer = train(make_trainer(config))
    trainer.begin_epoch()
    for batch in list(trainer.loader)[:2]:
        trainer.train_step(batch)
    own = {
        name.removeprefix("rank0."): tensor
        for name, tensor in trainer.tensors().items()
        if name.startswith("rank0.")
    }
    fresh = make_trainer(config)
    fresh.restore(trainer.position(), own if same else None)
    assert (fresh.epoch, fresh.step, fresh.steps_made) == ((1, 2, 7) if same else (1, 0, 5))
    assert fresh.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * (8 if same else 6) / 20)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_only_float16_scales_its_gradients(precision):
    trainer = make_trainer(Config(optim=SGD, precision=precision), method="ce")
    trainer.begin_epoch()
    good, bad = list(trainer.loader)[:2]
    bad["image"][:] = math.nan
    trainer.train_step(good)
    assert trainer.scaler.get_scale() == (65536 if precision == "float16" else 1)
    trainer.train_step(bad)
    assert trainer.scaler.get_scale() == (32768 if precision == "float16" else 1)


def test_a_loss_that_stays_nan_ends_the_run():
    trainer = make_trainer(Config(optim=replace(SGD, max_skipped=3)))
    trainer.begin_epoch()
    good, bad = list(trainer.loader)[:2]
    bad["image"][:] = math.nan
    for batch in (bad, bad, good, bad, bad):  # at most two consecutive ones
        trainer.train_step(batch)
        trainer.check_skipped()
    trainer.train_step(bad)
    with pytest.raises(SharedError, match=r"last 3 steps.*not finite.*--optim\.lr \(now 0\.05\)"):
        trainer.check_skipped()


def test_float16_gradients_are_unscaled_before_they_are_clipped():
    norms = []
    for precision in ("float32", "float16"):
        config = Config(optim=replace(SGD, clip_norm=0.01, sgd_momentum=0.0), precision=precision)
        trainer = make_trainer(config, method="ce")
        trainer.begin_epoch()
        trainer.train_step(next(iter(trainer.loader)))
        grads = torch.cat([w.grad.flatten() for w in trainer.model.parameters()])
        norms.append(grads.norm().item())
        assert trainer.check_skipped() == 0
    assert norms == [pytest.approx(0.01, rel=1e-3)] * 2


def test_schedule():
    cosine = learning_rate_factor(OptimConfig(epochs=2, warmup_steps=4), steps_per_epoch=7)
    assert [cosine(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert cosine(9) == pytest.approx(0.5)
    assert cosine(14) == pytest.approx(0)
    step = OptimConfig(epochs=4, schedule="step", milestones=[1, 3], gamma=0.5, warmup_steps=2)
    falls = learning_rate_factor(step, steps_per_epoch=3)
    assert [falls(s) for s in range(12)] == [0.5, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5] + [0.25] * 3
    constant = learning_rate_factor(OptimConfig(schedule="constant"), steps_per_epoch=1)
    assert {constant(s) for s in range(15)} == {1.0}
