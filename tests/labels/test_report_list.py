"""The list of suspicious images in a browser: filters, order, keyboard, marks."""

import csv
from dataclasses import replace

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from alr_fast.labels.report.page import render
from helpers.report_browser import PAIR, by_score
from helpers.report_pages import NAMES, report, suspect


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


def test_equal_scores_stay_in_the_order_of_the_report(open_page):
    page = open_page(report(suspects=[suspect(id, score=0.5) for id in (5, 1, 9, 3)]))
    assert page.ids() == [5, 1, 9, 3]
    page.choose("order-direction", "asc")
    assert page.ids() == [3, 9, 1, 5]


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
    page.click('.card[data-id="4"] [data-mark="fix"]')  # again: removes it
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
    page.press(Keys.ARROW_RIGHT)  # to the next page and back
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
    """The skip link, then Tab to the first card, its picture and buttons, and out of the list."""
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
    page.press(Keys.TAB)
    assert page.js("document.activeElement.className") == "picture"
    page.press(Keys.TAB, Keys.TAB, Keys.TAB, Keys.SPACE)
    assert page.mark_of(0) == "unsure"
    page.press(Keys.TAB)
    assert page.js("document.activeElement.className") == "other"
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
    # A marked card leaves the list; the focus moves to the card in its place.
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
    columns = "id path given refined score mark label given_name refined_name label_name"
    assert list(rows[0]) == columns.split()
    marks = {0: "keep", 1: "fix", 2: "unsure", 5: "fix", 7: "keep"}
    assert [int(row["id"]) for row in rows] == list(marks)
    for row in rows:
        expected = report().suspects[int(row["id"])]
        mark = marks[expected.id]
        label = {"keep": expected.given, "fix": expected.refined, "unsure": ""}[mark]
        # A path with the start of a formula has an apostrophe in front.
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
            "label_name": "" if label == "" else NAMES[label],
        }


def test_another_report_has_its_own_marks(open_page):
    page = open_page()
    page.focus(0)
    page.press("1")
    other = replace(report(suspects=[suspect(0)]), key="another")
    page.path = page.path.with_name("another.html")
    page.path.write_text(render(other), encoding="utf-8")
    page.open()
    assert page.mark_of(0) is None
