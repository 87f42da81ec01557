"""Hook of the site's build: names of the reference become links to it.

`ALRLoss` or `LabelBank.check`, written as code in a page or a docstring, leads to its entry, and
`docs/method.md` in a docstring to that page. What has no entry stays as it is.
"""

import re
from functools import cache
from pathlib import Path

from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

REFERENCE = Path(__file__).resolve().parents[1] / "api"

# Code that is no link already, no heading and no block.
_SKIPPED = r"<(?:a|h[1-6]|pre|autoref)\b.*?</(?:a|h[1-6]|pre|autoref)>"
_CODE = re.compile(rf"{_SKIPPED}|<code>(?P<name>[A-Za-z_.]+)(?:\(\))?</code>", re.DOTALL)
_PAGE = re.compile(rf"{_SKIPPED}|\bdocs/(?P<name>[a-z-]+)\.md\b", re.DOTALL)


@cache
def entries() -> dict[str, str]:
    """The name of each entry with and without its module -> its anchor."""
    found = {}
    for page in sorted(REFERENCE.glob("*.md")):
        for anchor in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            name = anchor.rpartition(".")[2]
            if anchor.count(".") > 1:  # not a module
                found |= {anchor: anchor, name: anchor}
    return found


def on_page_content(html: str, page: Page, files: Files, **_: object) -> str:
    """Adds the links to a page."""

    def of_name(match: re.Match[str]) -> str:
        known, member = match["name"] or "", ""
        while known:  # LabelBank.check: a member of what has an entry
            if anchor := entries().get(known):
                return f'<autoref identifier="{anchor}{member}" optional>{match[0]}</autoref>'
            known, dot, last = known.rpartition(".")
            member = f"{dot}{last}{member}"
        return match[0]

    def of_page(match: re.Match[str]) -> str:
        file = files.get_file_from_path(f"{match['name']}.md")
        if file is None:
            return match[0]
        return f'<a href="{file.url_relative_to(page.file)}">{match[0]}</a>'

    html = _CODE.sub(of_name, html)
    return _PAGE.sub(of_page, html) if page.file.src_uri.startswith("api/") else html
