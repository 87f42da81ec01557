"""The page of a report as text: escaping, policy, data, colours."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from alr_fast.labels.report import page as module
from alr_fast.labels.report.model import ClassNoise, Panel
from alr_fast.labels.report.page import render
from alr_fast.utils.text import distinct_names
from helpers.report_pages import ATTACK, MISSING, SHOWN, report, suspect, thumbnail

TEMPLATES = Path(module.__file__).parent / "templates"


class Elements(HTMLParser):
    """All elements of a page with their attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def text():
    return render(report())


@pytest.fixture(scope="module")
def elements(text):
    return Elements(text)


def data_of(text):
    block = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', text)
    return block[1], json.loads(block[1])


def test_size_without_images():
    text = render(report(suspects=[suspect(0, image=None)]))
    assert len(text.encode()) < 6e6
    # A page without curves omits plotly.js.
    assert len(render(report(panels=[])).encode()) < 1.5e6


def test_nothing_points_outside(elements):
    for tag, attributes in elements.tags:
        for name in ("src", "srcset", "href", "action", "data", "poster", "ping"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, name, value)
    for path in TEMPLATES.glob("*.css"):
        assert "@import" not in path.read_text() and "url(" not in path.read_text()


def test_policy_names_every_script_and_nothing_else(elements):
    policy = next(
        a["content"]
        for a in elements.all("meta")
        if a.get("http-equiv") == "Content-Security-Policy"
    )
    allowed = re.search(r"script-src ([^;]*);", policy)[1].split()
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script, attributes in zip(elements.scripts, elements.all("script"), strict=True)
        if attributes.get("type") != "application/json"
    ]
    assert digests == allowed
    assert len(allowed) == 3
    assert policy == (
        f"default-src 'none'; script-src {' '.join(digests)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert not any(name.startswith("on") for _, attributes in elements.tags for name in attributes)


def test_data_cannot_leave_its_script(text):
    block, data = data_of(text)
    assert block.isascii()
    assert not set("<>&") & set(block)
    assert data["names"][3] == ATTACK
    assert data["suspects"][5]["path"] == f"odd/{ATTACK}.png"
    assert data["suspects"][3] | {"image": None, "problem": MISSING} == data["suspects"][3]


def test_names_are_escaped_in_text_and_attributes(text, elements):
    assert ATTACK not in text
    assert "<script>window.pwned" not in text
    assert len(elements.scripts) == 4
    assert [a for a in elements.all("img") if "onerror" in a] == []
    labels = [a.get("aria-label") or "" for a in elements.all("button")]
    assert any(SHOWN in label for label in labels)
    hostile = replace(
        report(suspects=[]), title=ATTACK, facts=[(ATTACK, ATTACK)], notes=[ATTACK], key=ATTACK
    )
    assert ATTACK not in render(hostile)


def test_names_of_curves_are_escaped_for_plotly():
    panel = Panel("loss", "", {'<a href="http://example.org">x</a> & y': ([1], [2.0])})
    figure = data_of(render(report(panels=[panel])))[1]["figures"][0]
    assert figure["data"][0]["name"] == ('&lt;a href="http://example.org"&gt;x&lt;/a&gt; &amp; y')


def test_short_curves_have_points_and_whole_epochs():
    long, lone = (list(range(60)), [1.0] * 60), ([7], [2.0])
    figures = [module._figure(Panel("", "%", {"a": a})) for a in (long, lone, ([1, 60], [1, 2]))]
    assert [f["data"][0]["mode"] for f in figures] == ["lines", "lines+markers", "lines+markers"]
    assert [f["layout"]["xaxis"].get("dtick") for f in figures] == [None, 1, None]


def test_scripts_cannot_end_early():
    source = 'a = "</script>"; b = `<!-- <script>`; c = 1 < 2;\r\n'
    safe = str(module._script(source))
    assert safe == 'a = "\\x3C/script>"; b = `\\x3C!-- <script>`; c = 1 < 2;\n'


def test_a_path_that_is_not_utf_8():
    path = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    text = render(report(suspects=[suspect(0, path=path)], notes=[path]))
    assert data_of(text)[1]["suspects"][0]["path"] == path
    assert r"caf\xe9.png" in text
    text.encode("utf-8")


def test_images_are_embedded_by_their_kind():
    kinds = ("PNG", "JPEG", "WEBP")
    suspects = [suspect(k, image=thumbnail(k, kind=kind)) for k, kind in enumerate(kinds)]
    shown = data_of(render(report(suspects=suspects)))[1]["suspects"]
    for entry, kind, expected in zip(shown, kinds, suspects, strict=True):
        head, body = entry["image"].split(",")
        assert head == f"data:image/{kind.lower()};base64"
        assert base64.b64decode(body) == expected.image


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suspects": [suspect(0, given=5)]}, "class 5 has no name: there are 5 class names"),
        ({"suspects": [suspect(0, refined=-1)]}, "class -1 has no name"),
        ({"confusion": [(0, 7, 1)]}, "class 7 has no name"),
        ({"suspects": [suspect(0, proposal=9)]}, "class 9 has no name"),
        ({"suspects": [suspect(0, proposal=0)]}, "sample 0: the given label is proposed in its"),
        ({"suspects": [suspect(0, address="javascript:alert(1)")]}, "'javascript:alert(1)' is no"),
        ({"suspects": [suspect(0, address="https://example.org/a")]}, "is no address of a file"),
        ({"suspects": [suspect(0, address="//example.org/a")]}, "is no address of a file"),
        ({"suspects": [suspect(0, address="file://example.org/a")]}, "is no address of a file"),
        ({"suspects": [suspect(0, address="\tjavascript:alert(1)")]}, "is no address of a file"),
        ({"suspects": [suspect(4), suspect(4)]}, "2 suspects have the id 4"),
        ({"suspects": [suspect(9, image=b"<svg>")]}, "thumbnail of sample 9: neither PNG nor JPEG"),
    ],
)
def test_inconsistent_content_is_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        render(report(**changes))


