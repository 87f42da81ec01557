"""The site needs no network, has all pages, and links as GitHub does."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

from helpers.documents import ROOT

# Attributes by which a page loads something; links lead elsewhere only if a reader follows them.
LOADED = {
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset"),
    "link": ("href",), "video": ("src", "poster"), "audio": ("src",), "object": ("data",),
    "embed": ("src",), "input": ("src",), "use": ("href", "xlink:href"), "form": ("action",),
}  # fmt: skip
# In the scripts of the theme: of diagrams, of a repository's stars, of browsers before 2020, in
# comments. No page has what they are for, which the tests with a browser see as well.
ADDRESSES = {
    "https://unpkg.com/mermaid", "https://unpkg.com/resize-observer-polyfill",
    "https://api.github.com/repos/", "https://api.github.com/users/", "https://clipboardjs.com/",
    "http://www.w3.org/", "http://lunrjs.com", "http://tartarus.org/", "https://bit.ly/2s3ChXG",
}  # fmt: skip


class Elements(HTMLParser):
    """Elements of a page: names with attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def pages(site):
    """Page -> its elements."""
    files = sorted(site.rglob("*.html"))
    return {file: Elements(file.read_text(encoding="utf-8")).found for file in files}


def is_external(address):
    return bool(urlsplit(address.strip()).netloc)


def test_pages_load_nothing_from_elsewhere(pages):
    assert len(pages) > 35
    for page, elements in pages.items():
        for tag, attributes in elements:
            for name in LOADED.get(tag, ()):
                assert not is_external(attributes.get(name) or ""), f"{page}: {tag} {attributes}"
            assert "class" not in attributes or "mermaid" not in (attributes["class"] or "")
            assert "data-md-component" not in attributes or (
                attributes["data-md-component"] != "source"
            )


def test_styles_load_nothing_from_elsewhere(site):
    styles = sorted(site.rglob("*.css"))
    assert len(styles) >= 4
    for style in styles:
        text = style.read_text(encoding="utf-8")
        assert "@import" not in text
        assert [
            u for u in re.findall(r"url\(([^)]*)\)", text) if not u.strip("'\"").startswith("data:")
        ] == []


def test_scripts_name_no_other_addresses(site):
    for script in site.rglob("*.js"):
        if script.name == "search_index.js" or "lunr" in script.parts:
            continue  # text of the pages, and languages
        found = set(re.findall(r"https?://[\w./-]+", script.read_text(encoding="utf-8")))
        unknown = {a for a in found if not a.startswith(tuple(ADDRESSES))}
        assert unknown == set(), script.name


def test_every_link_and_anchor_of_every_page_leads_somewhere(pages, site):
    """Also those that mkdocs does not check: of docstrings, of pages made by the hooks."""
    names = {
        page: {a.get("id") or a.get("name") for _, a in found} for page, found in pages.items()
    }
    count = 0
    for page, elements in pages.items():
        for tag, attributes in elements:
            address = urlsplit(attributes.get("href") or attributes.get("src") or "")
            if address.scheme or address.netloc or page.name == "404.html":
                continue
            path = (page.parent / unquote(address.path)).resolve() if address.path else page
            if path.is_dir():
                path = path / "index.html"
            assert path.is_file(), f"{page.relative_to(site)}: {tag} {attributes}"
            if address.fragment and path.suffix == ".html" and address.fragment != "__skip":
                assert unquote(address.fragment) in names[path], f"{page}: {attributes}"
            count += 1
    assert count > 1000


def test_links_to_files_of_the_repository_show_these_files(site):
    text = (site / "build.html").read_text(encoding="utf-8")
    assert 'href="repository/CMakeLists.txt.html"' in text
    source = (site / "repository" / "CMakeLists.txt.html").read_text(encoding="utf-8")
    assert "cmake_minimum_required" in source
    folder = (site / "repository" / "benchmarks" / "results" / "index.html").read_text("utf-8")
    assert re.search(r'href="[\w-]+\.json"', folder)
    benchmarks = (site / "repository" / "benchmarks").glob("*")
    assert {"index.html", "accuracy-digits.png"} <= {path.name for path in benchmarks}


def test_a_link_named_like_its_file_has_the_title_of_the_page(site):
    text = (site / "performance.html").read_text(encoding="utf-8")
    assert ">Notes on the CUDA kernels</a>" in text
    for page in site.glob("*.html"):
        names = re.findall(r'<a href="[^"]*">([\w/-]+\.md)</a>', page.read_text(encoding="utf-8"))
        assert names == [], page.name


def test_lists_and_fences_are_read_as_on_github(pages):
    """Python-Markdown wants an empty line before a list, and four spaces within one."""
    for page in pages:
        text = page.read_text(encoding="utf-8")
        body = re.sub(r"<pre.*?</pre>|<code.*?</code>", "", text, flags=re.DOTALL)
        assert not re.search(r"\n(- |\d\. |```|\| )", body[body.index("<article") :]), page


def test_a_link_that_leads_nowhere_stops_the_build(tmp_path):
    """`--strict` with all checks of links: a file, an anchor, an absolute link."""
    docs = tmp_path / "docs"
    docs.mkdir()
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    checks = config[config.index("validation:") : config.index("\nnav:")]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\n{checks}\n")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    for link in ("missing.md", "index.md#missing", "/index.md", "#missing", "figures/missing.png"):
        (docs / "index.md").write_text(f"# Page\n\n[link]({link})\n")
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1 and link.partition("#")[0] in done.stderr, link
    (docs / "index.md").write_text("# Page\n\n[link](index.md#page)\n")
    assert subprocess.run(words, cwd=tmp_path, capture_output=True).returncode == 0


def load_hook(name):
    spec = spec_from_file_location(name, ROOT / "docs" / "overrides" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_in_code_and_to_missing_files_stay():
    hooks = load_hook("hooks")
    text = (
        "[a](../setup.py) `x[0](../setup.py)`\n\n```\n[a](../setup.py)\n```\n\n[a](../missing.py)\n"
    )
    new = hooks.replace_links(text, "docs/page.md", str.upper)
    assert new == text.replace("[a](../setup.py) ", "[a](SETUP.PY) ", 1)


def test_the_name_of_a_member_leads_to_the_member():
    names = load_hook("names")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    html = names.on_page_content("<code>LabelBank.check()</code>", page, None)
    assert 'identifier="alr_fast.bank.LabelBank.check"' in html


def test_a_source_with_fences_is_one_block():
    page = load_hook("hooks").source_page("a/b.py", "~~~\n~~~~\n```\n")
    assert page.endswith("# a/b.py\n\n~~~~~python\n~~~\n~~~~\n```\n~~~~~\n")


def test_katex_comes_with_its_licence(site):
    assert "Khan Academy" in (site / "assets" / "katex" / "LICENSE").read_text(encoding="utf-8")
    version = re.search(r'version:"([\d.]+)"', (site / "assets/katex/katex.min.js").read_text())[1]
    assert f"KaTeX {version}" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    fonts = list((ROOT / "docs" / "assets" / "katex" / "fonts").iterdir())
    style = (site / "assets" / "katex" / "katex.min.css").read_text(encoding="utf-8")
    assert style.count("url(data:font/woff2;base64,") == len(fonts) == 20


def test_make_docs_builds_the_site_strictly():
    done = subprocess.run(
        ["make", "-n", "docs", "VENV=no-such-folder"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "-m mkdocs build --quiet --strict" in done.stdout
    assert "requirements.py docs" in done.stdout
    assert Path("build/site") == Path(
        re.search(r"site_dir: (\S+)", (ROOT / "mkdocs.yml").read_text())[1]
    )
