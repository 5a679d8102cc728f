"""Headless Chromium for tests of reports; they skip where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 120
"""Seconds that a condition is waited for: many times what it takes, as others may use the machine too."""
DEAD = ("crashed", "disconnected", "not reachable", "invalid session", "from renderer", "no such window")
"""What WebDriver says where the browser is gone or stuck, for want of memory or time: that tells nothing of a page."""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A driver of a browser with a new profile.

    Args:
        profile: An empty folder.
    """
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    errors = pytest.importorskip("selenium.common.exceptions")
    http = pytest.importorskip("urllib3.exceptions")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})

    class Chrome(selenium.Chrome):
        def execute(self, *args: Any, **more: Any) -> Any:
            try:
                return super().execute(*args, **more)
            except errors.WebDriverException as err:
                if any(word in str(err.msg) for word in DEAD):
                    pytest.skip(f"Chromium does not keep running here: {err.msg}")
                raise
            except http.HTTPError as err:  # the driver does not answer
                pytest.skip(f"Chromium does not keep up here: {err}")

    try:
        page = Chrome(options=options, service=service.Service(driver, log_output=os.devnull))
    except errors.WebDriverException as err:
        pytest.skip(f"Chromium does not start here: {err.msg}")
    try:
        page.set_page_load_timeout(PATIENCE)
        page.set_script_timeout(PATIENCE)
        yield page
    finally:
        page.quit()


class Shown:
    """A report in the browser.

    Args:
        driver: What `chromium` gives.
        file: The report.
        width: Width of the window in pixels.
        dark: Whether the system is set to dark.
    """

    def __init__(self, driver: Any, file: Path, width: int = 1400, *, dark: bool = False) -> None:
        self.driver = driver
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.get_log("browser")  # what earlier pages said
        driver.get(file.as_uri())
        self.until("return document.documentElement.dataset.ready === 'yes'")

    def js(self, script: str, *arguments: object) -> Any:
        """What a script gives."""
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, *arguments: object) -> Any:
        """Wait until a script gives something that is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda d: d.execute_script(script, *arguments), script)

    def find(self, selector: str, within: Any = None) -> Any:
        """The first element that a selector matches, in sight."""
        found = (within or self.driver).find_element("css selector", selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", found)
        return found

    def all(self, selector: str, within: Any = None) -> list[Any]:
        """The elements that a selector matches."""
        return (within or self.driver).find_elements("css selector", selector)

    def block(self, title: str) -> Any:
        """The plot of this title, or the table with this label."""
        script = """
            const title = arguments[0];
            return [...document.querySelectorAll('[data-block]')].find((b) =>
                b.querySelector('figcaption')?.textContent === title ||
                b.querySelector('[role=region]')?.getAttribute('aria-label') === title)"""
        found = self.js(script, title)
        assert found is not None, title
        self.js("arguments[0].scrollIntoView({block: 'center'})", found)
        return found

    def column(self, block: Any, number: int) -> list[str]:
        """The texts of a column of a table, of the rows that are drawn."""
        script = "return [...arguments[0].querySelectorAll('tbody tr')].map((r) => r.cells[arguments[1]].textContent)"
        return self.js(script, block, number)

    def errors(self) -> list[str]:
        """What the console has to complain about."""
        return [entry["message"] for entry in self.driver.get_log("browser")]
