"""The page of a report in a browser: headless Chromium, driven by selenium."""

import csv
import functools
import itertools
import json
import time
from dataclasses import replace

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from alr_fast.labels.report.model import ClassNoise
from alr_fast.labels.report.page import render
from helpers.report_pages import ATTACK, MISSING, NAMES, report, suspect, thumbnail

PAIR = '.pair[data-given="{}"][data-refined="{}"]'


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Returns the file of a report; the usual ones, with curves and without, are written once."""
    folder = tmp_path_factory.mktemp("pages")

    def write(content):
        path = folder / f"{len(list(folder.iterdir()))} #ä.html"
        path.write_text(render(content), encoding="utf-8")
        return path

    usual = functools.cache(lambda curves: write(report() if curves else report(panels=[])))
    return lambda content, curves: usual(curves) if content is None else write(content)


class Page:
    """An open page and what a reader does with it."""

    def __init__(self, driver, path):
        self.driver, self.path = driver, path

    def open(self):
        self.driver.get(self.path.as_uri())
        return self

    def js(self, script, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.js("document.querySelector(arguments[0]).textContent.trim()", selector)

    def click(self, selector):
        # A smooth scroll may be under way: the element is clicked where it is.
        self.js("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        self.one(selector).click()

    def choose(self, name, value):
        Select(self.one(f"#{name}")).select_by_value(str(value))

    def ids(self):
        """Samples on the page of the list, in order."""
        return self.js("[...document.querySelectorAll('.card')].map((c) => Number(c.dataset.id))")

    def search(self, text):
        box = self.one("#search-place input")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(Keys.BACKSPACE, text)

    def card(self, id):
        return self.one(f'.card[data-id="{id}"]')

    def focused(self):
        """The sample whose card has the focus, None elsewhere."""
        return self.js("Number(document.activeElement.closest('.card')?.dataset.id ?? NaN)")

    def press(self, *keys):
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def focus(self, id):
        self.js("document.querySelector(`.card[data-id='${arguments[0]}']`).focus()", id)

    def mark_of(self, id):
        """The mark that a card shows: its pressed buttons, which should be one at most."""
        pressed = self.card(id).find_elements(By.CSS_SELECTOR, 'button[aria-pressed="true"]')
        return ", ".join(button.text for button in pressed) or None

    def stored(self):
        return json.loads(self.js("localStorage.getItem(arguments[0])", report().key) or "{}")

    def until(self, condition, seconds=10):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def log(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def open_page(driver, files, tmp_path):
    """Opens a report with nothing stored, at desktop size; it must log nothing that is not read."""
    blank = tmp_path / "blank.html"  # files share one storage
    blank.write_text("<!doctype html><title>blank</title>")

    def open(content=None, stored=None, curves=False):
        page = Page(driver, files(content, curves))
        driver.get(blank.as_uri())
        driver.execute_script("localStorage.clear()")
        if stored is not None:
            driver.execute_script("localStorage.setItem(...arguments)", report().key, stored)
        driver.get_log("performance")
        return page.open()

    driver.get_log("browser")
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    emulate(driver, "light")
    yield open
    assert [entry["message"] for entry in driver.get_log("browser")] == []


@pytest.fixture
def page(open_page):
    """The usual page; without curves, it opens several times as fast."""
    return open_page()


@pytest.fixture
def page_with_curves(open_page):
    return open_page(curves=True)


def emulate(driver, scheme, motion="reduce"):
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
    features = [{"name": name, "value": value} for name, value in features.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def resize(driver, width, height=800):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def by_score(**wanted):
    """Ids of the usual suspects with these values, most suspicious first."""
    return [s.id for s in report().suspects if all(getattr(s, k) == v for k, v in wanted.items())]


def test_nothing_is_requested(page_with_curves):
    page = page_with_curves
    page.focus(0)
    page.press("1")
    page.click("#export-marks")
    events = [json.loads(e["message"])["message"] for e in page.driver.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if "requestWillBeSent" in e["method"]]
    assert page.path.as_uri() in sent  # that is, requests are seen at all
    assert [url for url in sent if url.split(":")[0] not in ("file", "data", "blob")] == []
    assert [url for url in sent if url.startswith("file:") and url != page.path.as_uri()] == []
    assert page.js("performance.getEntriesByType('resource').map((e) => e.name)") == []


def test_policy_stops_code_that_is_no_script_of_the_page(page):
    page.js(
        "document.body.insertAdjacentHTML('beforeend', arguments[0])", "<img src=x onerror=pwned=1>"
    )
    page.js(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'pwned=1'}))"
    )
    time.sleep(0.2)
    assert page.js("window.pwned") is None
    # The handler and the script are refused; the image, no data: address, is, too.
    assert sum("Content Security Policy" in message for message in page.log()) >= 3


def test_names_and_paths_are_text(page_with_curves):
    page = page_with_curves
    page.search("odd/")
    assert page.ids() == [5]
    assert page.text('.card[data-id="5"] .path') == f"odd/{ATTACK}.png"
    assert page.text('.card[data-id="5"] .name') == ATTACK
    assert page.js("window.pwned") is None
    for tag in ("h1 b", ".card script", ".card b", "#class-table script", "#class-table img"):
        assert page.all(tag) == []
    assert ATTACK in page.text("#class-table")
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
    assert "No label of the 1,437 training samples looks suspicious." in page.text("#no-suspects")
    assert page.all("#filters") == page.all(".plot") == page.all("#class-table") == []


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
    assert len(page.all(".cards img")) == 24  # those of this page alone are in the document
    assert len(page.all(".pairs .pair")) == 40
    page.click(PAIR.format(2, 15))
    assert page.ids() == [2]
    assert len(page.all("#class-table tbody tr")) == 15


def test_search(page):
    page.search("train/dog/0004")
    assert page.ids() == [4]
    assert page.text("#filter-text") == "1 of 60 images: “train/dog/0004”"
    page.search("&amp;")
    assert page.ids() == [5]
    page.search("nothing is called so")
    assert page.ids() == []
    assert page.one(".cards").text == ""
    page.click("#clear-filters")
    assert page.ids() == by_score()[:24]
    assert page.one("#search-place input").get_attribute("value") == ""


@pytest.mark.parametrize("name", ["given", "refined"])
def test_class_filters(page, name):
    page.choose(f"filter-{name}", 2)
    assert page.ids() == by_score(**{name: 2})[:24]
    page.choose(f"filter-{name}", "")
    assert page.ids() == by_score()[:24]


def test_pair_of_the_confusion_filters(page):
    pair = PAIR.format(1, 2)
    page.click(pair)
    assert page.ids() == by_score(given=1, refined=2) != []
    assert page.one(pair).get_attribute("aria-pressed") == "true"
    assert page.text("#filter-text") == "10 of 60 images: given dog, refined frog"
    assert Select(page.one("#filter-given")).first_selected_option.text == "dog (19)"
    page.click("#clear-filters")
    assert page.ids() == by_score()[:24]
    assert page.one(pair).get_attribute("aria-pressed") == "false"
    page.click(pair)
    page.click(pair)
    assert page.ids() == by_score()[:24]


def test_pair_without_suspects_says_so(page):
    page.click(PAIR.format(3, 3))
    assert page.ids() == []
    assert page.text("p.box.quiet:not([hidden])") == "No image matches."
    assert page.js("document.querySelector('#filter-refined').selectedOptions[0].text").endswith(
        " (0)"
    )


def test_keyboard_in_the_confusion(page):
    """One stop of the Tab key, arrow keys from number to number, Enter filters."""
    assert len(page.all('.matrix button[tabindex="0"]')) == 1
    page.js("document.querySelector('.matrix button').focus()")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.js("document.activeElement.dataset")["refined"] == "2"  # where the row ends
    # Over an empty cell: frog is never refined to dog.
    page.press(Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    assert page.js("{...document.activeElement.dataset}") == {"given": "2", "refined": "0"}
    page.press(Keys.ENTER)
    assert page.ids() == by_score(given=2, refined=0)
    assert len(page.all('.matrix button[tabindex="0"]')) == 1


def test_order(page):
    page.choose("order-direction", "asc")
    assert page.ids() == by_score()[::-1][:24]
    page.choose("order-direction", "desc")
    assert page.ids() == by_score()[:24]
    options = {o.text: o.get_attribute("value") for o in Select(page.one("#order-by")).options}
    for title, attribute in {
        "path": "path",
        "probability of the given label": "given_probability",
    }.items():
        page.choose("order-by", options[title])
        values = {s.id: getattr(s, attribute) for s in report().suspects}
        assert [values[id] for id in page.ids()] == sorted(values.values(), reverse=True)[:24]


def test_pages(page):
    seen = page.ids()
    for _ in range(2):
        page.click(".dt-paging-button.next")
        seen += page.ids()
    assert seen == by_score()
    assert "disabled" in page.one(".dt-paging-button.next").get_attribute("class")
    Select(page.one("#length-place select")).select_by_value("96")
    assert page.ids() == by_score()
    page.click(".dt-paging-button.first")


def test_classes_are_sorted_and_may_be_empty(page):
    def first():
        return page.js(
            "[...document.querySelectorAll('#class-table tbody th')].map((c) => c.textContent)"
        )

    assert first()[0] == "dog" and first()[-1] == "never seen"  # most changed first
    assert page.text("#class-table tbody tr:last-child").count("no samples") == 2
    page.click("#class-table thead th:nth-child(2)")
    page.until(lambda: first()[:2] == ["never seen", ATTACK])  # drawn a little later


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


def test_mark_by_mouse_and_reload(page):
    page.click('.card[data-id="4"] [data-mark="fix"]')
    page.click('.card[data-id="2"] [data-mark="keep"]')
    page.click('.card[data-id="2"] [data-mark="unsure"]')
    assert (page.mark_of(4), page.mark_of(2)) == ("fix", "unsure")
    assert page.text("#mark-counts") == "2 of 60 marked: 0 keep, 1 fix, 1 unsure"
    assert page.text("#status") == "Sample 2: unsure. 2 of 60 marked: 0 keep, 1 fix, 1 unsure"
    page.open()
    assert (page.mark_of(4), page.mark_of(2), page.mark_of(0)) == ("fix", "unsure", None)
    assert page.text("#mark-counts") == "2 of 60 marked: 0 keep, 1 fix, 1 unsure"
    page.click('.card[data-id="4"] [data-mark="fix"]')  # again: takes it away
    assert page.mark_of(4) is None
    assert page.stored() == {"2": "unsure"}


def test_keys_mark_and_move(page):
    per_line = page.js(
        "new Set([...document.querySelectorAll('.card')].map((c) => c.offsetLeft)).size"
    )
    page.focus(0)
    page.press("1", "j", "2", Keys.ARROW_RIGHT, "3", "k", "k")
    assert page.focused() == 0
    assert [page.mark_of(id) for id in (0, 1, 2)] == ["keep", "fix", "unsure"]
    page.press("0")
    assert page.mark_of(0) is None
    page.press(Keys.ARROW_DOWN)
    assert page.focused() == per_line > 1
    page.press(Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.END)
    assert page.focused() == 23
    page.press(Keys.ARROW_RIGHT)  # on to the next page, and back
    assert page.focused() == 24
    page.press(Keys.ARROW_LEFT, Keys.HOME)
    assert page.focused() == 0


def test_keys_do_not_mark_while_typing_or_with_modifiers(page):
    page.focus(0)
    page.search("1")
    assert page.stored() == {}
    page.search("")
    page.focus(0)
    ActionChains(page.driver).key_down(Keys.CONTROL).send_keys("1").key_up(Keys.CONTROL).perform()
    assert page.stored() == {}


def test_keyboard_alone(page):
    """The skip link, then Tab: the first card, its buttons, and out of the list again."""
    page.press(Keys.TAB)
    assert page.js("document.activeElement.className") == "skip"
    page.press(Keys.ENTER)
    for _ in range(20):
        page.press(Keys.TAB)
        if page.js("document.activeElement.className") == "card":
            break
    assert page.focused() == 0
    outline = page.js("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.press("2")
    page.press(Keys.TAB, Keys.TAB, Keys.TAB, Keys.SPACE)
    assert page.mark_of(0) == "unsure"
    page.press(Keys.TAB)
    assert page.js("document.activeElement.closest('.cards')") is None


def test_filter_by_mark(page):
    page.focus(0)
    page.press("1", "j", "2", "j", "2")
    page.choose("filter-mark", "fix")
    assert page.ids() == [1, 2]
    page.choose("filter-mark", "any")
    assert page.ids() == [0, 1, 2]
    page.choose("filter-mark", "none")
    assert page.ids() == by_score()[3:27]
    # What is marked leaves the list, the focus goes to the card that takes its place.
    page.focus(4)
    page.press("1")
    assert page.ids() == [3, *by_score()[5:28]]
    assert page.focused() == 5


def test_marks_of_other_samples_and_nonsense_in_the_storage(open_page):
    page = open_page(stored='{"4": "fix", "9999": "keep", "2": "<b>"}')
    assert page.text("#mark-counts") == "1 of 60 marked: 0 keep, 1 fix, 0 unsure"
    page.focus(0)
    page.press("1")
    assert page.stored() == {"0": "keep", "4": "fix", "9999": "keep"}
    page = open_page(stored="no JSON")
    page.focus(0)
    page.press("1")
    assert page.stored() == {"0": "keep"}


def test_clearing_asks_first(page):
    assert not page.one("#clear-marks").is_enabled()
    page.focus(0)
    page.press("1")
    page.click("#clear-marks")
    page.driver.switch_to.alert.dismiss()
    assert page.mark_of(0) == "keep"
    page.click("#clear-marks")
    assert "1 mark" in page.driver.switch_to.alert.text
    page.driver.switch_to.alert.accept()
    assert page.mark_of(0) is None
    assert page.stored() == {}
    assert page.text("#mark-counts").startswith("0 of 60")


def test_without_storage_the_page_says_so(open_page, driver):
    closed = (
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no') }})"
    )
    page = open_page()
    command = "Page.addScriptToEvaluateOnNewDocument"
    script = driver.execute_cdp_cmd(command, {"source": closed})["identifier"]
    try:
        page.open()
        assert page.text("#marks-kept").startswith("Marks are not kept")
        page.focus(0)
        page.press("1")
        assert page.mark_of(0) == "keep"
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script})
    page.open()
    assert page.text("#marks-kept").startswith("Marks are kept")


def test_export(page):
    for old in page.driver.downloads.iterdir():
        old.unlink()
    page.focus(0)
    page.press("1", "j", "2", "j", "3")
    page.focus(5)
    page.press("2")
    page.focus(7)
    page.press("1")
    page.click("#export-marks")
    path = page.driver.downloads / "marks.csv"
    page.until(path.exists)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = "id path given refined score mark label given_name refined_name"
    assert list(rows[0]) == columns.split()
    marks = {0: "keep", 1: "fix", 2: "unsure", 5: "fix", 7: "keep"}
    assert [int(row["id"]) for row in rows] == list(marks)
    for row in rows:
        expected = report().suspects[int(row["id"])]
        mark = marks[expected.id]
        label = {"keep": expected.given, "fix": expected.refined, "unsure": ""}[mark]
        # A path that starts like a formula has an apostrophe in front.
        path = f"'{expected.path}" if expected.path.startswith("=") else expected.path
        assert row == {
            "id": str(expected.id),
            "path": path,
            "given": str(expected.given),
            "refined": str(expected.refined),
            "score": str(expected.score),
            "mark": mark,
            "label": str(label),
            "given_name": NAMES[expected.given],
            "refined_name": NAMES[expected.refined],
        }


def test_narrow_windows(page_with_curves):
    """Wide tables scroll inside their boxes; the page itself never scrolls sideways."""
    page = page_with_curves

    def overhang():
        return page.js(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )

    for width in (390, 360):
        resize(page.driver, width)
        assert page.js("innerWidth") == width
        assert overhang() == 0
        page.js("document.querySelectorAll('details').forEach((d) => { d.open = !d.open })")
        assert overhang() == 0
    page.open()
    assert overhang() == 0
    assert (
        page.js("document.querySelector('#class-table').scrollWidth") > width
    )  # something is wide


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
    time.sleep(0.3)
    dark = colors()
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert dark[0] == "rgb(15, 19, 24)"
    page.open()
    assert colors() == dark
    emulate(page.driver, "light")
    time.sleep(0.3)
    assert colors() == light


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


def test_another_report_has_its_own_marks(open_page):
    page = open_page()
    page.focus(0)
    page.press("1")
    other = replace(report(suspects=[suspect(0)]), key="another")
    page.path = page.path.with_name("another.html")
    page.path.write_text(render(other), encoding="utf-8")
    page.open()
    assert page.mark_of(0) is None
