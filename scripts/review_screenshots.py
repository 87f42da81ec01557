"""Takes the screenshots of docs/review.md: a review on a desktop and on a phone.

    python scripts/review_screenshots.py runs/latest docs/figures

writes review-desktop.png and review-phone.png into the folder. It starts `python -m
alr_fast.review` on a copy of the run and marks some samples. Needs Debian's chromium and
chromium-driver.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.wait import WebDriverWait

# Without these flags Chromium does not start in a container, or accesses the network.
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
)
# Width and height in pixels, colour scheme, element at the top.
WINDOWS = {
    "desktop": (1200, 900, "light", "#suspects"),
    "phone": (390, 844, "dark", ".marks"),
}
KEYS = "2213"  # of the first samples: fix, fix, keep, unsure
SAVED = "return document.getElementById('marks-kept').textContent.startsWith('Marks are saved')"


def main(run: str, folder: str) -> None:
    """Starts the review and saves both pictures."""
    with tempfile.TemporaryDirectory() as place:
        original = Path(run).resolve()
        copy = Path(place) / original.name
        shutil.copytree(original, copy)
        (copy / "marks.csv").unlink(missing_ok=True)
        words = [sys.executable, "-m", "alr_fast.review", str(copy), "--most", "1000"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as review:
            assert review.stdout is not None
            address = next(line.strip() for line in review.stdout if line.startswith("http"))
            try:
                take(address, Path(folder))
            finally:
                review.terminate()
                review.communicate()


def take(address: str, folder: Path) -> None:
    """Marks samples, then takes a picture in each window."""
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        for name, (width, height, scheme, top) in WINDOWS.items():
            size = {"width": width, "height": height, "deviceScaleFactor": 1}
            size["mobile"] = name == "phone"
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            driver.get(address)
            WebDriverWait(driver, 30).until(lambda d: d.execute_script(SAVED))
            for number, key in enumerate(KEYS if name == "desktop" else ""):
                card = f"document.querySelectorAll('.card')[{number}]"
                driver.execute_script(f"{card}.focus()")
                ActionChains(driver).send_keys(key).perform()
            WebDriverWait(driver, 30).until(lambda d: d.execute_script(SAVED))
            driver.execute_script(f"document.querySelector('{top}').scrollIntoView()")
            time.sleep(0.5)
            driver.save_screenshot(str(folder / f"review-{name}.png"))
    finally:
        driver.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
