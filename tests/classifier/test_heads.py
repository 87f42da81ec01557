"""Tests of the built-in models of `ALRClassifier`: how they start, and their learning rates."""

import pytest
import torch

pytest.importorskip("sklearn", reason="the classifier needs the extra features")

from alr_fast.classifier.heads import build_head, head_groups


def head(hidden: int, *, squared_norm: float = 1.0, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return build_head(40, 200, hidden, squared_norm=squared_norm, generator=generator)


@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_units_and_logits_start_with_unit_mean_square_whatever_the_scale_of_the_features(scale):
    x = scale * torch.randn(500, 40, generator=torch.Generator().manual_seed(1))
    first, rectifier, last = head(2000, squared_norm=40 * scale**2)
    with torch.no_grad():
        units = rectifier(first(x))
        logits = last(units)
    assert float(units.square().mean()) == pytest.approx(1, rel=0.05)
    assert float(logits.square().mean()) == pytest.approx(1, rel=0.1)


def test_a_linear_model_starts_at_zero():
    assert all((parameter == 0).all() for parameter in head(0).parameters())


def test_weights_depend_on_the_generator_alone():
    before = torch.random.get_rng_state()
    same, again, other = head(8), head(8), head(8, seed=1)
    assert torch.equal(same[0].weight, again[0].weight)
    assert not torch.equal(same[0].weight, other[0].weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_learning_rates_are_divided_by_the_squared_norm_of_the_inputs():
    model = head(8)
    groups = head_groups(model, 0.5, 20.0)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    first, _, last = model
    assert rates == {
        id(first.weight): 0.5 / 20,
        id(last.weight): 0.5 / 8,
        id(first.bias): 0.5,
        id(last.bias): 0.5,
    }
