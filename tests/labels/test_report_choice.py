"""Any class as the correction, texts and rows of tables, in a browser."""

import csv
import json
from dataclasses import replace

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from helpers.report_browser import by_score, emulate, resize
from helpers.report_pages import SHOWN, report, suspect

OTHER = '.card[data-id="{}"] .other'
MANY = tuple(f"class number {k}" for k in range(1000))


def exported(page):
    """The exported marks, by sample id."""
    path = page.driver.downloads / "marks.csv"
    for old in page.driver.downloads.iterdir():
        old.unlink()
    page.click("#export-marks")
    page.until(path.exists)
    with path.open(encoding="utf-8", newline="") as file:
        return {int(row["id"]): row for row in csv.DictReader(file)}


def options_of(page, id):
    return [option.text for option in Select(page.one(OTHER.format(id))).options]


def chosen(page, id):
    """Value of the choice of another class, and whether it is shown as the mark."""
    return page.js(
        "[document.querySelector(arguments[0]).value, "
        "document.querySelector(arguments[0]).classList.contains('chosen')]",
        OTHER.format(id),
    )


def test_a_class_from_the_menu(page):
    # Sample 4 is given dog; frog and cat were predicted, the others follow by number.
    assert options_of(page, 4) == [
        *("other class", "frog (93.0%)", "cat (1.0%)", SHOWN, "never seen"),
    ]
    Select(page.one(OTHER.format(4))).select_by_visible_text("never seen")
    assert chosen(page, 4) == ["4", True]
    assert page.mark_of(4) is None  # no button stands for it
    assert page.one('.card[data-id="4"]').get_attribute("data-mark") == "fix"
    assert page.text("#status").startswith("Sample 4: fix to never seen. 1 of 60 marked")
    # The refined class is that of the button.
    Select(page.one(OTHER.format(2))).select_by_value("0")
    assert page.mark_of(2) == "fix" and chosen(page, 2) == ["", False]
    assert page.stored() == {"2": "fix 0", "4": "fix 4"}
    rows = exported(page)
    assert (rows[4]["mark"], rows[4]["label"], rows[4]["label_name"]) == ("fix", "4", "never seen")
    assert (rows[2]["mark"], rows[2]["label"], rows[2]["label_name"]) == ("fix", "0", "cat")
    page.open()
    assert chosen(page, 4) == ["4", True] and page.mark_of(2) == "fix"
    page.click('.card[data-id="4"] [data-mark="keep"]')
    assert page.mark_of(4) == "keep" and chosen(page, 4) == ["", False]
    Select(page.one(OTHER.format(4))).select_by_value("3")
    Select(page.one(OTHER.format(4))).select_by_value("")
    assert page.stored() == {"2": "fix 0"}


def test_the_keyboard_reaches_the_choice(page):
    page.focus(0)
    page.press("4")
    assert page.js("document.activeElement.className") == "other"
    page.press("n")  # "never seen"; the keys of marks do nothing here
    assert page.stored() == {"0": "fix 4"}
    page.press(Keys.ESCAPE, "3")
    assert page.focused() == 0 and page.stored() == {"0": "unsure"}


def test_where_the_refined_label_is_the_given_one(open_page):
    """The next most probable class is offered; fixing to the given label is not."""
    same = suspect(0, given=1, refined=1, others=((3, 0.3), (2, 0.1)), refined_probability=0.6)
    nothing = suspect(1, given=1, refined=1, others=())
    page = open_page(report(suspects=[same, nothing]))
    card = page.card(0)
    assert [dt.text for dt in card.find_elements("css selector", ".labels dt")] == ["given", "next"]
    buttons = [b.text for b in card.find_elements("css selector", "button[data-mark]")]
    assert buttons == ["keep", SHOWN, "unsure"]
    page.focus(0)
    page.press("2")
    assert page.stored() == {"0": "fix 3"}
    assert exported(page)[0]["label"] == "3"
    assert [b.text for b in page.card(1).find_elements("css selector", "button[data-mark]")] == [
        "keep",
        "unsure",
    ]
    page.focus(1)
    page.press("2")  # there is nothing to fix it to
    assert page.stored() == {"0": "fix 3"}
    Select(page.one(OTHER.format(1))).select_by_visible_text("frog")
    assert page.stored() == {"0": "fix 3", "1": "fix 2"}


def test_two_classes_need_no_choice(open_page):
    names = ("a", "b")
    two = suspect(0, given=0, refined=1, others=((1, 0.9),))
    sure = suspect(1, given=0, refined=0, others=())
    page = open_page(
        report(suspects=[two, sure], class_names=names, confusion=[(0, 1, 2)], classes=[])
    )
    assert page.all(OTHER.format(0)) == [] and len(page.all(OTHER.format(1))) == 1


