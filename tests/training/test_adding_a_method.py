"""The worked example of docs/adding-a-method.md trains and computes its formula."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from alr_fast.losses import SmearingLoss
from alr_fast.train import main
from alr_fast.training.methods import METHODS

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
SMALL = ["--data.limit", "200", "--data.test_limit", "50", "--optim.epochs", "2"]


def blocks(language):
    return re.findall(rf"```{language}.*?\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the files of the document."""
    before = dict(METHODS)
    monkeypatch.chdir(tmp_path)
    Path("gce.py").write_text(blocks("python")[0])
    Path("gce.yaml").write_text(blocks("yaml")[0])
    yield tmp_path
    METHODS.clear()
    METHODS.update(before)


def test_the_commands_of_the_document_run(folder, capsys):
    commands = [line.split("#")[0].split() for line in blocks("sh")[0].splitlines()]
    assert [words[:2] for words in commands] == [["alr-fast", "train"]] * 3
    for words in commands[:2]:
        assert main([*words[2:], *SMALL]) == 0
        summary = json.loads(Path("runs/latest/summary.json").read_text())
        assert list(summary["methods"]) == ["ce", "gce", "alr"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(commands[2][2:])
    words = " ".join(capsys.readouterr().out.split())
    assert words.endswith(
        "--gce.q X above 0, at most 1; the higher, the less a wrong label weighs. (default 0.7)"
    )
    assert main(["--config", "gce.yaml", "--gce.q", "2"]) == 2
    (message,) = re.findall(r"`(error: --gce.*?)`", TEXT)
    assert capsys.readouterr().err.strip() == message


def test_the_example_computes_its_formula():
    before = dict(METHODS)
    names = {"__name__": "gce"}
    exec(compile(blocks("python")[0], "adding-a-method.md", "exec"), names)
    METHODS.clear()
    METHODS.update(before)
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 4, generator=g, dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, -1, 2, 2])
    found, grad = names["GCELoss"](q=0.4).loss_and_grad(logits, labels)
    z = logits.clone().requires_grad_()
    keep = labels >= 0
    p = z.softmax(-1)[keep].gather(1, labels[keep, None])
    expected = ((1 - p**0.4) / 0.4).mean()
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected, z)[0])
    # Towards q = 0 it is cross entropy.
    found, _ = names["GCELoss"](q=1e-6).loss_and_grad(logits, labels)
    torch.testing.assert_close(
        found, F.cross_entropy(logits[keep], labels[keep]), rtol=1e-4, atol=0
    )


def test_the_fused_example_is_the_smearing_loss():
    names = {"__name__": "table"}
    exec(compile(blocks("python")[1], "adding-a-method.md", "exec"), names)
    g = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(6, 4, generator=g), torch.tensor([0, 3, 1, -1, 2, 2])
    matrix = torch.rand(4, 4, generator=g)
    found = names["TableLoss"](matrix).loss_and_grad(logits, labels)
    expected = SmearingLoss(matrix).loss_and_grad(logits, labels)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
