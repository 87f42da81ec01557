"""Tests of the README: its example trains, and its commands exist."""

import re
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_trains_and_refines() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    torch.manual_seed(0)
    truth = torch.arange(300) % 10
    images = nn.functional.one_hot(truth, 10).float() + 0.1 * torch.randn(300, 10)
    labels = truth.clone()
    labels[:60] = torch.randint(10, (60,))
    model = nn.Linear(10, 10)
    names = {
        "labels": labels,
        "loader": [(images[i], labels[i], i) for i in torch.randperm(300).split(50)],
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=1.0),
    }
    exec(compile(code, "README.md", "exec"), names)
    bank = names["bank"]
    before = (labels == truth).float().mean()
    assert (bank.refined_labels() == truth).float().mean() > max(before, 0.95)


def test_the_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", README)) | set(
        re.findall(r"^make ([a-z-]+)", README, flags=re.MULTILINE)
    )
    assert {"train", "test", "bench", "lint"} <= named <= targets


def test_ci_runs_what_the_readme_names() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line.startswith("make ")]
    assert commands == ["make lint", "make test"]
    assert all(f"`{command}`" in README or command in README for command in commands)
