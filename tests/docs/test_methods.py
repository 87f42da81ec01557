"""The page of the methods: each with formula, source, options, and a link to its class."""

import re
from dataclasses import fields

import pytest

from alr_fast.losses import SHIPPED
from alr_fast.training.methods import options_of
from helpers.documents import ROOT

TEXT = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
FAMILY = TEXT[TEXT.index("## The family") : TEXT.index("## Results in pictures")]
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", FAMILY, re.DOTALL | re.MULTILINE))
# How the page writes a default that is None: the trainer fills it in, or refuses to go on.
NONE = {"warmup_epochs": "a sixth of all epochs", "matrix": "none"}


def test_every_method_has_a_section_and_a_row():
    assert list(SECTIONS) == re.findall(r"^\| \[`(\w+)`\]\(#\1\)", FAMILY, re.MULTILINE)
    assert set(SECTIONS) == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_section_is_complete(name):
    section = SECTIONS[name]
    assert re.search(r"^\$\$\n.+?\n\$\$$", section, re.DOTALL | re.MULTILINE)
    assert "- Use it " in section
    if name != "ce":  # of no author
        assert re.search(r"\((?:[^()]*; )?[A-Z][\w ]+(et al\.|and \w+), [^)]*\d{4}", section)
    loss = SHIPPED[name].__name__
    assert f"[`{loss}`](api/losses.md#alr_fast.losses.{loss})" in section


@pytest.mark.parametrize("name", SHIPPED)
def test_options_and_defaults_are_those_of_the_trainer(name):
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", SECTIONS[name], re.MULTILINE)
    options = fields(options_of(name))
    written = {o.name: NONE[o.name] if o.default is None else str(o.default) for o in options}
    assert dict(rows) == written
    assert ("No options" in SECTIONS[name]) == (not written)


def test_formulas_are_written_as_github_reads_them():
    """`$$` in lines of their own with empty lines around, no space inside of `$...$`."""
    lines = TEXT.splitlines()
    marks = [number for number, line in enumerate(lines) if "$$" in line]
    assert all(lines[number] == "$$" for number in marks) and len(marks) % 2 == 0
    for start, end in zip(marks[::2], marks[1::2], strict=True):
        assert lines[start - 1] == lines[end + 1] == ""
        assert "" not in lines[start:end]
    outside = re.sub(
        r"^\$\$\n.*?\n\$\$$|```.*?```|`[^`]*`", "", TEXT, flags=re.DOTALL | re.MULTILINE
    )
    for formula in re.findall(r"\$(.*?)\$", outside, re.DOTALL):
        assert formula == formula.strip() and "\n" not in formula, formula
    assert outside.count("$") % 2 == 0
