"""Tests of the README: its example trains, and its commands exist."""

import re
from pathlib import Path

import torch

from helpers.reader import surroundings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def examples(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_example_trains_and_refines() -> None:
    names = surroundings()
    exec(compile(examples(README)[0], "README.md", "exec"), names)
    bank = names["bank"]
    before = (names["labels"] == names["truth"]).float().mean()
    assert (bank.refined_labels() == names["truth"]).float().mean() > max(before, 0.95)
    wrong = (names["labels"] != names["truth"]).float().mean()
    assert abs(names["issues"].noise_rate - wrong) < 0.02


def test_the_example_of_the_estimator_refines() -> None:
    names = surroundings()
    code = examples(README)[1]
    assert len([line for line in code.splitlines() if line]) <= 4
    exec(compile(code, "README.md", "exec"), names)
    truth = names["X"].argmax(1)
    given = (names["y"] == truth).float().mean()
    assert (torch.from_numpy(names["refined"]) == truth).float().mean() > given
    assert len(names["issues"]) == 300


def test_the_commands_of_readme_and_contributing_exist() -> None:
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^ *)make ([a-z-]+)", text, flags=re.MULTILINE))
    assert {"train", "test", "bench", "lint", "docs"} <= named <= targets


def test_ci_runs_what_readme_and_contributing_name() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line.startswith("make ")]
    assert commands == ["make lint", "make test", "make docs"]
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all(command in text for command in commands)
