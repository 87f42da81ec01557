"""The time that a run will take, said before it starts."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from alr_fast.errors import UserError
from alr_fast.train import main
from alr_fast.training import estimate
from alr_fast.training.config.command_line import parse
from alr_fast.training.distributed import World
from alr_fast.training.estimate import Estimate, estimate_time, rough
from alr_fast.training.loaders import make_transform
from alr_fast.training.run_data import load_data
from helpers.image_folder import write_folder

WORLD = World(0, 1, 1, torch.device("cpu"))
STEP = 0.002  # seconds of an image in `Slow`, at 16 pixels
DECODING = 0.005  # seconds
pytestmark = pytest.mark.usefixtures("one_thread")


def test_times_are_one_number():
    times = [0.02, 0.34, 4.6, 9.4, 9.6, 89, 95, 840, 5300, 7 * 3600, 40 * 3600, 3 * 86400]
    assert [rough(seconds) for seconds in times] == [
        *("0.1 s", "0.3 s", "5 s", "9 s", "10 s", "89 s", "2 min", "14 min", "88 min", "7 h"),
        *("40 h", "3 days"),
    ]


def test_what_is_said():
    both = Estimate(0, 180, 660, 30, faster=("--data.image_size 112", 240))
    assert str(both) == (
        "about 14 min an epoch (loading 3 min, steps 11 min), 7 h in all; --data.image_size 112 "
        "would take 4 min an epoch"
    )
    assert str(Estimate(40, 0, 20, 2)) == "about 20 s an epoch, 80 s in all with 40 s of decoding"
    assert str(Estimate(1, 0.5, 20, 60)) == "about 20 s an epoch, 21 min in all"
    # A GPU makes its steps while the processor decodes.
    assert str(Estimate(0, 50, 30, 1, overlap=True)).startswith("about 50 s an epoch (loading 50 s")


class Clock:
    """Only what is measured here takes time, however busy the machine is."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


CLOCK = Clock()


class Slow(nn.Module):
    """Takes a time in proportion to the pixels."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images):
        CLOCK.now += STEP * len(images) * (images.shape[-1] / 16) ** 2
        return self.head(images.mean(dim=(2, 3)))


@pytest.fixture
def estimated(tmp_path, monkeypatch):
    """Estimates the time of a model on 400 images of 20 x 16 pixels and 60 to test."""
    root = write_folder(tmp_path / "set", train={"a": 200, "b": 200}, test={"a": 60}, size=(20, 16))
    decode = estimate.decode_square

    def slow(*arguments, **options):
        CLOCK.now += DECODING
        return decode(*arguments, **options)

    monkeypatch.setattr(estimate, "time", CLOCK)
    monkeypatch.setattr(estimate, "decode_square", slow)
    monkeypatch.setattr(estimate, "usable_cores", lambda: 4)
    (root / "test" / "b").mkdir()
    (root / "train" / "a" / "000.png").write_bytes(b"broken")

    def found(*options, model=None, loader="memory", epochs=4):
        config = parse(["--data-root", str(root), "--data.flip", "false", *options])
        data = load_data(config.data, str(root), log=lambda text: None)
        transform = make_transform(config.data, data.train)
        return estimate_time(
            Slow() if model is None else model,
            replace(config, optim=replace(config.optim, epochs=epochs)),
            ["ce", "alr"], data, transform, loader, WORLD,
        )  # fmt: skip

    return found


def test_steps_and_tests(estimated):
    found = estimated("--data.workers", "2")
    assert (found.loading, found.epochs, found.faster) == (0, 8, None)
    # A test is a third of a step.
    assert found.steps == pytest.approx((400 + 60 / 3) * STEP)
    assert found.once == pytest.approx(460 * DECODING / 2)
    assert found.total == found.once + 8 * found.steps


def test_part_of_the_samples(estimated):
    assert estimated("--data.epoch_samples", "200").steps == pytest.approx(220 * STEP)
    limits = ("--data.limit", "100", "--data.test_limit", "30")  # 15 of one class, none of b
    assert estimated(*limits).steps == pytest.approx((100 + 15 / 3) * STEP)


def test_loading_in_each_epoch(estimated):
    found = estimated("--data.workers", "16", loader="torch")
    assert found.once == 0
    assert found.loading == pytest.approx(460 * DECODING / 4)  # there are four cores
    assert found.epoch == found.loading + found.steps
    assert estimated("--data.workers", "1", loader="dali").loading == pytest.approx(460 * DECODING)


@pytest.mark.parametrize("size", [96, 128])
def test_smaller_images_are_named_where_an_epoch_is_long(estimated, monkeypatch, size):
    monkeypatch.setattr(estimate, "LONG_EPOCH", 0.1)
    found = estimated("--data.image_size", str(size))
    option, seconds = found.faster
    assert option == f"--data.image_size {size // 2}"
    assert seconds == pytest.approx(found.epoch / 4)


class OneSize(Slow):
    def forward(self, images):
        assert images.shape[-1] == 128, "one size only"
        return super().forward(images)


def test_fewer_images_are_named_where_smaller_ones_are_impossible(estimated, monkeypatch):
    monkeypatch.setattr(estimate, "LONG_EPOCH", 0.0)
    found = estimated("--data.image_size", "128", model=OneSize())
    assert found.faster == ("--data.epoch_samples 200", found.epoch / 2)
    # 64 pixels are small already, and 4 samples few.
    few = ("--data.image_size", "64", "--data.epoch_samples")
    assert estimated(*few, "4").faster[0] == "--data.epoch_samples 2"
    assert estimated(*few, "2").faster is None


class Full(Slow):
    def forward(self, images):
        if len(images) > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.head(images.mean(dim=(2, 3)))


def test_a_batch_that_does_not_fit_is_refused_before_training(estimated):
    with pytest.raises(UserError) as caught:
        estimated(model=Full())
    assert caught.value.argument == "batch_size"
    assert "pass --optim.accumulate 2, which splits it" in str(caught.value)
    assert estimated("--optim.accumulate", "64", model=Full()) is not None


def test_a_model_to_be_compiled_is_not_estimated(estimated):
    assert estimated("--model.compile", "default") is None


def test_the_command_says_it_before_images_are_decoded(tmp_path, capsys):
    root = write_folder(tmp_path / "set", train={"a": 8, "b": 8}, test={"a": 2, "b": 2})
    runs = tmp_path / "runs"
    options = ["--data-root", str(root), "--runs", str(runs), "--methods", "ce"]
    assert main([*options, "--optim.epochs", "1"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^time: about [\d.]+ s an epoch.*, [\d.]+ s in all", text, re.MULTILINE)
    assert text.index("time: ") < text.index("Decoding")
