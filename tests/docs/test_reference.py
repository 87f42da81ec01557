"""The reference has everything public, and describes every parameter."""

import re
import zlib

import griffe
import pytest

from helpers.documents import ROOT
from helpers.public_names import NAMES, PUBLIC, found

# "The arguments are those of ..." stands for what is described there.
ELSEWHERE = re.compile(
    r"\barguments(, and the errors,)? are those of|\barguments and \w+ (as|are)|"
    r"as for all other arguments|^see `|; see `",
    re.IGNORECASE,
)


def functions(entry, path):
    """A public function, or the constructor and the public methods of a class: label, function,
    text of the class.
    """
    if entry.is_function:
        yield path, entry, ""
    elif entry.is_class:
        text = entry.docstring.value if entry.docstring else ""
        for name, member in entry.members.items():
            if member.is_alias or not member.is_function:
                continue
            if name == "__init__":
                yield f"{path}()", member, text
            elif not name.startswith("_") and member.docstring:
                yield f"{path}.{name}", member, ""


CALLS = [
    pytest.param(function, text, id=label)
    for module, name in NAMES
    for label, function, text in functions(found(module, name), f"{module}.{name}")
]


@pytest.fixture(scope="module")
def anchors(site):
    """Anchor -> page of every entry of the reference, as the site lists them for other sites."""
    data = (site / "objects.inv").read_bytes()
    lines = zlib.decompress(data.split(b"\n", 4)[4]).decode().splitlines()
    parts = [line.split() for line in lines]
    return {name: place.replace("$", name) for name, _, _, place, *_ in parts}


@pytest.mark.parametrize("name", [".".join(pair) for pair in NAMES])
def test_every_public_name_is_in_the_reference(name, anchors, site):
    """Whoever adds a name to __all__ adds it to a page of docs/api."""
    place = anchors[name]
    page, anchor = place.split("#")
    html = (site / page).read_text(encoding="utf-8")
    assert f'id="{anchor}"' in html


def test_names_at_the_top_are_on_the_first_page_of_the_reference():
    text = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    assert [name for name in PUBLIC["alr_fast"] if f"alr_fast.{name}`" not in text] == []
    pages = {path.name for path in (ROOT / "docs" / "api").glob("*.md")} - {"index.md"}
    assert pages == set(re.findall(r"\]\((\w+\.md)", text))


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_no_attribute_gets_the_type_of_another(module, name):
    """griffe gives an attribute that it finds nowhere the type of the one above: order them."""
    entry = found(module, name)
    for section in entry.docstring.parse("google", warnings=False) if entry.docstring else ():
        if section.kind is griffe.DocstringSectionKind.attributes:
            unknown = [a for a in section.value if a.name not in entry.all_members]
            assert [a.name for a in unknown if a.annotation is not None] == []


@pytest.mark.parametrize(("function", "text"), CALLS)
def test_every_parameter_is_described(function, text):
    text += function.docstring.value if function.docstring else ""
    assert text
    names = [p.name for p in function.parameters if p.name not in ("self", "cls")]
    described = set()
    for docstring in filter(None, (function.docstring, function.parent.docstring)):
        for section in docstring.parse("google", warnings=False):
            if section.kind is griffe.DocstringSectionKind.parameters:
                described |= {p.name.lstrip("*") for p in section.value}
    if ELSEWHERE.search(text):
        return
    # One parameter that the sentence names needs no list.
    undescribed = [n for n in names if n not in described and not re.search(rf"\b{n}\b", text)]
    assert undescribed == []
