"""The blocks of README and docs, and a folder in which they can be pasted."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from helpers import features, image_folder, layouts

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

# Options that make the training of a block small. They come last, so they win.
SMALL = (
    *("--optim.epochs", "2", "--data.limit", "200", "--data.test_limit", "60"),
    *("--data.image_size", "16", "--model.name", "conv-mini", "--model.pretrained", "false"),
    *("--optim.batch_size", "32", "--data.workers", "0", "--device", "cpu"),
)
SMALL_FEATURES = ("--optim.epochs", "2", "--data.limit", "200")
WARMUPS = tuple(word for m in ("alr", "selc", "sat") for word in (f"--{m}.warmup_epochs", "1"))


@dataclass(frozen=True)
class Block:
    """A block of code in a document."""

    document: Path
    line: int  # of its first line of code, from 1
    language: str  # sh or python
    code: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The words of each command, without comments."""
        import shlex

        joined = self.code.replace("\\\n", " ")
        words = [shlex.split(line, comments=True) for line in joined.splitlines()]
        return [command for command in words if command]


def blocks(language: str) -> list[Block]:
    """All blocks in a language."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start(1)].count("\n") + 1
            found.append(Block(document, line, language, match[1]))
    return found


def small(words: list[str]) -> list[str]:
    """Options that make a training with these words small."""
    of_features = any(word.endswith(".npz") for word in words)
    return [*words, *(SMALL_FEATURES if of_features else SMALL), *WARMUPS]


def write_data(folder: Path) -> Path:
    """Writes what the blocks call DIR and features.npz; returns the folder."""
    classes = {"cat": 24, "dog": 24}
    image_folder.write_folder(folder / "DIR", train=classes, test=classes, size=(24, 20))
    features.write_digits(folder / "features.npz", samples=400)
    layouts.write_clothing1m(folder / "clothing1m")
    layouts.write_webvision(folder / "webvision")
    return folder


def root_of(words: list[str]) -> str:
    """Folder of `write_data` that a command means by DIR: data of the recipe that it names."""
    recipe = words[words.index("--recipe") + 1] if "--recipe" in words else ""
    return recipe if recipe in ("clothing1m", "webvision") else "DIR"


_SHIM = """#!{python}
# Stands for {name}: the same command, smaller.
import os, sys
sys.path.insert(0, {helpers!r})
from helpers.documents import replaced
words = replaced([{name!r}, *sys.argv[1:]])
os.execvp(words[0], words)
"""
PROGRAMS = ("python", "alr-fast", "torchrun")


def write_programs(folder: Path) -> Path:
    """Writes programs that stand for those of a document: they run the same command, smaller.

    Returns:
        The folder of the programs, which is also that of ``.venv/bin``.
    """
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    scripts = {
        name: _SHIM.format(python=sys.executable, name=name, helpers=str(ROOT / "tests"))
        for name in PROGRAMS
    }
    # Not part of this project, or an installation.
    scripts |= {name: "#!/bin/sh\nexit 0\n" for name in ("pip", "fiftyone", "make")}
    scripts["srun"] = '#!/bin/sh\nexec "$@"\n'
    for name, script in scripts.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    return programs


def replaced(words: list[str]) -> list[str]:
    """The command that a test runs in place of one of a document: this Python, small trainings."""
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
    if training and not {"--help", "--print_config"} & set(rest):
        rest = small(rest)
    if rest[:3] == ["-m", "alr_fast", "review"]:  # Ctrl-C ends it
        start = ["timeout", "--preserve-status", "--signal=INT", "60", *start]
    return [*start, *rest]
