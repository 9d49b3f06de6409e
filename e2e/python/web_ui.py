"""The real Temporal Web UI, looked at with a real browser: TEMPORAL_UI names its server; Chromium and its driver are on the
path. Tests are skipped where one of them is missing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from server import free_port

READY_SECONDS = 30
PAGE_SECONDS = 20


def screenshots() -> Path:
    given = os.environ.get("PERDURE_SCREENSHOTS")
    return Path(given) if given else Path(__file__).parents[2] / "target/e2e/screenshots"


def _programs() -> tuple[str, str, str]:
    ui = os.environ.get("TEMPORAL_UI")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not ui:
        pytest.skip("there is no Temporal Web UI")
    if not chromium or not driver:
        pytest.skip("there is no Chromium with its driver")
    return ui, chromium, driver


@contextmanager
def _serve(program: str, address: str, directory: Path) -> Iterator[str]:
    """The UI's own server, in front of the server under test; gives the address of its pages."""
    port = free_port()
    config = {
        "temporalGrpcAddress": address,
        "host": "127.0.0.1",
        "port": port,
        "enableUi": True,
        "defaultNamespace": "default",
        "notifyOnNewVersion": False,
        "cors": {"allowOrigins": [f"http://127.0.0.1:{port}"]},
    }
    # JSON is YAML.
    (directory / "test.yaml").write_text(json.dumps(config))
    with (directory / "ui.log").open("wb") as log:
        command = [program, "--root", "/", "--config", str(directory), "--env", "test", "start"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            assert process.poll() is None, (directory / "ui.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the Web UI was not ready in time"
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def open_browser(chromium: str, driver: str) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    # No sandbox: in containers there is none to be had, and it shows our own pages only.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.add_argument("--window-size=1600,1200")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


class WebUi:
    """A browser in front of the UI. All waits are for what a page is to show."""

    def __init__(self, browser: webdriver.Chrome, root: str) -> None:
        self._browser = browser
        self._root = root
        self._failed: list[str] = []
        self._is_loaded = False

    @classmethod
    @contextmanager
    def run(cls, address: str, directory: Path) -> Iterator[WebUi]:
        ui, chromium, driver = _programs()
        with ExitStack() as stack:
            root = stack.enter_context(_serve(ui, address, directory))
            browser = open_browser(chromium, driver)
            stack.callback(browser.quit)
            yield cls(browser, root)

    async def shows(self, name: str, path: str, *texts: str, without: str | None = None) -> None:
        """Opens a page, and waits until it shows all of these, in any case and spacing; keeps a picture. No request of the
        page may fail."""
        await asyncio.to_thread(self._shows, name, path, texts, without)

    def _shows(self, name: str, path: str, texts: tuple[str, ...], without: str | None) -> None:
        self._open(path)
        wanted = [_plain(text) for text in texts]

        def is_shown(_: webdriver.Chrome) -> bool:
            text = _plain(self._text())
            return all(part in text for part in wanted) and (without is None or _plain(without) not in text)

        ignored = [NoSuchElementException, StaleElementReferenceException]
        try:
            WebDriverWait(self._browser, PAGE_SECONDS, 0.05, ignored).until(is_shown)
        except TimeoutException:
            self._picture(f"{name}-failed")
            raise AssertionError(
                f"{path} is to show {texts}, and not {without}; it shows:\n{self._text()}\n{self._failures()}"
            ) from None
        self._picture(name)
        assert self._failures() == []

    def _open(self, path: str) -> None:
        """As a link of the UI does: the program is not loaded again."""
        if not self._is_loaded:
            self._browser.get(self._root + path)
            self._is_loaded = True
            return
        before = self._browser.current_url
        self._browser.execute_script(
            """
            const link = document.createElement("a");
            link.href = arguments[0];
            document.querySelector("main").append(link);
            link.click();
            link.remove();
            """,
            path,
        )
        WebDriverWait(self._browser, PAGE_SECONDS, 0.02).until(lambda browser: browser.current_url != before)

    def _text(self) -> str:
        return self._browser.find_element(By.TAG_NAME, "main").text

    def _picture(self, name: str) -> None:
        directory = screenshots()
        directory.mkdir(parents=True, exist_ok=True)
        self._browser.save_screenshot(str(directory / f"{name}.png"))

    def _failures(self) -> list[str]:
        """Requests that were refused, so far."""
        for entry in self._browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.responseReceived":
                response = message["params"]["response"]
                if response["status"] >= 400:
                    self._failed.append(f"{response['status']} {response['url']}")
        return self._failed


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).lower()
