"""Commands in messages: made in one way, and each of them does what the message says."""

import ast
import re
from pathlib import Path

import pytest

import alr_fast
from alr_fast.__main__ import COMMANDS, main
from alr_fast.data.broken import find_exclusions
from alr_fast.data.datasets import open_dataset
from alr_fast.errors import UserError
from alr_fast.noise.files import load_labels
from helpers.commands import commands
from helpers.image_folder import write_folder

PACKAGE = Path(alr_fast.__file__).parent
COMMAND = re.compile(rf"python3? -m alr_fast|alr-fast (?:{'|'.join(COMMANDS)})\b")
# Descriptions of what a file is, not commands to call; help texts of options.
PROSE = {
    "data/layouts/packed.py",
    "labels/report/server.py",
    "training/config/help.py",
    "training/methods.py",
}


def sources():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_no_message_writes_a_command_itself():
    """`python_command` knows how this package is installed, and quotes."""
    found = set()
    for name, tree in sources():
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and id(node) not in documentation and COMMAND.search(text):
                found.add(name)
    assert found == PROSE


def test_no_text_names_the_command_in_two_ways():
    texts = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".yaml", ".html", ".js")]
    found = {p.name for p in texts if "python -m alr_fast." in p.read_text(encoding="utf-8")}
    assert found == {"command.py"}  # which says how a command may be called


def test_every_named_command_exists():
    modules = {command.module.removesuffix(".__main__") for command in COMMANDS.values()}
    calls = [
        node.args[0].value
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "python_command"
    ]
    assert len(calls) >= 10
    assert set(calls) - {"pip", "torch.distributed.run"} <= modules


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "my images"
    return write_folder(folder, train={"a": 6, "b": 6}, test={"a": 2, "b": 2})


def call(words, **places):
    """Runs a command of a message with the placeholders replaced."""
    assert main([str(places.get(word, word)) for word in words]) == 0


@pytest.mark.parametrize("content", [None, b"no array"])
def test_noisy_labels_are_made_as_the_message_says(root, tmp_path, content):
    path = tmp_path / "noisy labels.npz"
    if content is not None:
        path.write_bytes(content)
    index = open_dataset("folder", root).split("train").index
    with pytest.raises(UserError) as caught:
        load_labels(path, index)
    (words,) = commands(str(caught.value))
    call(words, DIR=root)
    assert len(load_labels(path, index)) == 12


def test_a_list_of_exclusions_is_made_as_the_message_says(root, run, tmp_path, monkeypatch):
    with pytest.raises(UserError) as caught:
        find_exclusions(open_dataset("folder", root).split("train"), str(tmp_path / "no.csv"))
    export, verify = commands(str(caught.value))
    monkeypatch.chdir(tmp_path)
    call(export, RUN=run)
    call([*verify, "--output", "list.csv", "--split", "train"])
    assert (run / "labels.parquet").is_file() and Path("list.csv").is_file()


def test_the_page_is_made_as_the_end_of_a_run_says(run, tmp_path, monkeypatch):
    from alr_fast.utils.shell import python_command

    monkeypatch.chdir(tmp_path)
    (words,) = commands(python_command("alr_fast.report", run))
    call(words)
    assert (run / "report.html").is_file()


def test_packed_images_are_trained_as_the_message_says(root, tmp_path, capsys, monkeypatch):
    out = tmp_path / "my shards"
    assert main(["data", "pack", str(root), str(out)]) == 0
    (words,) = commands(capsys.readouterr().out)
    assert words == ["train", "--data-root", str(out)]
    monkeypatch.chdir(tmp_path)
    quick = ["--optim.epochs", "1", "--methods", "ce", "--model.name", "conv-tiny"]
    call([*words, *quick, "--optim.batch_size", "8", "--data.workers", "1"])
