"""Takes the screenshot of a report for README.md: docs/report.png.

    python scripts/report_screenshot.py runs/latest/report.html docs/report.png

Needs Debian's chromium and chromium-driver.
"""

import shutil
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

WIDTH, HEIGHT = 1200, 1950
# Without these flags Chromium does not start in a container, or accesses the network.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    f"--window-size={WIDTH},{HEIGHT}",
)


def main(page: str, picture: str) -> None:
    """Opens the page and saves the visible window."""
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.get(Path(page).resolve().as_uri())
        WebDriverWait(driver, 30).until(
            lambda d: d.find_elements("css selector", ".js-plotly-plot .main-svg")
        )
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_script("document.querySelector('#confusion').scrollIntoView()")
        driver.save_screenshot(picture)
    finally:
        driver.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
