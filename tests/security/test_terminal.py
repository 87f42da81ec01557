"""Names of a stranger command no terminal, and what is read back keeps them."""

import ast
import csv
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from alr_fast import export, report, train
from alr_fast.data.__main__ import main as data
from alr_fast.errors import UserError
from alr_fast.utils.command import exit_status, show
from alr_fast.utils.console import Console

ROOT = Path(__file__).parents[2]
EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202eexe"
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of classes, one of which has an evil name, with evil names of files."""
    folder = tmp_path_factory.mktemp("set")
    for split, count in (("train", 8), ("test", 2)):
        for name, shade in (("a", 0), (EVIL, 255)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (16, 16), (shade, number, 0))
                image.save(folder / split / name / f"{number}{EVIL}.png")
    return folder


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    argv = [
        "--data-root",
        str(root),
        "--runs",
        str(runs),
        "--optim.epochs",
        "2",
        "--methods",
        "alr",
    ]
    argv += ["--optim.batch_size", "4", "--alr.warmup_epochs", "0", "--log.show", "quiet"]
    assert train.main([*argv, "--data.workers", "1", "--model.name", "conv-mini"]) == 0
    return (runs / "latest").resolve()


def clean(text):
    assert COMMANDS.search(text) is None, repr(text)
    return text


def test_training_shows_escaped_names(root, tmp_path, capsys):
    argv = ["--data-root", str(root), "--runs", str(tmp_path), "--optim.epochs", "1"]
    argv += ["--methods", "alr", "--model.name", "conv-mini", "--optim.batch_size", "4"]
    for show_as in ("lines", "json", "quiet"):
        assert train.main([*argv, "--log.show", show_as, "--data.workers", "1"]) == 0
        output = capsys.readouterr()
        clean(output.out.replace("\n", ""))
        clean(output.err.replace("\n", ""))


def test_a_broken_image_is_named_escaped(root, tmp_path, capsys):
    copy = tmp_path / "set"
    for path in root.rglob("*.png"):
        target = copy / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes() if path.name[0] != "3" else b"\x89PNG\r\n\x1a\nbroken")
    assert data(["verify", str(copy), "--workers", "1"]) == 1
    output = capsys.readouterr()
    assert "\\x1b" in clean(output.out.replace("\n", ""))
    argv = ["--data-root", str(copy), "--runs", str(tmp_path / "runs"), "--optim.epochs", "1"]
    argv += ["--methods", "ce", "--data.exclude", "none", "--data.max_broken", "0.5"]
    argv += ["--model.name", "conv-mini", "--data.workers", "1"]
    assert train.main(argv) == 0
    output = capsys.readouterr()
    assert "\\x1b" in clean((output.out + output.err).replace("\n", ""))
    # What is read back keeps the names.
    with (tmp_path / "runs/latest/broken.csv").open(newline="", encoding="utf-8") as file:
        assert any(EVIL in value for row in csv.reader(file) for value in row)


def test_export_shows_escaped_names_and_writes_them_as_they_are(root, run, tmp_path, capsys):
    output = tmp_path / f"labels{EVIL}.csv"
    assert export.main([str(run), "--output", str(output)]) == 0
    assert "\\x1b" in clean(capsys.readouterr().out.replace("\n", ""))
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["given_name"] for row in rows} == {"a", EVIL}
    assert all(EVIL in row["path"] for row in rows)
    # The table is read back as labels of the same samples.
    argv = ["--data-root", str(root), "--labels", str(output), "--runs", str(tmp_path / "runs")]
    argv += ["--methods", "ce", "--optim.epochs", "1", "--model.name", "conv-mini"]
    assert train.main([*argv, "--log.show", "quiet", "--data.workers", "1"]) == 0


def test_the_report_shows_escaped_names(run, tmp_path, capsys):
    output = tmp_path / "report.html"
    assert report.main([str(run), "--output", str(output)]) == 0
    clean(capsys.readouterr().out.replace("\n", ""))
    page = output.read_text(encoding="utf-8")
    clean(re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S).replace("\n", ""))
    (block,) = re.findall(r'<script[^>]*id="report-data"[^>]*>(.*?)</script>', page, flags=re.S)
    content = json.loads(block)
    assert EVIL in content["names"]  # for the list of marks, which is read back
    for name in content["shownNames"]:
        clean(name)
    for suspect in content["suspects"]:
        clean(suspect["shownPath"])


@pytest.mark.parametrize("main", [export.main, report.main])
def test_an_error_shows_escaped_names(tmp_path, capsys, main):
    assert main([str(tmp_path / EVIL)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "\\x1b]0;owned\\x07" in clean(error)


@pytest.mark.parametrize("name", ["--methods", "--data-root", "--config", "--resume", "--x"])
def test_an_error_of_an_option_shows_escaped_values(tmp_path, capsys, name):
    assert train.main([name, EVIL, "--runs", str(tmp_path)]) == 2
    clean(capsys.readouterr().err)


def test_messages_and_warnings_are_escaped(capsys):
    console = Console("lines")
    console.log(f"one {EVIL}\ntwo")
    console.warn(EVIL)
    show(EVIL)

    def fail():
        raise UserError(EVIL)

    assert exit_status(fail) == 2
    output = capsys.readouterr()
    assert clean(output.out).count("\n") == 3
    assert clean(output.err).count("\n") == 2
    Console("json").log(EVIL)
    line = capsys.readouterr().out
    assert json.loads(clean(line))["text"] == EVIL  # programs get the text itself


def test_names_of_methods_are_identifiers(tmp_path, capsys):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from alr_fast.losses import Loss\nfrom alr_fast.training.methods import method\n"
        f"@method({EVIL!r})\nclass L(Loss):\n    pass\n"
    )
    assert train.main(["--plugins", str(plugin), "--methods", "ce"]) == 2
    assert "not an identifier" in clean(capsys.readouterr().err)


# Only these functions print; all others call them.
PRINTING = {
    ("alr_fast/utils/command.py", "show"),
    ("alr_fast/utils/command.py", "exit_status"),
    ("alr_fast/utils/console.py", "warn"),
    ("alr_fast/utils/console.py", "event"),
    ("alr_fast/utils/streams.py", "_try"),  # texts of this package and of the system
}


def test_messages_are_printed_by_one_function():
    found = set()
    for path in sorted((ROOT / "alr_fast").rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Name) and node.id == "print":
                        found.add((path.relative_to(ROOT).as_posix(), function.name))
                    if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.stdout.write":
                        found.add((path.relative_to(ROOT).as_posix(), function.name))
    assert found == PRINTING


def test_evil_names_exist_here(root):
    assert EVIL in os.listdir(root / "train")
