"""A served page in a browser: its marks are in the file as they are made."""

import json
import time
from dataclasses import replace

import pytest
from selenium.webdriver.common.keys import Keys

from alr_fast.errors import UserError
from alr_fast.labels.report import marks_file
from helpers.report_browser import Page, emulate
from helpers.report_pages import report
from helpers.review import lines_of, mark, page_for, serving


class ServedPage(Page):
    """A page by its address."""

    def open(self):
        self.driver.get(self.path)
        self.until(lambda: self.text("#marks-kept").startswith("Marks are saved"))
        return self

    def kept(self):
        return self.text("#marks-kept")

    def marked(self, id):
        return self.js(
            "document.querySelector(arguments[0]).dataset.mark", f'.card[data-id="{id}"]'
        )

    def is_safe(self):
        return self.js("document.querySelector('#marks-kept').className") == "quiet"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "marks.csv"


@pytest.fixture
def server(path):
    with serving(path, page_for(path)) as server:
        yield server


@pytest.fixture
def page(driver, server):
    driver.get_log("browser")
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    emulate(driver, "light")
    driver.get("about:blank")
    driver.get_log("performance")
    page = ServedPage(driver, server.address).open()
    yield page
    assert [entry["message"] for entry in driver.get_log("browser")] == []


def marks_in(path):
    """Mark and label of each marked sample."""
    if not path.exists():
        return {}
    return {id: (row["mark"], row["label"]) for id, row in lines_of(path).items()}


def test_marks_are_written_as_they_are_made(page, path):
    assert page.kept() == f"Marks are saved in {path}" and page.is_safe()
    assert not path.exists()
    page.focus(0)
    page.press("2")
    page.until(lambda: marks_in(path) == {0: ("fix", "1")})
    page.choose_other(4, "4")
    page.focus(2)
    page.press("3")
    page.until(lambda: len(marks_in(path)) == 3)
    page.until(lambda: page.kept().startswith("Marks are saved"))
    assert marks_in(path) == {0: ("fix", "1"), 2: ("unsure", ""), 4: ("fix", "4")}
    page.focus(2)
    page.press("0")  # removed again
    page.until(lambda: 2 not in marks_in(path))
    page.open()
    assert page.mark_of(0) == "fix" and page.mark_of(2) is None
    assert page.text("#mark-counts") == "2 of 60 marked: 0 keep, 2 fix, 0 unsure"
    # The browser keeps nothing of what is saved.
    assert page.js("localStorage.length") == 0
    events = [json.loads(e["message"])["message"] for e in page.driver.get_log("performance")]
    sent = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert {url for url in sent if not url.startswith(("data:", page.path))} <= {"about:blank"}


def test_the_whole_image_is_that_of_the_server(driver, path):
    suspects = [replace(s, address=f"image/{s.id}") for s in report().suspects]
    with serving(path, page_for(path, suspects=suspects)) as server:
        page = ServedPage(driver, server.address).open()
        page.focus(4)
        page.press(Keys.ENTER)
        page.until(lambda: page.js("document.querySelector('#viewer img')?.naturalWidth") == 200)
        assert page.js("document.querySelector('#viewer img').src") == f"{server.address}image/4"
        page.press("1")  # marks work there, too
        page.until(lambda: marks_in(path) == {4: ("keep", "1")})
        page.until(lambda: page.kept().startswith("Marks are saved"))
    assert [entry["message"] for entry in driver.get_log("browser")] == []


def test_all_marks_of_the_page_are_cleared(page, path, server):
    mark(server, {"1": "keep", "2": "unsure"})
    page.open()
    page.click("#clear-marks")
    page.driver.switch_to.alert.accept()
    page.until(lambda: marks_in(path) == {})


def test_two_windows(page, path, server):
    """A window shows what another one has marked once it is looked at; nothing is lost."""
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    other = ServedPage(page.driver, server.address).open()
    other.focus(1)
    other.press("1")
    other.until(lambda: marks_in(path) == {1: ("keep", "1")})
    page.driver.switch_to.window(first)
    page.focus(2)
    page.press("1")
    page.until(lambda: set(marks_in(path)) == {1, 2})
    page.js("window.dispatchEvent(new Event('focus'))")
    page.until(lambda: page.marked(1) == "keep")
    assert page.marked(2) == "keep"
    mark(server, {"1": None})
    page.js("window.dispatchEvent(new Event('focus'))")
    page.until(lambda: page.marked(1) == "")
    for handle in page.driver.window_handles:
        if handle != first:
            page.driver.switch_to.window(handle)
            page.driver.close()
    page.driver.switch_to.window(first)


def test_marks_that_cannot_be_saved_stay_and_are_sent_again(driver, page, path, monkeypatch):
    def full(target):
        raise UserError(f"{target}: No space left on device; free some space and try again")

    with monkeypatch.context() as patch:
        patch.setattr(marks_file, "replacing", full)
        page.focus(0)
        page.press("1")
        page.until(lambda: not page.is_safe())
        assert page.kept().startswith(f"Not saved: 1 mark. {path}: No space left on device; ")
        assert page.text("#status").startswith("Not saved. ")
        page.focus(1)
        page.press("3")
        page.until(lambda: page.kept().startswith("Not saved: 2 marks."))
        # They survive the page.
        driver.get("about:blank")
        driver.get(page.path)
        page.until(lambda: page.kept().startswith("Not saved: 2 marks."))
        assert page.mark_of(0) == "keep" and page.mark_of(1) == "unsure"
    page.until(lambda: page.kept() == f"Marks are saved in {path}")
    assert marks_in(path) == {0: ("keep", "0"), 1: ("unsure", "")} and page.is_safe()
    assert page.js("localStorage.length") == 0
    assert all("500" in entry["message"] for entry in driver.get_log("browser"))


def test_a_server_that_has_ended(driver, path):
    with serving(path, page_for(path)) as server:
        page = ServedPage(driver, server.address).open()
    page.focus(0)
    page.press("1")
    page.until(lambda: page.kept().startswith("Not saved: 1 mark. alr-fast review does not answer"))
    assert page.mark_of(0) == "keep"  # and can be exported
    assert not page.one("#export-marks").get_attribute("disabled")
    page.js("localStorage.clear()")
    driver.get("about:blank")
    time.sleep(0.1)
    driver.get_log("browser")


def test_the_policy_allows_the_own_server_alone(page):
    page.js("fetch('http://127.0.0.1:9/').catch((error) => { window.refused = String(error); }), 1")
    page.until(lambda: page.js("window.refused"))
    page.js("document.body.append(Object.assign(new Image(), {src: 'image/4', id: 'own'})), 1")
    page.until(lambda: page.js("document.getElementById('own').naturalWidth") == 200)
    assert any("Content Security Policy" in message for message in page.log())