@pytest.fixture
def many(open_page):
    suspects = [suspect(k, given=k, refined=k + 1, others=((k + 1, 0.8),)) for k in range(5)]
    content = report(
        suspects=suspects, class_names=MANY, confusion=[(0, 1, 5)], classes=[], panels=[]
    )
    return open_page(content)


def found(page):
    """The classes that the search lists."""
    return [option.text for option in page.all('.found [role="option"]')]


def test_a_class_by_search(many):
    page = many
    page.focus(2)
    assert found(page) == []
    page.press("4")
    # The most probable class first, the given one never.
    assert found(page)[:3] == [f"{MANY[3]} (80.0%)", MANY[0], MANY[1]]
    assert len(found(page)) == 50 and page.text(".found p") == "949 more: type to search"
    page.press(*"Class Number 150", Keys.TAB)
    assert found(page) == []
    assert page.stored() == {"2": "fix 150"}
    assert chosen(page, 2) == [MANY[150], True]
    page.focus(3)
    page.press("4", *"no class", Keys.TAB)
    assert page.stored() == {"2": "fix 150"}
    assert page.one(OTHER.format(3)).get_attribute("aria-invalid") == "true"
    assert page.text("#status") == "There is no class no class."
    page.one(OTHER.format(3)).clear()
    page.focus(3)
    page.press("4", *MANY[3], Keys.TAB)  # the given class
    assert page.mark_of(3) == "keep"
    assert page.one(OTHER.format(3)).get_attribute("aria-invalid") is None
    page.one(OTHER.format(2)).clear()
    assert page.stored() == {"3": "keep"}


