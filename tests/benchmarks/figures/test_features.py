"""Penultimate features of models, and the test images that they are computed from."""

from pathlib import Path

import pytest
import torch
from torch import nn

from alr_fast.errors import UserError
from alr_fast.training.models import build_model
from benchmarks.figures import features, runs
from helpers.finished_runs import loader_of, summary

pytest.importorskip("timm", reason="training needs the extra train")


@pytest.mark.parametrize("method", ["ce", "alr"])
def test_features_of_a_run_give_its_logits_and_its_accuracy(run: Path, method: str) -> None:
    loader = loader_of(run)
    model = features.load_for(runs.open_run(run), method, loader)
    found, logits, labels = features.penultimate(model, loader)
    assert found.shape == (360, model.head.in_features)
    torch.testing.assert_close(found @ model.head.weight.T + model.head.bias, logits)
    with torch.no_grad():
        torch.testing.assert_close(logits, torch.cat([model(b["image"]) for b in loader]))
    assert (labels.numpy() == loader.split.index.labels).all()
    # The same images and weights as in the test of the run.
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    assert accuracy == pytest.approx(summary(run)["methods"][method]["test_accuracy_last"])
    assert not model.head._forward_hooks


@pytest.mark.parametrize(
    "name, size, width",
    [("conv-small", 16, 256), ("resnet18-cifar", 32, 512), ("test_vit", 160, 64),
     ("test_convnext", 64, 64)],
)  # fmt: skip
def test_features_of_other_models(name: str, size: int, width: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=7, input_shape=(3, size, size)).eval()
    head = model.get_classifier() if hasattr(model, "get_classifier") else model.head
    nn.init.normal_(head.weight)  # those of timm are almost zero before training
    nn.init.normal_(head.bias)
    images = torch.randn(3, 3, size, size)
    batches = [
        {"image": images[:2], "label": torch.tensor([4, -1])},  # -1: unreadable image
        {"image": images[2:], "label": torch.tensor([6])},
    ]
    found, logits, labels = features.penultimate(model, batches)
    assert found.shape == (2, width)
    assert labels.tolist() == [4, 6]
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images)[[0, 2]], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found @ head.weight.T + head.bias, logits, rtol=1e-4, atol=1e-4)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.flatten(1)
        return (self.first(images) + self.second(images)) / 2


@pytest.mark.parametrize(
    "model",
    [
        TwoHeads(),
        nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Unflatten(1, (4, 1))),
    ],
    ids=["two heads", "no linear layer", "other shape"],
)
def test_models_without_one_last_linear_layer_are_rejected(model: nn.Module) -> None:
    batch = {"image": torch.randn(2, 3, 2, 2), "label": torch.tensor([0, 1])}
    with pytest.raises(UserError, match=r"does not end in one linear layer.*--model\.name"):
        features.penultimate(model, [batch])
    assert not any(module._forward_hooks for module in model.modules())


def test_samples_are_test_images_drawn_by_the_seed(run: Path) -> None:
    everything = loader_of(run).split
    assert len(everything) == 360
    drawn = [loader_of(run, samples=50, seed=seed).split for seed in (0, 0, 1)]
    ids = [split.index.sample_ids.tolist() for split in drawn]
    assert ids[0] == ids[1] != ids[2]
    assert len(set(ids[0])) == 50
    where = {sample: row for row, sample in enumerate(everything.index.sample_ids.tolist())}
    rows = [where[sample] for sample in ids[0]]
    assert (drawn[0].images.array == everything.images.array[rows]).all()
    assert (drawn[0].index.labels == everything.index.labels[rows]).all()
