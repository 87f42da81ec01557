"""What fails hours later otherwise is refused before the first epoch; what works is not changed."""

import random
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from alr_fast.data.layouts.base import new_index
from alr_fast.errors import UserError
from alr_fast.losses import PlainLoss
from alr_fast.train import main
from alr_fast.training import loop
from alr_fast.training.config.command_line import parse
from alr_fast.training.criterion import check_methods
from alr_fast.training.distributed import World
from alr_fast.training.dry_pass import SAMPLES, dry_pass
from alr_fast.training.methods import METHODS, method
from alr_fast.training.models import MODELS, default_size, own_size
from alr_fast.training.room import _check_links, check_room
from helpers.image_folder import write_folder

SMALL = ("--data.limit", "40", "--data.test_limit", "20", "--optim.batch_size", "20")


class Net(nn.Module):
    """A model of the digits; subclasses do something wrong."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(144, num_classes)

    def forward(self, images):
        return self.head(self.body(images))


class ModelOutput(OrderedDict):
    """As those of transformers."""

    @property
    def logits(self):
        return self["logits"]


class ReturnsObject(Net):
    def forward(self, images):
        return ModelOutput(logits=super().forward(images))


class ReturnsDictionary(Net):
    def forward(self, images):
        return {"logits": super().forward(images), "loss": None}


class ReturnsTuple(Net):
    def forward(self, images):
        return super().forward(images), None


class ReturnsClasses(Net):
    def forward(self, images):
        return super().forward(images).round().long()


class MoreOutputs(Net):
    def __init__(self, num_classes, in_channels):
        super().__init__(1000, in_channels)


class OneOutputForAll(Net):
    def forward(self, images):
        return super().forward(images).mean(0)


class NotFinite(Net):
    def forward(self, images):
        return super().forward(images) / 0


class OnlyInTests(Net):
    def forward(self, images):
        if not self.training:
            raise KeyError("statistics")
        return super().forward(images)


class Detached(Net):
    def forward(self, images):
        return super().forward(images).detach()


class Frozen(Net):
    def __init__(self, num_classes, in_channels):
        super().__init__(num_classes, in_channels)
        self.requires_grad_(False)


class Unused(Net):
    def __init__(self, num_classes, in_channels):
        super().__init__(num_classes, in_channels)
        self.more = nn.Linear(2, 2)


class ExtraState(Net):
    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


class NotLoaded(Net):
    def _load_from_state_dict(self, *arguments):
        raise RuntimeError("cannot load")


class InPlace(Net):
    """Its backward pass needs what it has overwritten."""

    def forward(self, images):
        logits = super().forward(images).exp()
        return logits * logits.add_(1).sigmoid_()


def train(tmp_path, *options):
    return main(["--runs", str(tmp_path / "runs"), "--optim.epochs", "2", *SMALL, *options])


WORLD = World(0, 1, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def config():
    return parse(["--methods", "ce,alr", "--model.name", "odd", "--optim.epochs", "2"])


def pass_dry(model, config, world=WORLD):
    index = SimpleNamespace(num_classes=10, class_names=(), labels=None, clean_labels=None)
    losses = check_methods(config, index, input_shape=(1, 8, 8), samples=SAMPLES)
    dry_pass(model(10, 1), losses, config, world, input_shape=(1, 8, 8), num_classes=10)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ReturnsObject, "returns a ModelOutput, not a tensor [2, 10]; let its forward return its "),
        (ReturnsDictionary, "returns a dict, not a tensor [2, 10]; let its forward return its lo"),
        (ReturnsTuple, "returns a tuple, not a tensor [2, 10]; let its forward return one tensor"),
        (ReturnsClasses, "returns torch.int64; it must return logits"),
        (MoreOutputs, "returns [2, 1000] for 2 samples of 10 classes; it must return logits"),
        (OneOutputForAll, "returns [10] for 2 samples of 10 classes; it must return logits"),
        (NotFinite, "returns logits that are not finite; check its weights"),
        (OnlyInTests, "fails on images of 1 x 8 x 8 (KeyError: 'statistics'); pass another --data"),
        (Detached, "has no weights that training could change: its logits are detached from them"),
        (Frozen, "has no weights that training could change: all of them are frozen"),
        (ExtraState, "extra state"),
        (NotLoaded, "its weights cannot be saved and loaded again (RuntimeError: cannot load)"),
        (InPlace, "fails in the backward pass (RuntimeError: one of the variables needed for"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(model, message, config):
    with pytest.raises(UserError) as caught:
        pass_dry(model, config)
    assert caught.value.option == "model.name"
    assert message in str(caught.value)


@pytest.mark.usefixtures("one_thread")
def test_weights_without_a_gradient_stop_several_processes(config):
    """They would wait for it; one process trains the others."""
    pass_dry(Unused, config)
    with pytest.raises(UserError, match=r"2 of its weights get no gradient \(more.weight, more.b"):
        pass_dry(Unused, config, World(0, 2, 2, torch.device("cpu")))


@pytest.mark.usefixtures("one_thread")
def test_it_is_refused_in_one_line_before_anything_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(MODELS, "odd", ReturnsObject)
    assert train(tmp_path, "--model.name", "odd") == 2
    shown = capsys.readouterr()
    assert shown.err == (
        "error: --model.name odd: returns a ModelOutput, not a tensor [2, 10]; let its forward "
        "return its logits alone\n"
    )
    assert "epoch" not in shown.out
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("one_thread")
def test_a_transformer_at_another_size_is_refused_at_once(tmp_path, capsys):
    root = write_folder(tmp_path / "set", train={"a": 4, "b": 4}, test={"a": 2, "b": 2})
    name = "vit_tiny_patch16_224"
    options = ("--data-root", str(root), "--model.name", name, "--data.image_size", "64")
    runs = tmp_path / "runs"
    assert main([*options, "--runs", str(runs)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: --model.name {name}: fails on images of 3 x 64 x 64 (")
    assert shown.err.endswith("; pass --data.image_size 224, the size that it is made for\n")
    assert "Decoding" not in shown.out
    assert not runs.exists()


def test_the_size_that_nobody_chose_suits_the_model():
    assert [default_size("conv-small", side) for side in (32, 1200)] == [32, 64]
    assert [default_size("resnet18", side) for side in (32, 1200)] == [32, 224]
    assert [default_size("vit_tiny_patch16_224", side) for side in (32, 1200)] == [224, 224]
    # Refused elsewhere.
    assert [own_size(name) for name in ("nosuch", "resnet18.nosuch", "mlp")] == [None] * 3


class Fails(PlainLoss):
    """Fails in its second epoch."""

    def set_epoch(self, epoch):
        self.epoch = epoch

    def rows(self, logits, labels, index):
        if self.epoch > 0:
            raise IndexError("no such class")
        return -logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]


class NanLoss(PlainLoss):
    """Is no number."""

    def rows(self, logits, labels, index):
        return (logits - logits.detach()).sum(1).sqrt()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("loss", "message"),
    [(Fails, "(IndexError: no such class)"), (NanLoss, "its gradient is not finite")],
)
def test_a_loss_that_fails_is_refused_before_other_methods_are_trained(
    loss, message, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr("alr_fast.training.methods.METHODS", METHODS)
    method("odd")(loss)
    try:
        assert train(tmp_path, "--methods", "ce,odd") == 2
    finally:
        del METHODS["odd"]
    text = capsys.readouterr().err
    assert text.startswith("error: --methods odd: its loss fails on logits [2, 10] (")
    assert message in text
    assert text.count("\n") == 1
    assert not list(tmp_path.iterdir())


class Random(Net):
    """A model that works, and draws from every source of random numbers."""

    def __init__(self, num_classes, in_channels):
        super().__init__(num_classes, in_channels)
        self.tied = self.head  # saved under two names

    def forward(self, images):
        features = nn.functional.dropout(self.body(images), 0.2, self.training)
        return self.head(features) + 0.01 * random.random() + 0.01 * np.random.rand()


@pytest.mark.usefixtures("one_thread")
def test_results_are_those_without_the_dry_pass(monkeypatch, tmp_path):
    """A plugin's model is trained, saved, and not changed by a bit."""
    monkeypatch.setitem(MODELS, "random", Random)
    files = []
    for checked in (True, False):
        if not checked:
            monkeypatch.setattr(loop, "_check_before", lambda *arguments: None)
        random.seed(1)
        np.random.seed(1)
        run = tmp_path / str(checked)
        options = ("--model.name", "random", "--methods", "ce,alr", "--alr.warmup_epochs", "1")
        assert train(run, *options, "--checkpoint.steps", "2") == 0
        latest = run / "runs" / "latest"
        names = ("ce.safetensors", "alr.safetensors", "alr_bank.safetensors")
        files.append([(latest / name).read_bytes() for name in names])
    assert files[0] == files[1]


