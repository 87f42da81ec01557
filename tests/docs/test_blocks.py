"""Every command and every example of README and docs works as it stands there."""

import os
import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import alr_fast.__main__ as command
from alr_fast import ALRLoss, LabelBank, train
from alr_fast.training.config.command_line import parse
from alr_fast.training.distributed import process_group
from alr_fast.training.methods import METHODS
from helpers.documents import (
    DOCUMENTS,
    ROOT,
    blocks,
    root_of,
    write_data,
    write_programs,
)

SHELL = blocks("sh")
FOREIGN = ("fiftyone", "pip", "export")  # programs of others


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder as the documents assume it: data, a finished run, a plugin."""
    folder = write_data(tmp_path_factory.mktemp("place"))
    write_programs(folder)
    document = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    for language, name in (("python", "gce.py"), ("yaml", "gce.yaml")):
        code = re.search(rf"```{language}\n(.*?)```", document, flags=re.DOTALL)
        (folder / name).write_text(code[1])
    small = ["--data.limit", "200", "--data.test_limit", "50", "--optim.epochs", "3"]
    words = [*small, "--alr.warmup_epochs", "1", "--alr.momentum", "0.3", "--log.show", "quiet"]
    assert train.main([*words, "--runs", str(folder / "runs")]) == 0
    methods = dict(METHODS)
    yield folder
    METHODS.clear()  # of the method of the plugin
    METHODS.update(methods)


def commands():
    """Each command of a block of shell commands: the block, the words."""
    for block in SHELL:
        for words in block.commands():
            yield pytest.param(words, id=f"{block}: {' '.join(words)}"[:90])


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """Module that a command starts, and its arguments; another program and its arguments."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "srun":
        return program_of(rest)
    if program == "torchrun":
        rest = rest[rest.index("-m") :]
    if program in ("python", "torchrun"):
        assert rest[0] == "-m"
        module, rest = rest[1], rest[2:]
        program = "alr-fast" if module == "alr_fast" else module
    if program == "alr-fast":
        program = command.COMMANDS[rest[0]].module
        rest = rest[1:]
    return program, rest


def test_every_document_with_commands_is_read():
    assert {block.document.name for block in SHELL} >= {"README.md", "training.md", "scaling.md"}
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert text.count("```sh\n") == len(SHELL)


@pytest.mark.parametrize("words", list(commands()))
def test_the_commands_are_understood(words, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    program, rest = program_of(words)
    if program in FOREIGN:
        return
    if program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "alr_fast.train" and not {"--help", "--help-all", "--print_config"} & set(rest):
        parse([root_of(rest) if word == "DIR" else word for word in rest])
    else:
        options = [word for word in rest if word.startswith("--")]
        package = [program] if program.endswith("__main__") else [program, f"{program}.__main__"]
        module = next(m for m in map(import_module, package) if hasattr(m, "main"))
        with pytest.raises(SystemExit):  # of a subcommand, where there is one
            module.main([*(rest[:1] if re.fullmatch("[a-z]+", rest[0]) else []), "--help"])
        text = capsys.readouterr().out
        assert [option for option in options if option not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("block", SHELL, ids=str)
def test_the_commands_run_when_they_are_pasted(block, place):
    latest = place / "runs" / "latest"
    latest.unlink()
    latest.symlink_to(sorted(latest.parent.glob("*-digits"))[0].name)
    programs = str(place / ".venv" / "bin")
    done = subprocess.run(
        ["bash", "-e", "-c", block.code],
        cwd=place,
        env={
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "SLURM_NNODES": "1",
            "SLURM_JOB_ID": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def slugs(document: Path) -> set[str]:
    """The anchors of the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_within_the_documents_lead_somewhere():
    for document in (*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"):
        text = document.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
            path = document.parent / target if target else document
            assert path.exists(), f"{document.name}: {target}"
            if anchor:
                assert anchor in slugs(path), f"{document.name}: {target}#{anchor}"


# Examples in Python. Those of README, own-loop, labels and adding-a-method have their own tests.


def test_the_examples_of_features(capsys):
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    from alr_fast import ALRClassifier
    from alr_fast.noise import inject

    first, second = (b.code for b in blocks("python") if b.document.name == "features.md")
    X, y = load_breast_cancer(return_X_y=True)
    names = {"X": X, "y": y}
    exec(compile(first, "features.md", "exec"), names)
    assert len(names["issues"]) == len(names["refined"]) == len(y)
    second = second.replace("range(5)", "range(1)")
    names = {
        "train_test_split": train_test_split,
        "load_breast_cancer": load_breast_cancer,
        "inject": inject,
        "ALRClassifier": ALRClassifier,
    }
    exec(compile(second, "features.md", "exec"), names)
    accuracies = [float(number) for number in capsys.readouterr().out.split()]
    assert len(accuracies) == 4
    assert min(accuracies) > 0.8


def test_the_examples_of_other_frameworks():
    first, second = (b.code for b in blocks("python") if b.document.name == "integrations.md")
    dataset = TensorDataset(torch.randn(40, 5), torch.arange(40) % 10)
    names = {"dataset": dataset, "LabelBank": LabelBank, "ALRLoss": ALRLoss}
    names |= {"DataLoader": DataLoader, "model": nn.Linear(5, 10)}
    setup, step = first.split("...\n")
    exec(compile(setup, "integrations.md", "exec"), names)
    names["criterion"] = ALRLoss(names["bank"], warmup_epochs=0)
    names["inputs"], names["targets"] = next(iter(DataLoader(names["dataset"], batch_size=8)))
    exec(compile(step, "integrations.md", "exec"), names)
    assert names["loss"].isfinite()
    setup, gather = second.split("...\n")
    with process_group():
        exec(compile(setup, "integrations.md", "exec"), names)
        assert sorted(torch.cat([targets[:, 1] for _, targets in names["loader"]])) == list(
            range(40)
        )
        exec(compile(gather, "integrations.md", "exec"), names)
    assert len(names["whole"]) == 40
