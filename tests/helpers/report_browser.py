"""The page of a report in a browser: headless Chromium, driven by selenium."""

import json
import time

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from helpers.patience import PATIENCE
from helpers.report_pages import report

PAIR = '.pair[data-given="{}"][data-refined="{}"]'


class Page:
    """An open page and the actions of a reader."""

    def __init__(self, driver, path):
        self.driver, self.path = driver, path

    def open(self):
        self.driver.get(self.path.as_uri())
        return self

    def js(self, script, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.js("document.querySelector(arguments[0]).textContent.trim()", selector)

    def click(self, selector):
        # The page may still be scrolling smoothly.
        self.js("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        self.one(selector).click()

    def choose(self, name, value):
        Select(self.one(f"#{name}")).select_by_value(str(value))

    def choose_other(self, id, value):
        """Chooses another class in the menu of a card."""
        Select(self.one(f'.card[data-id="{id}"] .other')).select_by_value(value)

    def ids(self):
        """Samples on the current page of the list, in order."""
        ids = "[...document.querySelectorAll('.cards .card')].map((c) => Number(c.dataset.id))"
        return self.js(ids)

    def search(self, text):
        box = self.one("#search-place input")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(Keys.BACKSPACE, text)

    def card(self, id):
        return self.one(f'.card[data-id="{id}"]')

    def focused(self):
        """The sample whose card has the focus, or None."""
        return self.js("Number(document.activeElement.closest('.card')?.dataset.id ?? NaN)")

    def overhang(self):
        """Pixels by which the page is wider than the window."""
        root = "document.documentElement"
        return self.js(f"{root}.scrollWidth - {root}.clientWidth")

    def press(self, *keys):
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def focus(self, id):
        self.js("document.querySelector(`.card[data-id='${arguments[0]}']`).focus()", id)

    def mark_of(self, id):
        """The mark of a card: its pressed button (a list if there are several, wrongly)."""
        pressed = self.card(id).find_elements(By.CSS_SELECTOR, 'button[aria-pressed="true"]')
        return ", ".join(button.text for button in pressed) or None

    def stored(self):
        return json.loads(self.js("localStorage.getItem(arguments[0])", report().key) or "{}")

    def until(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def log(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


def emulate(driver, scheme, motion="reduce"):
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
    features = [{"name": name, "value": value} for name, value in features.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def resize(driver, width, height=800):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def by_score(**wanted):
    """Ids of the usual suspects with these attributes, most suspicious first."""
    return [s.id for s in report().suspects if all(getattr(s, k) == v for k, v in wanted.items())]
