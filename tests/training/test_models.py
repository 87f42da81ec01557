import numpy as np
import pytest
import torch

from alr_fast.errors import UserError
from alr_fast.training.models import MODELS, build_model


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("conv-tiny", 1, 8),
        ("conv-small", 3, 32),
        ("conv-small", 1, 9),
        ("resnet18-cifar", 1, 16),
        ("resnet18", 3, 64),
    ],
)
def test_shapes_and_gradients(name, channels, size):
    model = build_model(name, num_classes=5, input_shape=(channels, size, size))
    logits = model(torch.randn(4, channels, size, size))
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_resnets_for_small_images_keep_their_resolution():
    model = build_model("resnet18-cifar", num_classes=3, input_shape=(3, 32, 32))
    assert model.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, 512, 4, 4)
    usual = build_model("resnet18", num_classes=3, input_shape=(3, 32, 32))
    assert usual.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, 512, 1, 1)
    ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (model, usual))
    assert theirs - ours == (7 * 7 - 3 * 3) * 3 * 64  # nothing else differs


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("conv-")])
def test_the_smallest_image_works(name):
    size = build_model(name, num_classes=2, input_shape=(1, 32, 32)).smallest_image
    model = build_model(name, num_classes=2, input_shape=(1, size, size))
    assert model(torch.randn(2, 1, size, size)).shape == (2, 2)
    with pytest.raises(
        UserError, match=rf"image_size {size - 1}: .* images of {size} pixels or more"
    ):
        build_model(name, num_classes=2, input_shape=(1, size - 1, size - 1))


def test_unknown_name_offers_close_ones():
    with pytest.raises(UserError, match=r"conv-tiny, .*; did you mean .*resnet18") as error:
        build_model("resnet18x", num_classes=2, input_shape=(3, 32, 32))
    assert "\n" not in str(error.value)


def test_own_models_have_no_pretrained_weights():
    with pytest.raises(UserError, match="pretrained: conv-tiny has no pretrained weights"):
        build_model("conv-tiny", num_classes=2, input_shape=(1, 8, 8), pretrained=True)


@pytest.mark.parametrize(("name", "weights"), [("linear", 40), ("mlp-7", 102), ("mlp", 7172)])
def test_models_of_features(name, weights):
    model = build_model(name, num_classes=4, input_shape=(9,))
    assert sum(p.numel() for p in model.parameters()) == weights
    logits = model(torch.randn(6, 9).half())
    assert (logits.shape, logits.dtype) == ((6, 4), torch.float32)
    logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_features_are_standardised_and_constant_ones_become_zero(monkeypatch):
    monkeypatch.setattr("alr_fast.training.models._BLOCK_ROWS", 8)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50, 3)) * [1, 100, 0] + [5, 1000, 0.1]).astype(np.float32)
    model = build_model("linear", num_classes=2, input_shape=(3,))
    model.standardise(x)
    wanted = (x - x.mean(0)) / [*x[:, :2].std(0), 1]
    seen = []
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(torch.from_numpy(x))
    assert np.allclose(seen[0], wanted, atol=1e-4)
    assert model.std[2] == 1
    assert {"mean", "std"} <= set(model.state_dict())


def test_a_feature_that_differs_by_rounding_alone_is_constant():
    x = np.full((50, 2), 1e6, np.float32)
    x[::2] = np.nextafter(x[::2], np.float32(2e6))  # a deviation of 3e-8 of the mean
    x[:, 1] *= np.linspace(1, 1.001, 50)
    model = build_model("linear", num_classes=2, input_shape=(2,))
    model.standardise(x)
    assert model.std[0] == 1 and model.std[1] == pytest.approx(x[:, 1].std(), rel=1e-2)


@pytest.mark.parametrize("name", ["linear", "mlp", "mlp-64"])
def test_models_fit_one_kind_of_data(name):
    with pytest.raises(UserError, match=f"name {name}: is a model of features, the data are im"):
        build_model(name, num_classes=2, input_shape=(1, 8, 8))
    with pytest.raises(UserError, match="name conv-mini: is no model of features; pass linear"):
        build_model("conv-mini", num_classes=2, input_shape=(64,))
