"""Pages of reports in a browser."""

import functools

import pytest


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Returns the file of a report; the usual ones, with and without curves, are written once."""
    from alr_fast.labels.report.page import render
    from helpers.report_pages import report

    folder = tmp_path_factory.mktemp("pages")

    def write(content):
        path = folder / f"{len(list(folder.iterdir()))} #ä.html"
        path.write_text(render(content), encoding="utf-8")
        return path

    usual = functools.cache(lambda curves: write(report() if curves else report(panels=[])))
    return lambda content, curves: usual(curves) if content is None else write(content)


@pytest.fixture
def open_page(driver, files, tmp_path):
    """Opens a report at desktop size, with no marks or ``stored`` ones.

    After the test, the log of the browser must be empty.
    """
    from helpers.report_browser import Page, emulate
    from helpers.report_pages import report

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
    """The usual page, without curves: it opens several times as fast."""
    return open_page()


@pytest.fixture
def page_with_curves(open_page):
    return open_page(curves=True)
