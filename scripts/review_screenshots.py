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

from browser import DESKTOP, PHONE, browser, show_in
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.wait import WebDriverWait

# Window, colour scheme, element at the top.
WINDOWS = {
    "desktop": (DESKTOP._replace(width=1200, height=900), "light", "#suspects"),
    "phone": (PHONE, "dark", ".marks"),
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
    with browser() as driver:
        for name, (window, scheme, top) in WINDOWS.items():
            show_in(driver, window, scheme)
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


if __name__ == "__main__":
    main(*sys.argv[1:])
