"""The blocks of README and docs, and the programs that a test runs in place of those they name.

Imports little: the programs that `write_programs` writes import it for each command.
"""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

# Options that make the training of a block small. They come last, so they win.
SMALL = (
    *("--optim.epochs", "2", "--data.limit", "200", "--data.test_limit", "60"),
    *("--data.image_size", "16", "--model.name", "conv-mini", "--model.pretrained", "false"),
    *("--optim.batch_size", "32", "--data.workers", "0", "--device", "cpu"),
)
SMALL_FEATURES = ("--optim.epochs", "2", "--data.limit", "200")
WARMUPS = tuple(word for m in ("alr", "selc", "sat") for word in (f"--{m}.warmup_epochs", "1"))

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)(?: title=\"(?P<file>[^\"]+)\")?(?P<rest>[^\n]*)\n"
    r"(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_INSTALLERS = ("pip", "make", "uv", "source", "cd", "git")


@dataclass(frozen=True)
class Block:
    """A block of code in a document.

    Attributes:
        document: The page.
        line: Line of its first line of code, from 1.
        language: sh, python, ..., or "" for none.
        file: The file that the reader saves it as, None if it is pasted.
        code: Its text.
    """

    document: Path
    line: int
    language: str
    file: str | None
    code: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The words of each command, without comments and variables set for it."""
        joined = self.code.replace("\\\n", " ")
        found = []
        for line in joined.splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            found += [words] if words else []
        return found

    @property
    def installs(self) -> bool:
        """Whether all that it does is to install or to remove: a test only reads such a block."""
        return all(
            program_name(words) in _INSTALLERS
            or words[1:3] in (["-m", "venv"], ["-m", "pip"], ["wheel", "--help"])
            for words in self.commands()
        )


def program_name(words: list[str]) -> str:
    """The program of a command, without the folder of an environment."""
    return Path(words[0]).name


def blocks_of(document: Path) -> list[Block]:
    """All blocks of a page, in their order."""
    text = document.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        line = text[: match.start("code")].count("\n") + 1
        code = re.sub(f"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        found.append(Block(document, line, match["language"], match["file"], code))
    return found


def blocks(language: str) -> list[Block]:
    """All blocks in a language."""
    found = [block for document in DOCUMENTS for block in blocks_of(document)]
    return [block for block in found if block.language == language]


def small(words: list[str]) -> list[str]:
    """Options that make a training with these words small."""
    of_features = any(word.endswith(".npz") for word in words)
    return [*words, *(SMALL_FEATURES if of_features else SMALL), *WARMUPS]


def root_of(words: list[str]) -> str:
    """Folder of the test's data that a command means by DIR: data of the recipe that it names."""
    recipe = words[words.index("--recipe") + 1] if "--recipe" in words else ""
    return recipe if recipe in ("clothing1m", "webvision") else "DIR"


_SHIM = """#!{python}
# Stands for {name}: the same command, for a test.
import os, sys
sys.path.insert(0, {helpers!r})
from helpers.documents import replaced
words = replaced([{name!r}, *sys.argv[1:]], smaller={smaller})
os.execvp(words[0], words)
"""
PROGRAMS = ("python", "alr-fast", "torchrun")


def write_programs(folder: Path, *, smaller: bool) -> Path:
    """Writes programs that stand for those of a document: they run the same commands.

    Args:
        folder: Where the document is read.
        smaller: Whether trainings are made small.

    Returns:
        The folder of the programs, which is also that of ``.venv/bin``.
    """
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    values = {"python": sys.executable, "helpers": str(ROOT / "tests"), "smaller": smaller}
    scripts = {name: _SHIM.format(name=name, **values) for name in PROGRAMS}
    # Not part of this project, or an installation.
    scripts |= {name: "#!/bin/sh\nexit 0\n" for name in ("pip", "fiftyone", "make")}
    scripts["srun"] = '#!/bin/sh\nexec "$@"\n'
    for name, script in scripts.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    return programs


def replaced(words: list[str], *, smaller: bool) -> list[str]:
    """The command that a test runs in place of one of a document: this Python, two processes."""
    program, *rest = words
    start = [sys.executable]
    if program == "torchrun":  # two processes, one machine
        at = rest.index("-m")
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        rest = rest[at:]
    elif program == "alr-fast":
        rest = ["-m", "alr_fast", *rest]
    training = rest[:2] == ["-m", "alr_fast.train"] or rest[:3] == ["-m", "alr_fast", "train"]
    rest = [root_of(rest) if word == "DIR" else word for word in rest]
    if (smaller or "DIR" in words) and training and not {"--help", "--print_config"} & set(rest):
        rest = small(rest)
    if rest[:3] == ["-m", "alr_fast", "review"]:  # Ctrl-C ends it
        start = ["timeout", "--preserve-status", "--signal=INT", "60", *start]
    return [*start, *rest]