@pytest.mark.parametrize(
    ("addresses", "sources"),
    [
        (("", ""), "data:"),
        (("file:///a%20b/1.png", ""), "data: file:"),
    ],
)
def test_the_policy_allows_the_files_of_images(addresses, sources):
    suspects = [suspect(k, address=address) for k, address in enumerate(addresses)]
    assert f"img-src {sources}; base-uri" in render(report(suspects=suspects, panels=[]))


def test_the_policy_of_a_served_page():
    text = render(report(suspects=[suspect(0, address="image/0")], panels=[]), server={"file": ""})
    assert "img-src data: &#39;self&#39;; connect-src" in text


@pytest.mark.parametrize(
    ("samples", "classes", "line"),
    [
        (1437, 10, "1,437 samples in 10 classes"),
        (1, 1, "1 sample in 1 class"),
        (0, 2, "0 samples in 2 classes"),
        (10**6, 1000, "1,000,000 samples in 1,000 classes"),
    ],
)
def test_the_size_of_the_data(samples, classes, line):
    names = tuple(map(str, range(classes)))
    content = report(
        samples=samples, class_names=names, suspects=[], confusion=[], classes=[], panels=[]
    )
    assert f'<p class="size">{line}</p>' in render(content)


def test_the_suspects_come_first(text):
    ids = re.findall(r'<section id="(\w+)"', text)
    assert ids == ["suspects", "summary", "curves", "confusion", "classes"]


def test_the_end_of_the_warm_up_is_marked():
    series = {name: (list(range(1, 21)), [1.0] * 20) for name in ("ce", "alr", "<b>", "sat")}
    panel = Panel("loss", "", series, {"ce": 0, "alr": 3, "<b>": 15, "sat": 3})
    layout = module._figure(panel)["layout"]
    assert [line["x0"] for line in layout["shapes"]] == [3.5, 15.5]
    assert [text["text"] for text in layout["annotations"]] == [
        "end of warm-up (alr, sat)",
        "end of warm-up (&lt;b&gt;)",
    ]
    assert module._panel(panel)["text"].endswith(
        "; end of warm-up (alr, sat) after epoch 3; end of warm-up (<b>) after epoch 15."
    )
    assert not module._figure(Panel("loss", "", series, {"ce": 0}))["layout"].get("shapes")


def test_missing_numbers():
    panel = Panel("loss", "", {"a": ([1, 2], [float("nan"), None]), "b": ([], [])})
    text = render(
        report(
            suspects=[suspect(0, score=float("nan"))],
            panels=[panel, Panel("empty", "%", {})],
            classes=[ClassNoise("a", 0, 0, None)],
        )
    )
    data = data_of(text)[1]
    assert data["figures"] == [None, None]
    assert data["suspects"][0]["score"] is None
    assert text.count("No values were logged.") == 2
    assert "Truly wrong" not in text  # unknown for all classes
    assert "no samples" in text


def test_curves_in_words():
    panel = Panel("acc", "%", {"a": ([1, 2, 3, 4], [50.0, None, 97.81, 90.0])})
    assert module._panel(panel)["text"] == (
        "acc over the epochs. a: 90.0% after epoch 4, lowest 50.0% (epoch 1), "
        "highest 97.8% (epoch 3)."
    )


def test_table_or_strongest_pairs():
    def confusion(classes):
        names = tuple(map(str, range(classes)))
        entries = [
            (k, (k + step) % classes, 100 * k + step + 1) for k in range(classes) for step in (0, 1)
        ]
        return module._confusion(report(class_names=names, confusion=entries, suspects=[]))

    table = confusion(30)
    assert len(table["rows"]) == 30 and not table["pairs"]
    assert table["rows"][2][3] == {
        "given": 2,
        "refined": 3,
        "count": 202,
        "share": 0.0696,
        "text": "given 2, refined 3: 202 samples, 50.1% of this class",
    }
    pairs = confusion(50)
    assert not pairs["rows"] and pairs["number"] == 50
    assert [p["count"] for p in pairs["pairs"]] == [100 * k + 2 for k in range(49, 9, -1)]
    assert pairs["kept"] + pairs["moved"] == pairs["all"]


def test_empty_and_duplicate_names():
    assert distinct_names(("a", "b", "a", " ")) == [
        "a (class 0)",
        "b",
        "a (class 2)",
        "class 3",
    ]


def luminance(color):
    """Relative luminance of #rrggbb (WCAG 2)."""
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast():
    """Contrast to the background in both schemes: text 4.5, curves and edges of controls 3."""
    css = (TEMPLATES / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    )
    assert light.keys() == dark.keys()
    grounds = ("page", "surface", "raised")
    texts = [(text, ground) for text in ("text", "quiet", "accent") for ground in grounds]
    # The background of a pair is between the surface and the full heat.
    texts += [("text", "heat"), ("text", "kept"), ("accent-text", "accent")]
    texts += [("mark-text", mark) for mark in ("keep", "fix", "unsure")]
    shapes = [(f"curve-{k}", "surface") for k in range(6)] + [("edge", "surface")]
    for scheme in (light, dark):
        for a, b in texts:
            assert contrast(scheme[a], scheme[b]) >= 4.5, (a, b)
        for a, b in shapes:
            assert contrast(scheme[a], scheme[b]) >= 3, (a, b)