def test_the_search_by_arrow_keys(many):
    page = many
    page.focus(2)
    page.press("4", *"77", Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    field = page.one(OTHER.format(2))
    names = found(page)
    assert names[:3] == [MANY[77], MANY[177], MANY[277]] and len(names) == 19
    assert field.get_attribute("aria-expanded") == "true"
    active = page.one(f"#{field.get_attribute('aria-activedescendant')}")
    assert (active.text, active.get_attribute("aria-selected")) == (MANY[177], "true")
    page.press(Keys.ARROW_UP, Keys.ARROW_UP, Keys.ENTER)  # around the end
    assert chosen(page, 2) == [names[-1], True]
    assert field.get_attribute("aria-expanded") == "false" and found(page) == []
    # Escape closes the list, and then leaves the field.
    page.press(Keys.ARROW_DOWN)
    assert found(page) == names[-1:]
    page.press(Keys.ESCAPE)
    assert found(page) == [] and page.js("document.activeElement.className") == "other chosen"
    page.press(Keys.ESCAPE)
    assert page.focused() == 2 and page.js("document.activeElement.className") == "card"
    # One class that is left needs no arrow key; an empty field leaves the mark.
    page.focus(3)
    page.press("1", "4", Keys.ENTER)
    assert page.mark_of(3) == "keep"
    page.press(*"999", Keys.ENTER)
    assert page.stored()["3"] == "fix 999"
    page.press(*[Keys.BACKSPACE] * len(MANY[999]), Keys.ENTER)
    assert "3" not in page.stored()
    page.press(*"nothing")
    assert page.text(".found") == "no such class"
    field = page.one(OTHER.format(3))
    page.press(*[Keys.BACKSPACE] * 7, Keys.ESCAPE, Keys.ESCAPE)


def test_the_search_on_a_phone(many):
    page = many
    resize(page.driver, 390, 844)
    page.click(OTHER.format(1))
    page.press(*"88")
    option = page.all('.found [role="option"]')[1]
    box, field = option.rect, page.one(OTHER.format(1)).rect
    assert box["y"] > field["y"] and box["x"] > 0 and box["x"] + box["width"] < 390
    assert page.overhang() == 0
    option.click()
    assert page.stored() == {"1": "fix 188"}
    assert page.text("#status").startswith(f"Sample 1: fix to {MANY[188]}.")


def test_order_by_mark(page):
    page.focus(0)
    page.press("3", "j", "2", "j", "1")
    options = {o.text: o.get_attribute("value") for o in Select(page.one("#order-by")).options}
    page.choose("order-by", options["mark"])
    assert page.ids() == [2, 1, 0, *by_score()[3:24]]
    # A new mark moves its card only when the list is drawn again.
    page.focus(5)
    page.press("1")
    assert page.ids() == [2, 1, 0, *by_score()[3:24]]
    page.choose("order-direction", "asc")
    page.choose("order-direction", "desc")
    assert page.ids()[:4] == [2, 5, 1, 0]


def test_stored_marks_of_an_earlier_page(open_page):
    page = open_page(stored='{"4": "fix", "1": "fix 3", "2": "fix 99", "3": "other", "5": 7}')
    assert page.mark_of(4) == "fix" and chosen(page, 1) == ["3", True]
    assert page.text("#mark-counts") == "2 of 60 marked: 0 keep, 2 fix, 0 unsure"
    assert exported(page)[4]["label"] == str(report().suspects[4].refined)


def test_no_stored_mark_fixes_to_the_given_label(open_page):
    """Of an earlier page, or because the labels have changed since."""
    same = suspect(1, given=1, refined=1, others=((3, 0.3),))
    page = open_page(
        report(suspects=[suspect(0), same, suspect(2)], panels=[]),
        stored='{"0": "fix 0", "1": "fix", "2": "fix"}',
    )
    assert [page.mark_of(id) for id in range(3)] == ["keep", None, "fix"]
    assert page.text("#mark-counts") == "2 of 3 marked: 1 keep, 1 fix, 0 unsure"
    rows = exported(page)
    assert {id: (row["mark"], row["label"]) for id, row in rows.items()} == {
        0: ("keep", "0"), 2: ("fix", "0"),
    }  # fmt: skip


def test_marks_keep_their_class_when_the_predictions_change(open_page):
    first = open_page()
    first.focus(4)
    first.press("2")
    before = report()
    suspects = [
        replace(sample, refined=3, others=((3, 0.9),), proposal=3) if sample.id == 4 else sample
        for sample in before.suspects
    ]
    second = open_page(replace(before, suspects=suspects), stored=json.dumps(first.stored()))
    assert exported(second)[4]["label"] == str(before.suspects[4].refined) != "3"
    assert chosen(second, 4) == [str(before.suspects[4].refined), True]


def texts():
    long = "A long review. " * 60
    samples = [
        suspect(0, image=None, path="", text=SHOWN),
        suspect(1, image=None, path="", text=long + "its end"),
        suspect(2, image=None, path="", text="", changes=None),
    ]
    return report(suspects=samples, noun="texts")


def rows():
    cells = tuple((f"column {k}", str(k * 1.5)) for k in range(12))
    samples = [
        suspect(0, image=None, path="", cells=((SHOWN, SHOWN), *cells[:3])),
        suspect(1, image=None, path="", cells=cells),
    ]
    return report(suspects=samples, noun="samples")


def test_texts(open_page):
    page = open_page(texts())
    assert page.all(".picture") == []
    assert page.js("window.pwned") is None
    assert page.text('[data-id="0"] .text') == SHOWN
    shown = page.text('[data-id="1"] .text')
    assert len(shown) <= 281 and shown.endswith("A long…")
    button = '[data-id="1"] .more'
    page.click(button)
    assert page.text('[data-id="1"] .text').endswith("its end")
    assert page.one(button).get_attribute("aria-expanded") == "true"
    page.click(button)
    assert page.text('[data-id="1"] .text') == shown
    assert page.text("#suspects-title") == "Suspicious texts"
    assert page.text("#filter-text") == "3 of 3 texts"
    page.search("its end")  # of the part that is not shown
    assert page.ids() == [1]
    titles = [option.text for option in Select(page.one("#order-by")).options]
    assert "path" not in titles and "changes of the refined class" in titles


def test_rows_of_a_table(open_page):
    page = open_page(rows())
    assert page.js("window.pwned") is None
    assert page.text('[data-id="0"] th') == SHOWN
    assert page.all('[data-id="0"] .more') == []
    visible = "[...document.querySelectorAll('[data-id=\"1\"] tr')].filter((r) => !r.hidden).length"
    assert page.js(visible) == 6
    page.click('[data-id="1"] .more')
    assert page.js(visible) == 12
    page.search("column 11")
    assert page.ids() == [1]
    assert page.text("#filter-text") == "1 of 2 samples: “column 11”"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("content", [texts, rows], ids=["texts", "rows"])
def test_accessibility_and_narrow_windows(open_page, content, scheme):
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is not installed")
    page = open_page(content())
    emulate(page.driver, scheme)
    page.click('[data-id="1"] .more')
    Select(page.one(OTHER.format(1))).select_by_visible_text("never seen")
    found = axe.Axe().run(page.driver)
    assert found["passes"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]] == []
    resize(page.driver, 360)
    assert page.overhang() == 0


def test_accessibility_of_the_search(many):
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is not installed")
    many.focus(2)
    many.press("4", *MANY[9], Keys.TAB)
    many.focus(3)
    many.press("4", *"77", Keys.ARROW_DOWN)
    found = axe.Axe().run(many.driver)
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]] == []
