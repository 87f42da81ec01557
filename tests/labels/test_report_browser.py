"""The page of a report in a browser: safety, plots, tables, layout, accessibility."""

import itertools
import json
from dataclasses import replace

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from alr_fast.labels.report.model import ClassNoise
from helpers.report_browser import PAIR, by_score, emulate, resize
from helpers.report_pages import MISSING, SHOWN, report, suspect, thumbnail


def test_nothing_is_requested(page_with_curves):
    page = page_with_curves
    page.focus(0)
    page.press("1")
    page.click("#export-marks")
    events = [json.loads(e["message"])["message"] for e in page.driver.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if "requestWillBeSent" in e["method"]]
    assert page.path.as_uri() in sent  # requests are logged at all
    assert [url for url in sent if url.split(":")[0] not in ("file", "data", "blob")] == []
    assert [url for url in sent if url.startswith("file:") and url != page.path.as_uri()] == []
    assert page.js("performance.getEntriesByType('resource').map((e) => e.name)") == []


def test_policy_stops_code_from_elsewhere(page):
    page.js(
        "document.body.insertAdjacentHTML('beforeend', arguments[0])", "<img src=x onerror=pwned=1>"
    )
    page.js(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'pwned=1'}))"
    )
    # Handler and script are refused, and the image, too: it is not a data: address.
    refused = []

    def all_refused():
        refused.extend(message for message in page.log() if "Content Security Policy" in message)
        return len(refused) >= 3

    page.until(all_refused)
    assert page.js("window.pwned") is None


def test_names_and_paths_are_text(page_with_curves):
    page = page_with_curves
    page.search("odd/")
    assert page.ids() == [5]
    assert page.text('.card[data-id="5"] .path') == f"odd/{SHOWN}.png"
    assert page.text('.card[data-id="5"] .name') == SHOWN
    assert page.js("window.pwned") is None
    for tag in ("h1 b", ".card script", ".card b", "#class-table script", "#class-table img"):
        assert page.all(tag) == []
    assert SHOWN in page.text("#class-table")
    assert "<b>ce</b>" in page.js(
        "[...document.querySelectorAll('.legendtext')].map((t) => t.textContent)"
    )
    assert "<script>window.pwned" in page.one(PAIR.format(3, 0)).get_attribute("aria-label")


def test_plots_are_drawn_and_described(page_with_curves):
    page = page_with_curves
    assert page.js("[...document.querySelectorAll('.plot')].map((p) => p.data.length)") == [2, 2]
    assert len(page.all(".plot .scatterlayer .trace")) == 4
    label = page.one(".plot").get_attribute("aria-label")
    assert label.startswith("test accuracy over the epochs. ce: 76.0% after epoch 30")


def test_page_without_suspects_curves_and_samples(open_page):
    empty = report(suspects=[], panels=[], confusion=[], facts=[], notes=[], classes=[])
    page = open_page(empty)
    assert page.text("#no-suspects") == "This page lists no images."
    assert page.all("#filters") == page.all(".plot") == page.all("#class-table") == []
    assert "no label looks suspicious" not in page.text("body").lower()
    assert open_page(replace(empty, samples=0)).text("#no-suspects") == "There are no samples."


