"""The first screen of a report, and its images enlarged, in a browser."""

import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from helpers.report_browser import by_score, emulate, resize
from helpers.report_pages import report, suspect, thumbnail

OPEN = "document.getElementById('viewer').open"


def shown(page):
    """Title of the enlarged sample, or None."""
    return page.text("#viewer-title") if page.js(OPEN) else None


@pytest.fixture
def file(tmp_path):
    """An image of 400 x 300 pixels, larger than its thumbnail, with an odd name."""
    path = tmp_path / "a #1 ä%.png"
    Image.new("RGB", (400, 300), (200, 30, 30)).save(path)
    return path


@pytest.mark.parametrize(
    ("width", "height", "top"), [(1280, 800, 560), (390, 844, 660)], ids=["desktop", "phone"]
)
def test_the_first_screen_shows_a_suspicious_image(page_with_curves, width, height, top):
    """With two remarks above it. The part in view is most of the image."""
    page = page_with_curves
    resize(page.driver, width, height)
    page.open()
    image = page.one(".card img").rect
    assert image["height"] > 100 and image["y"] <= top
    assert image["y"] + 0.9 * image["height"] <= height
    assert page.text("h1") == report().title and page.text(".size") == "1,437 samples in 5 classes"


def test_filters_are_open_in_wide_windows_alone(page):
    assert page.js("document.getElementById('filter-box').open")
    assert not page.one("#filter-box > summary").is_displayed()
    resize(page.driver, 390, 844)
    page.until(lambda: not page.js("document.getElementById('filter-box').open"))
    assert not page.one("#filter-given").is_displayed()
    page.click("#filter-box > summary")
    page.choose("filter-given", 2)
    assert page.ids() == by_score(given=2)[:24]
    resize(page.driver, 1280, 800)
    page.until(lambda: page.one("#filter-given").is_displayed())


def test_enlarged_by_a_click_and_by_enter(page):
    page.click('.card[data-id="4"] .picture')
    assert shown(page) == "Sample 4"
    small = page.one('.card[data-id="4"] .picture').rect
    large = page.one("#viewer-picture img").rect
    assert large["width"] * large["height"] > 5 * small["width"] * small["height"]
    page.press(Keys.ESCAPE)
    page.until(lambda: page.focused() == 4)
    assert shown(page) is None
    page.press(Keys.ENTER)
    assert shown(page) == "Sample 4"
    page.press(Keys.ENTER)  # the button to close has the focus
    page.until(lambda: page.focused() == 4)
    assert shown(page) is None
    # On a button of the card, Enter is the button's.
    page.press(Keys.TAB, Keys.TAB, Keys.ENTER)
    assert shown(page) is None and page.mark_of(4) == "keep"


def test_arrow_keys_go_on_over_the_pages_of_the_list(page):
    page.focus(0)
    page.press(Keys.ENTER)
    assert not page.one("#viewer-previous").is_enabled()
    page.press(Keys.ARROW_LEFT)
    assert shown(page) == "Sample 0"
    page.press(Keys.ARROW_RIGHT, "j", Keys.ARROW_LEFT)
    assert shown(page) == "Sample 1"
    for _ in range(23):
        page.press(Keys.ARROW_RIGHT)
    assert shown(page) == "Sample 24" and page.ids() == by_score()[24:48]
    page.press("k")
    assert shown(page) == "Sample 23" and page.ids() == by_score()[:24]
    page.click("#viewer-next")
    page.click("#viewer-close")
    page.until(lambda: page.focused() == 24)


def test_the_last_one_of_a_filtered_list(page):
    page.choose("filter-given", 3)  # one sample
    page.press(Keys.TAB)
    page.focus(5)
    page.press(Keys.ENTER)
    assert shown(page) == "Sample 5"
    assert [page.one(f"#viewer-{b}").is_enabled() for b in ("previous", "next")] == [False, False]


def test_marks_are_made_while_enlarged(page):
    page.focus(0)
    page.press(Keys.ENTER, "2", Keys.ARROW_RIGHT, "1", Keys.ARROW_RIGHT)
    page.click('#viewer-details [data-mark="unsure"]')
    assert page.stored() == {"0": "fix 1", "1": "keep", "2": "unsure"}
    assert page.one('#viewer-details [aria-pressed="true"]').text == "unsure"
    page.press("4")
    assert page.js("document.activeElement.closest('#viewer-details .other') !== null")
    page.press("n", Keys.TAB)  # "never seen"
    assert page.stored()["2"] == "fix 4"
    page.click("#viewer-close")
    assert page.one('.card[data-id="2"]').get_attribute("data-mark") == "fix"
    assert page.mark_of(0) == "fix" and page.mark_of(1) == "keep"


