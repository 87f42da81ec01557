"""Headless Chromium for the scripts that take screenshots.

Needs Debian's chromium and chromium-driver.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

# Without these flags Chromium does not start in a container, or accesses the network.
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
)


class Window(NamedTuple):
    """The window of a reader, in pixels, and whether it is that of a phone."""

    width: int
    height: int
    phone: bool = False


DESKTOP, PHONE = Window(1280, 800), Window(390, 844, phone=True)


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A browser, closed in the end."""
    options = webdriver.ChromeOptions()
    for flag in _FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def show_in(driver: webdriver.Chrome, window: Window, scheme: str) -> None:
    """Sets the window and the colour scheme, "light" or "dark", of the pages that follow."""
    size = {"width": window.width, "height": window.height, "deviceScaleFactor": 1}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"mobile": window.phone})
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
