"""What the project says about itself: versions, licence, citation, forms for issues."""

import re
from pathlib import Path

import pytest
import yaml

import alr_fast

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def field(name):
    """A text in pyproject.toml, which Python 3.10 cannot parse."""
    return re.search(rf'^{name} = "(.+)"$', PYPROJECT, re.M)[1]


def changelog_versions():
    """The versions of the changelog, the newest first; the first may be the next one."""
    heads = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", CHANGELOG, re.M)
    assert len(heads) == len(re.findall("^## ", CHANGELOG, re.M))
    assert heads[0] == "Unreleased"
    coming = re.search(r"^## \[Unreleased\]\n\nWill be (\d+\.\d+\.\d+)\b", CHANGELOG, re.M)
    return ([coming[1]] if coming else []) + heads[1:]


def test_there_is_one_version():
    """Between releases it is that of the last one, or the next if the changelog names it."""
    assert field("version") == CITATION["version"] == changelog_versions()[0]
    assert alr_fast.__version__ == field("version")


def test_the_changelog_has_the_sections_that_are_known():
    known = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for part in CHANGELOG.split("\n## ")[1:]:
        sections = re.findall(r"^### (.+)$", part, re.M)
        assert sections == [name for name in known if name in sections]


def test_there_is_one_licence():
    assert field("license") == CITATION["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "License ::" not in PYPROJECT  # an expression excludes classifiers


def test_the_python_versions_are_those_that_are_supported():
    oldest = int(re.search(r'requires-python = ">=3\.(\d+)"', PYPROJECT)[1])
    minors = list(map(int, re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PYPROJECT)))
    assert minors == list(range(oldest, minors[-1] + 1))


def test_the_citation_names_software_and_paper():
    assert CITATION["cff-version"] == "1.2.0"
    assert (CITATION["type"], CITATION["title"]) == ("software", field("name"))
    paper = CITATION["preferred-citation"]
    assert paper["url"] == field("Paper")
    assert all({"family-names", "given-names"} == set(author) for author in paper["authors"])


# What GitHub accepts in a form, and in the attributes of each of its parts.
FORM = {"name", "description", "title", "labels", "projects", "assignees", "type", "body"}
ATTRIBUTES = {
    "markdown": {"value"},
    "textarea": {"label", "description", "placeholder", "value", "render"},
    "input": {"label", "description", "placeholder", "value"},
    "dropdown": {"label", "description", "multiple", "options", "default"},
    "checkboxes": {"label", "description", "options"},
}


@pytest.mark.parametrize("path", [p for p in FORMS if p.stem != "config"], ids=lambda p: p.stem)
def test_a_form_for_issues_has_the_keys_that_are_known(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys() <= FORM
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0
    for part in form["body"]:
        attributes, needed = part["attributes"], "value" if part["type"] == "markdown" else "label"
        assert needed in attributes and attributes.keys() <= ATTRIBUTES[part["type"]]
        assert part.keys() <= {"type", "id", "attributes", "validations"}
        assert part.get("validations", {}).keys() <= {"required"}


def test_the_choice_of_forms_has_the_keys_that_are_known():
    path = ROOT / ".github/ISSUE_TEMPLATE/config.yml"
    choice = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert choice.keys() <= {"blank_issues_enabled", "contact_links"}
    assert all({"name", "url", "about"} == link.keys() for link in choice.get("contact_links", []))


def test_a_bug_report_asks_for_the_facts():
    text = (ROOT / ".github/ISSUE_TEMPLATE/bug_report.yml").read_text(encoding="utf-8")
    facts = next(part for part in yaml.safe_load(text)["body"] if part.get("id") == "info")
    assert "alr-fast info" in facts["attributes"]["label"]
    assert facts["validations"]["required"] is True
