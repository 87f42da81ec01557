"""Every message that the FAQ quotes is one of the program: it stands in the sources."""

import ast
import re

import pytest

from helpers.documents import ROOT

FAQ = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^> `([^`]+)`$", FAQ, re.MULTILINE)
ANYTHING = "\0"  # a value in a message


def texts_of_python(source: str) -> list[str]:
    """The texts of a module, values in them as `ANYTHING`, neighbours joined as Python does."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.BinOp, ast.Constant, ast.JoinedStr)):
            found.append(text_of(node))
    return found


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ANYTHING
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return ANYTHING


def texts_of_cpp(source: str) -> list[str]:
    """The texts of each statement of a C++ source, what stands between them as `ANYTHING`."""
    found = []
    for statement in re.sub(r"//[^\n]*", "", source).split(";\n"):
        joined = re.sub(r'"\s*"', "", statement)
        parts = re.findall(r'"((?:[^"\\]|\\.)*)"', joined)
        found += [ANYTHING.join(parts)] if parts else []
    return found


@pytest.fixture(scope="module")
def messages():
    found = []
    for path in (ROOT / "alr_fast").rglob("*.py"):
        found += texts_of_python(path.read_text(encoding="utf-8"))
    for path in (ROOT / "csrc").rglob("*.[ch]*"):
        found += texts_of_cpp(path.read_text(encoding="utf-8"))
    return "\n".join(text for text in found if " " in text)


def pattern(quoted: str) -> str:
    """Matches a message of which `...` stands for values."""
    parts = re.split(r"\s*\.\.\.\s*", quoted)
    return r"[^\n]*?".join(map(re.escape, parts))


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_in_the_sources(quoted, messages):
    assert re.search(pattern(quoted), messages), "change the quotation as well as the message"


def test_the_quotations_are_found():
    assert len(QUOTED) >= 20
    assert len(QUOTED) == len(re.findall(r"^> ", FAQ, re.MULTILINE))


def test_a_message_of_no_source_is_noticed(messages):
    assert not re.search(pattern("index[...] is ..., but the table has ... columns"), messages)