def test_a_mark_that_takes_the_sample_out_of_the_list(page):
    """The next one is then in its place."""
    page.choose("filter-mark", "none")
    page.focus(2)
    page.press(Keys.ENTER, "1")
    assert shown(page) == "Sample 2" and page.ids()[:3] == [0, 1, 3]
    page.press(Keys.ARROW_RIGHT)
    assert shown(page) == "Sample 3"
    page.press("1", Keys.ARROW_LEFT)
    assert shown(page) == "Sample 1"
    page.press(Keys.ESCAPE)
    page.until(lambda: page.focused() == 1)


def test_the_file_of_an_image_is_a_link_and_is_enlarged(open_page, file):
    suspects = [suspect(0, address=file.as_uri()), suspect(1)]
    page = open_page(report(suspects=suspects, panels=[]))
    link = page.one('.card[data-id="0"] .path a')
    assert link.get_attribute("href") == file.as_uri() and link.text == "train/cat/0000.jpg"
    assert page.all('.card[data-id="1"] .path a') == []
    assert page.js("performance.getEntriesByType('resource').length") == 0  # not before
    page.click('.card[data-id="0"] .picture')
    page.until(lambda: page.js("document.querySelector('#viewer-picture img').naturalWidth") == 400)
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: page.js("document.querySelector('#viewer-picture img').naturalWidth") == 64)


def test_without_its_file_the_embedded_image_is_enlarged(open_page, file):
    tiny = suspect(1, address=(file.parent / "gone.png").as_uri(), image=thumbnail(1, size=8))
    page = open_page(report(suspects=[suspect(0, address=file.as_uri()), tiny], panels=[]))
    page.click('.card[data-id="1"] .picture')
    page.until(lambda: page.js("document.querySelector('#viewer-picture img').naturalWidth") == 8)
    page.until(lambda: "tiny" in page.one("#viewer-picture img").get_attribute("class"))
    page.until(lambda: any("ERR_FILE_NOT_FOUND" in line for line in page.log()))
    assert page.js("document.querySelector('#viewer-picture img').naturalWidth") == 8


@pytest.mark.parametrize(("scheme", "width", "height"), [("light", 1280, 800), ("dark", 390, 844)])
def test_accessibility(open_page, file, scheme, width, height):
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is not installed")
    suspects = [suspect(k, address=file.as_uri()) for k in range(3)]
    page = open_page(report(suspects=suspects, panels=[]))
    emulate(page.driver, scheme)
    resize(page.driver, width, height)
    page.focus(1)
    page.press(Keys.ENTER, "2")
    assert page.overhang() == 0
    for button in page.all("#viewer button"):
        assert button.is_displayed() and button.rect["x"] + button.rect["width"] <= width
    found = axe.Axe().run(page.driver)
    assert found["passes"]
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]] == []


def test_boxes_show_that_they_scroll(page):
    def sides():
        return set(page.js("[...document.querySelector('#classes .scroller').classList]"))

    def scroll(left):
        page.js(f"document.querySelector('#classes .scroll').scrollLeft = {left}")

    assert sides() == {"scroller"}
    resize(page.driver, 390, 844)
    page.until(lambda: sides() == {"scroller", "more-right"})
    after = "getComputedStyle(document.querySelector('#classes .scroller'), '::after').opacity"
    page.until(lambda: page.js(after) == "1")
    scroll(40)
    page.until(lambda: sides() == {"scroller", "more-left", "more-right"})
    scroll(9999)
    page.until(lambda: sides() == {"scroller", "more-left"})


def test_the_changes_name_their_epochs(open_page):
    names = {}
    for epochs in (1, 10):
        page = open_page(report(suspects=[suspect(0)], change_epochs=epochs, panels=[]))
        names[epochs] = page.js("document.querySelectorAll('.details dt')[1].textContent")
    assert names == {1: "changes in the last epoch", 10: "changes in the last 10 epochs"}


def test_the_warm_up_and_equal_curves_are_drawn(open_page):
    content = report(suspects=[suspect(0)])
    page = open_page(content)
    assert page.js(
        "[...document.querySelectorAll('.plot .annotation-text')].map((t) => t.textContent)"
    ) == ["end of warm-up (alr)"]
    widths = page.js(
        "[...document.querySelector('.plot').querySelectorAll('.js-line')]"
        ".map((l) => parseFloat(l.style.strokeWidth))"
    )
    # The first one is drawn below, and shows on both sides.
    assert widths[0] >= widths[1] + 2


def test_a_key_that_comes_after_closing_does_nothing(page):
    page.focus(0)
    page.press(Keys.ENTER, Keys.ESCAPE)
    page.until(lambda: page.focused() == 0)
    late = 'new KeyboardEvent("keydown", {key: "2", bubbles: true})'
    page.driver.execute_script(f'document.getElementById("viewer").dispatchEvent({late})')
    assert page.stored() == {}
    assert page.log() == []
