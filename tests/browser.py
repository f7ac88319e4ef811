"""Pages in a real browser: headless Chromium, by Selenium."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
REQUIRED = "GUIDESTACK_BROWSER"
"""Set where a browser must be there, as in CI: without it the tests fail instead of being skipped."""


def installed() -> tuple[str, str]:
    """The browser and its driver."""
    found = [
        next((path for name in names if (path := shutil.which(name))), None)
        for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
    ]
    if None in found:
        missing = "needs Chromium and its driver: apt-get install chromium chromium-driver"
        pytest.fail(missing) if os.environ.get(REQUIRED) else pytest.skip(missing)
    return found[0], found[1]  # type: ignore[return-value]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser, driver = installed()
    selenium = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = selenium.Chrome(options=options, service=Service(driver))
    yield chromium
    chromium.quit()


class Page:
    """A page in the browser, at the address that a subclass has."""

    @property
    def address(self) -> str:
        raise NotImplementedError

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def open(self, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}  # or a click hits what is scrolling by
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})
        self.browser.get_log("browser")
        self.browser.get(self.address)
        self.js("localStorage.clear()")
        self.browser.get(self.address)
        return self

    def js(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script if "return" in script else f"return {script}", *arguments)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def choose(self, selector: str, value: str) -> None:
        """As a user does: through the keyboard's and mouse's own events."""
        from selenium.webdriver.support.ui import Select

        Select(self.one(selector)).select_by_value(value)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for what takes the browser a moment; fails after ten seconds."""
        for _ in range(200):
            if found := condition():
                return found
            time.sleep(0.05)
        return pytest.fail("it did not happen in ten seconds")

    def press(self, key: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(key).perform()
