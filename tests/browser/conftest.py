"""A real Chromium driven by Playwright, with axe for accessibility checks."""

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.dashboard.served import Served

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Chromium connects only to the dashboard.
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
DESKTOP, PHONE = (1440, 900), (390, 844)
# Milliseconds: a browser just started on a busy machine needs long for its first page.
PATIENCE = 60_000
expect.set_options(timeout=PATIENCE)
LOOKS: tuple[tuple[tuple[int, int], Literal["light", "dark"]], ...] = (
    (DESKTOP, "light"),
    (PHONE, "dark"),
    (DESKTOP, "dark"),
    (PHONE, "light"),
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """This machine's browser, closed after its tests because it keeps an event loop running."""
    if CHROMIUM is None or not AXE.exists():
        missing = (
            "Chromium (Debian's package chromium)" if CHROMIUM is None else "axe-core (make test brings it)"
        )
        if os.environ.get("FINORA_TEST_EVERYTHING"):
            pytest.fail(f"The browser tests need {missing}.")
        pytest.skip(f"The browser tests need {missing}.")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


class PageChecker:
    """Checks pages on desktop and phone, light and dark; saves screenshots."""

    def __init__(self, browser: Browser, served: Served, pictures: Path | None) -> None:
        base_url = served.url
        self.complaints: list[str] = []
        self._looks = 0
        self._base_url = base_url
        self._pictures = pictures
        # The policy forbids inline scripts, so axe is injected from outside.
        self._context = browser.new_context(
            base_url=base_url, viewport={"width": DESKTOP[0], "height": DESKTOP[1]}, bypass_csp=True
        )
        self.page = browser.new_page(base_url=base_url, viewport={"width": DESKTOP[0], "height": DESKTOP[1]})
        self.page.set_default_timeout(PATIENCE)
        for context in (self._context, self.page.context):
            # The browser has opened the start link.
            name, _, value = served.by_link()["Cookie"].partition("=")
            context.add_cookies([{"name": name, "value": value, "url": base_url}])
        # Violations of the policy appear on the console; a 422 is an expected response.
        self.page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text)
                if message.type == "error" and "422" not in message.text
                else None
            ),
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def check(self, name: str, *, thoroughly: bool = False) -> None:
        """Assert that nothing is wider than the screen and axe finds nothing serious.

        Desktop and phone alternate from call to call; `thoroughly` checks both. All colour schemes are
        checked where screenshots are wanted.
        """
        path = self.page.url.removeprefix(self._base_url)
        page = self._context.new_page()
        self._looks += 1
        chosen = LOOKS[:2] if thoroughly else LOOKS[self._looks % 2 :][:1]
        for (width, height), scheme in LOOKS if self._pictures else chosen:
            page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(color_scheme=scheme)
            page.goto(path)
            if self._pictures:
                page.screenshot(path=self._pictures / f"{name}-{width}x{height}-{scheme}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (name, width)
            assert serious(page) == [], (name, width, scheme)
        page.close()

    def forget(self) -> None:
        """Drop the cookies, as in a browser that has not opened the start link."""
        for context in (self._context, self.page.context):
            context.clear_cookies()

    def close(self) -> None:
        self.page.close()
        self._context.close()


def serious(page: Page) -> list[tuple[str, list[Any]]]:
    """Return serious violations that axe finds: the rule and the element."""
    if not AXE.exists():
        warnings.warn("The pages are not checked for accessibility: axe-core is missing.", stacklevel=1)
        return []
    page.add_script_tag(path=AXE)
    results = page.evaluate("axe.run()")
    return [
        (found["id"], [node["target"] for node in found["nodes"]])
        for found in results["violations"]
        if found["impact"] in ("serious", "critical")
    ]


@pytest.fixture
def pictures() -> Path | None:
    """The folder for screenshots named by FINORA_PICTURES, None without it."""
    wanted = os.environ.get("FINORA_PICTURES")
    if not wanted:
        return None
    Path(wanted).mkdir(parents=True, exist_ok=True)
    return Path(wanted)