def free_space(monkeypatch, num_bytes):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=num_bytes))


@pytest.mark.usefixtures("one_thread")
def test_too_little_room_for_the_results(monkeypatch, tmp_path, capsys):
    free_space(monkeypatch, 400_000)
    assert train(tmp_path, "--methods", "ce,alr") == 2
    text = capsys.readouterr().err
    assert text.startswith(f"error: --runs {tmp_path}: has room for 400 kB, the run needs ")
    assert "(weights 2.0 MB" not in text  # of conv-tiny
    assert "free some space, or pass another folder" in text
    assert text.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("one_thread")
def test_a_limit_on_the_size_of_files_is_said_before_training(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("resource.getrlimit", lambda kind: (100_000, -1))
    assert train(tmp_path, "--methods", "ce,alr") == 2
    text = capsys.readouterr().err
    assert text.startswith("error: weights: a file of ") and text.count("\n") == 1
    assert text.endswith("files may have 100 kB; raise the limit on the size of files: ulimit -f "
                         "unlimited\n")  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("one_thread")
def test_too_little_room_for_checkpoints_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(MODELS, "net", Net)
    free_space(monkeypatch, 40_000)
    options = ("--model.name", "net", "--methods", "ce")
    assert train(tmp_path, *options, "--checkpoint.keep", "5") == 0
    text = capsys.readouterr().err
    assert text.startswith(f"warning: --runs {tmp_path}: has room for ")
    assert "6 of them need" in text
    assert train(tmp_path, *options, "--checkpoint.minutes", "null") == 0
    assert not capsys.readouterr().err


def test_folders_on_one_disk_share_its_room(monkeypatch, tmp_path):
    """The bank of training and that of the results do not fit together."""
    (tmp_path / "banks").mkdir()
    index = new_index([f"{i}.png" for i in range(1000)], np.arange(1000) % 10, tuple("abcdefghij"))
    config = parse(
        ["--methods", "ce,alr", "--runs", str(tmp_path / "runs"), "--bank.placement", "file",
         "--bank.folder", str(tmp_path / "banks")]
    )  # fmt: skip
    model = nn.Linear(2, 2)

    def check(methods):
        check_room(config, methods, index, model, WORLD, warn=lambda text: None)

    free_space(monkeypatch, 60_000)  # a bank has 40 kB
    with pytest.raises(UserError, match=r"the run needs 188 kB \(label bank in training 40 kB, w"):
        check(["ce", "alr"])
    check(["ce"])  # of a resumed run that has trained alr
    free_space(monkeypatch, 200_000)
    check(["ce", "alr"])


def test_a_disk_without_links_is_said(monkeypatch, tmp_path, config):
    def refuse(*arguments):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.symlink", refuse)
    warnings = []
    _check_links(tmp_path, warnings.append)
    (text,) = warnings
    assert text.startswith(f"--runs {tmp_path}: this file system has no links, so there will be no")
    assert not list(tmp_path.iterdir())
