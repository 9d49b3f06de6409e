"""The console, looked at with a real browser: light and dark, wide and as narrow as a phone. Chromium and its driver are on
the path; tests are skipped where one of them is missing."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from web_ui import open_browser, screenshots

PAGE_SECONDS = 20
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
DESK = {"width": 1400, "height": 1000, "deviceScaleFactor": 1, "mobile": False}


class Console:
    """A browser in front of a server's console."""

    def __init__(self, browser: webdriver.Chrome, root: str) -> None:
        self._browser = browser
        self._root = root

    @classmethod
    @contextmanager
    def run(cls, root: str) -> Iterator[Console]:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        driver = shutil.which("chromedriver")
        if not chromium or not driver:
            pytest.skip("there is no Chromium with its driver")
        browser = open_browser(chromium, driver)
        try:
            yield cls(browser, root)
        finally:
            browser.quit()

    async def shows(self, name: str, path: str, *texts: str, without: str | None = None) -> None:
        """Opens a page in all its forms, and waits until it shows all of these; keeps pictures. Nothing may stick out, and
        the browser may complain of nothing, which includes what the page's policy forbids."""
        await asyncio.to_thread(self._shows, name, path, texts, without)

    async def open(self, path: str, *texts: str) -> None:
        await asyncio.to_thread(self._open, path)
        await self.comes(*texts)

    async def comes(self, *texts: str, without: str | None = None) -> None:
        """The page that is open comes to show these by itself."""
        await asyncio.to_thread(self._wait, texts, without)

    async def script(self, script: str, *arguments: object) -> object:
        return await asyncio.to_thread(self._browser.execute_script, script, *arguments)

    async def without_scripts(self, is_off: bool) -> None:
        await asyncio.to_thread(
            self._browser.execute_cdp_cmd, "Emulation.setScriptExecutionDisabled", {"value": is_off}
        )

    def _shows(self, name: str, path: str, texts: tuple[str, ...], without: str | None) -> None:
        self._open(path)
        for size, metrics in (("desk", DESK), ("phone", PHONE)):
            self._browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            for scheme in ("light", "dark"):
                feature = {"name": "prefers-color-scheme", "value": scheme}
                self._browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
                try:
                    self._wait(texts, without)
                finally:
                    self._picture(f"console-{name}-{size}-{scheme}")
            page, window = self._browser.execute_script(
                "return [document.documentElement.scrollWidth, window.innerWidth]"
            )
            assert page <= window, f"{path} is {page} wide on a {size} of {window}"
        self._browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", DESK)

    def complaints(self) -> list[str]:
        """Of the browser, since the last time."""
        return [entry["message"] for entry in self._browser.get_log("browser") if entry["level"] == "SEVERE"]

    def _open(self, path: str) -> None:
        self._browser.get(self._root + path)

    def _wait(self, texts: tuple[str, ...], without: str | None) -> None:
        wanted = [_plain(text) for text in texts]

        def is_shown(_: webdriver.Chrome) -> bool:
            text = _plain(self._text())
            return all(part in text for part in wanted) and (without is None or _plain(without) not in text)

        ignored = [NoSuchElementException, StaleElementReferenceException]
        try:
            WebDriverWait(self._browser, PAGE_SECONDS, 0.05, ignored).until(is_shown)
        except TimeoutException:
            raise AssertionError(f"the page is to show {texts}, not {without}; it shows:\n{self._text()}") from None

    def _text(self) -> str:
        return self._browser.find_element(By.TAG_NAME, "main").get_attribute("textContent") or ""

    def _picture(self, name: str) -> None:
        directory = screenshots()
        directory.mkdir(parents=True, exist_ok=True)
        self._browser.save_screenshot(str(directory / f"{name}.png"))


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).lower()
