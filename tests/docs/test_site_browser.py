"""The site as a reader sees it, from its files and without a network: in a real Chromium."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from helpers.documents import ROOT
from helpers.report_browser import Page, emulate, resize

# What sticks out of the window at the right, where nothing scrolls: the theme would cut it off.
CUT = """[...document.querySelectorAll('.md-content__inner *')]
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
    .filter((e) => {
      for (let p = e; !p.classList.contains("md-content__inner"); p = p.parentElement)
        if (getComputedStyle(p).overflowX === "auto") return false;
      return getComputedStyle(e).position !== "absolute" && !e.closest(".katex-mathml");
    })
    .map((e) => e.outerHTML.slice(0, 120))"""
LINK = ".md-search-result__link"
LOOKED_AT = ["index", "images", "method", "api/losses", "performance", "faq"]


@pytest.fixture
def open_page(driver, site):
    """Opens a page of the site at desktop size; in the end the log of the browser must be empty."""

    def open(name):
        return Page(driver, site / f"{name}.html").open()

    driver.get_log("browser")
    driver.get_log("performance")
    resize(driver, 1280)
    emulate(driver, "light")
    yield open
    assert [entry["message"] for entry in driver.get_log("browser")] == []
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def wait_for_fonts(page):
    page.until(lambda: page.js("document.fonts.status") == "loaded")


def requests(driver):
    """Addresses that were requested since the last call, and those that failed."""
    events = [json.loads(e["message"])["message"] for e in driver.get_log("performance")]
    sent = {
        e["params"]["requestId"]: e["params"]["request"]["url"]
        for e in events
        if e["method"] == "Network.requestWillBeSent"
    }
    lost = [e["params"] for e in events if e["method"] == "Network.loadingFailed"]
    return list(sent.values()), [sent.get(e["requestId"], e) for e in lost if not e.get("canceled")]


def test_every_page_opens_without_a_network_and_fits_a_phone(open_page, driver, site):
    names = sorted(p.relative_to(site).with_suffix("").as_posix() for p in site.rglob("*.html"))
    wide = {}
    for name in names:
        if name == "404":  # for servers: its addresses are absolute
            continue
        resize(driver, 390)
        cut = open_page(name).js(CUT)
        if cut:
            wide[name] = cut[:3]
    sent, failed = requests(driver)
    assert len(sent) > len(names)
    assert [url for url in sent if not url.startswith(("file:", "data:", "blob:"))] == []
    assert failed == []
    assert wide == {}


def test_formulas_are_drawn_with_their_fonts(open_page):
    page = open_page("method")
    page.until(lambda: page.js("window.katex !== undefined"))
    count = page.js("document.querySelectorAll('.arithmatex').length")
    assert count > 40
    page.until(lambda: len(page.all(".arithmatex .katex")) == count)
    assert page.all(".katex-error") == []
    wait_for_fonts(page)
    fonts = page.js("[...document.fonts].filter((f) => f.status === 'loaded').map((f) => f.family)")
    assert {"KaTeX_Main", "KaTeX_Math", "KaTeX_Size1"} <= {name.strip('"') for name in fonts}
    page = open_page("faq")  # pages without formulas do not load it
    assert page.js("window.katex === undefined")


def test_search_works_from_files(open_page, driver):
    page = open_page("index")
    page.one("[data-md-component=search-query]").send_keys("LabelBank")
    page.until(lambda: page.all(LINK))
    assert any("api/bank.html" in link.get_attribute("href") for link in page.all(LINK))
    sent, failed = requests(driver)
    assert any(url.endswith("search_index.js") for url in sent)
    assert failed == [] and all(url.startswith(("file:", "data:")) for url in sent)


def test_the_scheme_follows_the_system(open_page, driver):
    page = open_page("index")

    def background():
        return page.js("getComputedStyle(document.body).backgroundColor")

    assert background() == "rgb(255, 255, 255)"
    emulate(driver, "dark")
    page.until(lambda: background() != "rgb(255, 255, 255)")


def test_first_page_shows_its_six_tasks_without_scrolling(open_page, driver):
    resize(driver, 1280, 900)
    page = open_page("index")
    bottoms = page.js(
        "[...document.querySelectorAll('.grid.cards > ul > li')]"
        ".map((card) => card.getBoundingClientRect().bottom)"
    )
    assert len(bottoms) == 6 and max(bottoms) <= 900


def test_wide_tables_and_code_scroll_on_a_phone(open_page, driver):
    resize(driver, 390)
    page = open_page("performance")
    boxes = page.js(
        "[...document.querySelectorAll('.md-typeset__scrollwrap')].map((box) => "
        "[box.scrollWidth > box.clientWidth, getComputedStyle(box).overflowX, box.tabIndex])"
    )
    assert boxes and any(wide for wide, _, _ in boxes)
    assert all(flow == "auto" and index == 0 for wide, flow, index in boxes if wide)


@pytest.mark.parametrize("width", [1280, 390])
def test_no_text_is_tiny(open_page, driver, width):
    resize(driver, width)
    for name in LOOKED_AT:
        page = open_page(name)
        wait_for_fonts(page)
        sizes = page.js(
            "[...document.querySelectorAll('.md-content :is(p, li, td, th, code, a)')]"
            ".filter((e) => !e.closest('.katex') && e.checkVisibility() && e.textContent.trim())"
            ".map((e) => [parseFloat(getComputedStyle(e).fontSize), e.textContent.slice(0, 40)])"
        )
        assert min(sizes)[0] >= 11, min(sizes)


# In the dark, pages with all colours.
@pytest.mark.parametrize(
    ("name", "scheme"),
    [*((name, "light") for name in LOOKED_AT), ("index", "dark"), ("api/losses", "dark")],
)
def test_accessibility(open_page, driver, name, scheme):
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is not installed")
    emulate(driver, scheme)
    page = open_page(name)
    wait_for_fonts(page)
    found = axe.Axe().run(driver)
    assert found["passes"]
    assert [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found["violations"]] == []


@pytest.mark.slow
def test_screenshots_are_taken_in_each_window_and_scheme(driver, site, tmp_path):
    script = ROOT / "scripts" / "docs_screenshots.py"
    words = [sys.executable, str(script), "--site", str(site), "--out", str(tmp_path / "shots")]
    done = subprocess.run([*words, "--pages", "index.html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shots = sorted(path.name for path in (tmp_path / "shots").iterdir())
    windows = [
        f"{window}-{scheme}" for window in ("desktop", "phone") for scheme in ("dark", "light")
    ]
    assert shots == [f"index-{name}.png" for name in windows]
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "shots").iterdir()}
    assert {sizes["index-desktop-dark.png"], sizes["index-phone-light.png"]} == {
        (1280, 800),
        (390, 844),
    }
    light, dark = (
        Image.open(tmp_path / "shots" / f"index-phone-{s}.png") for s in ("light", "dark")
    )
    assert light.getpixel((5, 800)) != dark.getpixel((5, 800))
    done = subprocess.run([*words, "--pages", "missing.html"], capture_output=True, text=True)
    assert done.returncode == 2 and "missing.html: run make docs first" in done.stderr
