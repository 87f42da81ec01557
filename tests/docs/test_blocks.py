"""Rules for the blocks of README and docs, and their commands; `test_pages.py` runs them."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import tomllib

import alr_fast.__main__ as command
from alr_fast.training.config.command_line import parse
from alr_fast.training.methods import METHODS
from helpers.documents import DOCUMENTS, ROOT, blocks, blocks_of, program_name, root_of
from helpers.reader import write_data

SHELL = blocks("sh")
FOREIGN = ("fiftyone", "export", "srun")  # programs of others
OWN = ("alr-fast", "python", "python3", "torchrun", "make", "pip")
LANGUAGES = {
    "sh": "pasted into a shell",
    "python": "pasted into Python, or saved with a title",
    "yaml": "saved with a title",
    "": "what a program prints",
    "text": "what a program prints, or a line with parts to be filled in",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder as the references assume it: data, a finished run, a plugin."""
    folder = write_data(tmp_path_factory.mktemp("place"))
    for block in blocks_of(ROOT / "docs" / "adding-a-method.md"):
        if block.file is not None:
            (folder / block.file).write_text(block.code)
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
    program, rest = program_name(words), words[1:]
    if program == "srun":
        return program_of(rest)
    if program == "torchrun":
        rest = rest[rest.index("-m") :]
    if program in ("python", "python3", "torchrun") and rest[0] == "-m":
        module, rest = rest[1], rest[2:]
        program = "alr-fast" if module == "alr_fast" else module
    if program == "alr-fast":
        program = command.COMMANDS[rest[0]].module
        rest = rest[1:]
    return program, rest


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_is_one_that_a_test_runs(document):
    """No block can be forgotten: each has a language that `Reader` knows, and no other form."""
    found = blocks_of(document)
    for block in found:
        assert block.language in LANGUAGES, (
            f"{block}: write one of {', '.join(filter(None, LANGUAGES))}"
        )
        assert block.language != "yaml" or block.file is not None, f'{block}: add title="FILE"'
        if block.language in ("", "text"):
            lines = block.code.splitlines()
            pasted = [line for line in lines if is_command(line)]
            assert not pasted or re.search(r"\b(RUN|FILE|DIR|OUT|\$)", block.code), str(block)
    text = document.read_text(encoding="utf-8")
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(found), "a fence is not read"
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r" {4}\S", line) and is_command(line) and not in_a_block(number, found):
            assert re.search(r"\bRUN\b", line), (
                f"{document.name}:{number}: a command that no test runs; write it in a block of sh"
            )


def is_command(line: str) -> bool:
    return line.split()[:1] and Path(line.split()[0]).name in OWN


def in_a_block(number: int, found: list) -> bool:
    return any(block.line <= number < block.line + block.code.count("\n") for block in found)


@pytest.mark.parametrize("words", list(commands()))
def test_the_commands_are_understood(words, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    program, rest = program_of(words)
    if program in FOREIGN or program == "python" or program in ("source", "venv"):
        return
    if program == "pip":
        check_installation(rest)
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "alr_fast.train" and not {"--help", "--help-all", "--print_config"} & set(rest):
        parse([stand_in(word, rest) for word in rest])
    else:
        options = [word for word in rest if word.startswith("--")]
        package = [program] if program.endswith("__main__") else [program, f"{program}.__main__"]
        module = next(m for m in map(import_module, package) if hasattr(m, "main"))
        if program == "alr_fast.info" and not rest:
            return
        with pytest.raises(SystemExit):  # of a subcommand, where there is one
            module.main([*(rest[:1] if re.fullmatch("[a-z]+", rest[0]) else []), "--help"])
        text = capsys.readouterr().out
        assert [option for option in options if option not in text] == []


def stand_in(word: str, rest: list[str]) -> str:
    """A file or folder of `place` for what a page calls so."""
    if word in ("DIR", "photos"):
        return root_of(rest)
    return "features.npz" if word.endswith("labels.parquet") else word


def check_installation(words: list[str]) -> None:
    """What pip is told to install is this package, or what its metadata names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    required = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    required += [line for lines in extras.values() for line in lines]
    known = {re.match(r"[\w.-]+", line)[0].lower() for line in required}
    assert words[0] in ("install", "uninstall")
    for word in words[1:]:
        if word.startswith("-"):
            continue
        if ">=" in word:
            assert word in required, f"{word}: pyproject.toml has another lower bound"
            continue
        name, _, inside = word.rstrip("]").partition("[")
        asked = inside.split(",") if inside else []
        assert set(asked) <= set(extras), f"{word}: extras are {', '.join(extras)}"
        assert name in (".", "alr_fast", "alr_fast-*.whl", "$(echo alr_fast-*.whl)") or (
            name.lower() in known
        ), f"{word}: neither this package nor one that it names"


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
            # Names of the reference are anchors of the site alone, whose build checks them.
            if anchor and path.parent.name != "api":
                assert anchor in slugs(path), f"{document.name}: {target}#{anchor}"


def test_each_task_is_one_click_from_the_first_page():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    cards = text[text.index('<div class="grid cards"') : text.index("</div>")]
    pages = re.findall(r"^- \*\*\[[^]]+\]\(([^)#]+)\)\*\*$", cards, re.MULTILINE)
    assert pages == [
        *("install.md", "own-loop.md", "features.md", "images.md", "labels.md", "scaling.md")
    ]
    for page in pages:
        assert any(block.language in ("sh", "python") for block in blocks_of(ROOT / "docs" / page))


GUIDES = [
    *("install.md", "own-loop.md", "features.md", "images.md", "labels.md", "review.md"),
    *("scaling.md", "integrations.md", "adding-a-method.md", "adding-a-dataset.md"),
]


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_says_what_it_needs_and_gives(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    start = text[: text.index("```")]
    assert re.search(r"\*\*You need\*\* .*\*\*You get\*\* ", start, re.DOTALL)
    if name != "install.md":
        assert re.search(r"^## What to look at", text, re.MULTILINE)
    if name != "adding-a-method.md":
        assert re.search(r"^## Limits", text, re.MULTILINE)
