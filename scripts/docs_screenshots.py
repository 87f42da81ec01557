"""Takes pictures of the site, to be looked at: desktop and phone, light and dark.

    make docs
    python scripts/docs_screenshots.py                     # into build/screenshots
    python scripts/docs_screenshots.py --pages faq.html --whole

Needs Debian's chromium and chromium-driver.
"""

import argparse
import base64
import time
from pathlib import Path

from browser import DESKTOP, PHONE, browser, show_in

BUILD = Path(__file__).resolve().parents[1] / "build"
PAGES = ["index.html", "images.html", "method.html", "api/losses.html", "performance.html"]
WINDOWS = {"desktop": DESKTOP, "phone": PHONE}
TALLEST = 16_000  # pixels that Chromium draws


def main() -> None:
    """Opens each page in each window and scheme, and saves what is seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--pages", nargs="+", default=PAGES, help="files of the site")
    parser.add_argument("--whole", action="store_true", help="the whole page, not its begin")
    parser.add_argument("--site", type=Path, default=BUILD / "site")
    parser.add_argument("--out", type=Path, default=BUILD / "screenshots")
    options = parser.parse_args()
    if missing := [page for page in options.pages if not (options.site / page).is_file()]:
        parser.error(f"{options.site} has no {missing[0]}: run make docs first")
    options.out.mkdir(parents=True, exist_ok=True)
    with browser() as driver:
        for name, window in WINDOWS.items():
            for scheme in ("light", "dark"):
                show_in(driver, window, scheme)
                for page in options.pages:
                    driver.get((options.site / page).resolve().as_uri())
                    time.sleep(0.5)  # the theme moves its header
                    stem = page.removesuffix(".html").replace("/", "-")
                    picture = options.out / f"{stem}-{name}-{scheme}.png"
                    picture.write_bytes(shot(driver, window.width, whole=options.whole))
    print(f"wrote {options.out}")


def shot(driver, width: int, *, whole: bool) -> bytes:
    """The picture of the window, or of the whole page."""
    if not whole:
        return driver.get_screenshot_as_png()
    height = driver.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, TALLEST), "scale": 1}
    options = {"captureBeyondViewport": True, "clip": clip}
    return base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"])


if __name__ == "__main__":
    main()
