"""Takes screenshots of a report, those in docs/ among them.

    python scripts/report_screenshot.py runs/latest/report.html docs/report.png --height 900
    python scripts/report_screenshot.py runs/latest/report.html docs/figures/report-phone.png \\
        --phone --dark --enlarge
    python scripts/report_screenshot.py REPORT FILE --at curves

Needs Debian's chromium and chromium-driver, and pillow.
"""

import argparse
import time
from pathlib import Path

from browser import DESKTOP, PHONE, browser, show_in
from PIL import Image
from selenium.webdriver.support.wait import WebDriverWait

from alr_fast.data.images.decode import open_image

COLOURS = 256  # of the picture, which is that much smaller


def main() -> None:
    """Opens the page and saves the visible window."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--phone", action="store_true", help="the size of a phone")
    parser.add_argument("--dark", action="store_true", help="the dark scheme")
    parser.add_argument("--at", metavar="SECTION", help="scroll to summary, curves, confusion, ...")
    parser.add_argument("--enlarge", action="store_true", help="enlarge the first image")
    parser.add_argument("--height", type=int, help="of the window")
    options = parser.parse_args()
    window = PHONE if options.phone else DESKTOP
    with browser() as driver:
        height = options.height or window.height
        show_in(driver, window._replace(height=height), "dark" if options.dark else "light")
        driver.get(options.page.resolve().as_uri())
        WebDriverWait(driver, 30).until(lambda d: d.find_elements("css selector", ".card"))
        if options.at:
            script = "document.getElementById(arguments[0]).scrollIntoView()"
            driver.execute_script(script, options.at)
        if options.enlarge:
            driver.execute_script("document.querySelector('.card button.picture').click()")
        time.sleep(1)  # images are decoded, shadows fade in
        shot = open_image(driver.get_screenshot_as_png()).convert("RGB")
        shot.quantize(COLOURS, dither=Image.Dither.NONE).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
