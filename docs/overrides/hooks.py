"""Hooks of the site's build: links, what they lead to outside docs/, and the fonts of KaTeX.

The pages are read on GitHub, too, where `../CMakeLists.txt` is a link to that file. A site has
docs/ alone, so each file that a page links to becomes a page of its own below `repository/`:
Markdown as it is, a folder as a list of its files, sources as a block of code. Images and data are
copied. A link whose text is the name of a file gets the title of its page instead.

The fonts of formulas are put into the style sheet: a page from file:// may not load a font.
"""

import base64
import functools
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "repository/"
COPIED = (".json", ".png")  # as they are; all other files are text
LANGUAGES = {
    ".cpp": "cpp", ".cu": "cuda", ".cuh": "cuda", ".h": "cpp", ".py": "python", ".sh": "bash",
    ".cmake": "cmake", ".toml": "toml", ".yaml": "yaml", "Makefile": "make",
    "CMakeLists.txt": "cmake",
}  # fmt: skip

_FENCE = r"^(?P<indent> *)(?P<fence>```+|~~~+)[^\n]*\n.*?^(?P=indent)(?P=fence) *$"
_CODE = r"(?P<tick>`+).+?(?P=tick)"
_LINK = r"\[(?P<text>[^\[\]]*)\]\((?P<path>[^)\s#]+)(?:#(?P<anchor>[^)\s]*))?\)"
_CODE_OR_LINK = re.compile(f"{_FENCE}|{_CODE}|{_LINK}", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_ADDRESS = re.compile(r"[a-z]+:")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files that pages link to, and those that these link to; puts fonts in place."""
    style = files.get_file_from_path("assets/katex/katex.min.css")
    files.remove(style)
    text = with_fonts(Path(style.abs_src_path))
    files.append(File.generated(config, style.src_uri, content=text))
    waiting = [(place_of(f), f.content_string) for f in files.documentation_pages()]
    while waiting:
        place, text = waiting.pop()
        for target in sorted(linked(place, text)):
            if target.startswith("docs/") or files.get_file_from_path(address_of(target)):
                continue
            file = make_file(target, config)
            files.append(file)
            if file.is_documentation_page():
                waiting.append((place_of(file), file.content_string))
    return files


def with_fonts(style: Path) -> str:
    """The style sheet with its woff2 fonts inside, and without the other forms of them."""

    def embedded(match: re.Match[str]) -> str:
        font = base64.b64encode((style.parent / match[1]).read_bytes()).decode()
        return f'src:url(data:font/woff2;base64,{font}) format("woff2")'

    return re.sub(r"src:url\(([^)]+\.woff2)\)[^}]*", embedded, style.read_text(encoding="utf-8"))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turns links to files of the repository into links to their pages."""
    return with_links(markdown, page.file)


def with_links(text: str, file: File) -> str:
    """The text of a page, its links as they are within the site."""
    place, here = place_of(file), posixpath.dirname(file.src_uri)

    def moved(target: str) -> str:
        inside = target[len("docs/") :] if target.startswith("docs/") else address_of(target)
        return posixpath.relpath(inside, here or ".")

    return replace_links(text, place, moved)


def place_of(file: File) -> str:
    """Where the text of a page is in the repository; its links start there."""
    if file.src_uri.startswith(PREFIX):
        return file.src_uri[len(PREFIX) :]
    return f"docs/{file.src_uri}"


def address_of(target: str) -> str:
    """Where a file or folder outside docs/ is in the site."""
    path = ROOT / target
    if path.is_dir():
        return f"{PREFIX}{target}/index.md"
    return f"{PREFIX}{target}" + ("" if path.suffix in (".md", *COPIED) else ".md")


def linked(place: str, text: str) -> set[str]:
    """Files and folders of the repository that a text links to."""
    found = set()

    def note(target: str) -> str:
        found.add(target)
        return target

    replace_links(text, place, note)
    return {target for target in found if (ROOT / target).exists()}


def replace_links(text: str, place: str, new: Callable[[str], str]) -> str:
    """Replaces the targets of links, outside blocks of code.

    Args:
        text: Markdown.
        place: Its path in the repository.
        new: Returns the new target for one relative to the root of the repository.
    """

    def one(match: re.Match[str]) -> str:
        text, path, anchor = match["text"], match["path"], match["anchor"]
        if path is None:  # code
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), path))
        # What does not exist stays, and is reported by the check of links.
        if _ADDRESS.match(path) or not (ROOT / target).exists():
            return match[0]
        if path.endswith(".md") and text in (target, posixpath.basename(target)):
            text = title_of(target, anchor)
        return f"[{text}]({new(target)}{'' if anchor is None else '#' + anchor})"

    return _CODE_OR_LINK.sub(one, text)


@functools.cache
def title_of(target: str, anchor: str | None) -> str:
    """The title of a page, up to a colon, and the heading that an anchor leads to."""
    headings = _HEADING.findall((ROOT / target).read_text(encoding="utf-8"))
    title = headings[0].partition(":")[0]
    below = [heading for heading in headings if slugify(heading, "-") == anchor]
    return f"{title}: {below[0]}" if below else title


def make_file(target: str, config: MkDocsConfig) -> File:
    """The page of a file or folder of the repository, or a copy."""
    path, address = ROOT / target, address_of(target)
    if path.suffix in COPIED:
        return File.generated(config, address, abs_src_path=str(path))
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.is_file() and p.suffix != ".so")
        lines = "\n".join(f"- [{name}]({name})" for name in names)
        text = f"---\nsearch:\n  exclude: true\n---\n\n# {target}\n\n{lines}\n"
        return File.generated(config, address, content=text)
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        text = source_page(target, text)
    return File.generated(config, address, content=text)


def source_page(target: str, text: str) -> str:
    """A page with one block: a source file."""
    longest = max(map(len, re.findall("~+", text)), default=0)
    fence = "~" * max(3, longest + 1)
    name = posixpath.basename(target)
    language = LANGUAGES.get(name) or LANGUAGES.get(Path(name).suffix) or "text"
    head = "---\nhide:\n  - toc\nsearch:\n  exclude: true\n---\n\n"
    return f"{head}# {target}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"