def test_a_thousand_classes_and_suspects(open_page):
    names = tuple(f"class number {k}" for k in range(1000))
    confusion = [(k, (k * 7 + 1) % 1000, 1000 - k) for k in range(1000)]
    small = thumbnail(0, size=8)
    suspects = [suspect(k, given=k, refined=(k * 7 + 1) % 1000, image=small) for k in range(1000)]
    page = open_page(
        report(
            class_names=names,
            confusion=confusion,
            suspects=suspects,
            classes=[ClassNoise(name, k, k // 3, None) for k, name in enumerate(names)],
        )
    )
    assert len(page.all(".cards img")) == 24  # only those of this page are in the document
    assert len(page.all(".pairs .pair")) == 40
    page.click(PAIR.format(2, 15))
    assert page.ids() == [2]
    assert len(page.all("#class-table tbody tr")) == 15


def test_keyboard_in_the_confusion(page):
    """Tab reaches the matrix once, arrow keys move from number to number, Enter filters."""
    assert len(page.all('.matrix button[tabindex="0"]')) == 1
    page.js("document.querySelector('.matrix button').focus()")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.js("document.activeElement.dataset")["refined"] == "2"  # the end of the row
    # Across an empty cell: frog is never refined to dog.
    page.press(Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    assert page.js("{...document.activeElement.dataset}") == {"given": "2", "refined": "0"}
    page.press(Keys.ENTER)
    assert page.ids() == by_score(given=2, refined=0)
    assert len(page.all('.matrix button[tabindex="0"]')) == 1


def test_classes_are_sorted_and_may_be_empty(page):
    def first():
        return page.js(
            "[...document.querySelectorAll('#class-table tbody th')].map((c) => c.textContent)"
        )

    assert first()[0] == "dog" and first()[-1] == "never seen"  # most changed first
    assert page.text("#class-table tbody tr:last-child").count("no samples") == 2
    page.click("#class-table thead th:nth-child(2)")
    page.until(lambda: first()[:2] == ["never seen", SHOWN])  # redrawn a little later


def test_missing_and_broken_images(open_page):
    broken = suspect(1, image=thumbnail(1)[:20])
    page = open_page(
        report(suspects=[suspect(0), broken, suspect(3, image=None, image_problem=MISSING)])
    )
    assert page.card(3).find_element(By.CSS_SELECTOR, ".problem").text == MISSING
    assert (
        page.card(0).find_element(By.TAG_NAME, "img").get_attribute("alt")
        == "Sample 0: given cat, refined dog"
    )
    page.js(
        "document.querySelector('.cards').scrollIntoView()"
    )  # images out of view are not decoded
    page.until(lambda: page.js("document.querySelector('[data-id=\"0\"] img').naturalWidth") == 64)
    page.until(lambda: len(page.all(".problem")) == 2)
    assert (
        page.card(1).find_element(By.CSS_SELECTOR, ".problem").text
        == "the thumbnail cannot be decoded"
    )


def test_narrow_windows(page_with_curves):
    """Wide tables scroll inside their boxes; the page itself never scrolls sideways."""
    page = page_with_curves

    for width in (390, 360):
        resize(page.driver, width)
        assert page.js("innerWidth") == width
        assert page.overhang() == 0
        page.js("document.querySelectorAll('details').forEach((d) => { d.open = !d.open })")
        assert page.overhang() == 0
    page.open()
    assert page.overhang() == 0
    assert (
        page.js("document.querySelector('#class-table').scrollWidth") > width
    )  # the table is wider than the window


def test_dark_scheme(page_with_curves):
    page = page_with_curves

    def colors():
        ground = page.js("getComputedStyle(document.body).backgroundColor")
        text = page.js("getComputedStyle(document.body).color")
        curve = page.js("document.querySelector('.plot .js-line').style.stroke")
        tick = page.js("document.querySelector('.plot .xtick text').style.fill")
        return ground, text, curve, tick

    light = colors()
    emulate(page.driver, "dark")
    page.until(lambda: all(a != b for a, b in zip(light, colors(), strict=True)))
    dark = colors()
    assert dark[0] == "rgb(15, 19, 24)"
    page.open()
    assert colors() == dark
    emulate(page.driver, "light")
    page.until(lambda: colors() == light)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(page_with_curves, scheme):
    page = page_with_curves
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is not installed")
    emulate(page.driver, scheme)
    page.js("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    page.focus(0)
    page.press("1", "j", "2", "j", "3")
    page.choose("filter-given", 0)
    found = axe.Axe().run(page.driver)
    assert found["passes"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]] == []


def test_headings_are_in_order(page):
    levels = page.js(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((h) => Number(h.tagName[1]))"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
