"""Take the pictures of docs/ui.md: start `diffscale ui runs` in an empty folder, and `python take_screenshots.py`.

It needs what the tests of the page need, see constraints-ui.txt, and Debian's chromium.
"""

import re
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import expect, sync_playwright

HERE = Path(__file__).parent


def shoot(page: Any, name: str) -> None:
    """The whole page at two widths; of few colours, so that the files are small."""
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(700)
        path = HERE / f"{name}-{width}.png"
        page.screenshot(path=path, full_page=True)
        Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    page.set_viewport_size({"width": 1280, "height": 900})


def start(page: Any, search: str, budget: int) -> None:
    """Fill in the form and start."""
    page.fill("#prompt textarea", "two red stars above a blue square")
    page.fill("#search input", search)
    page.press("#search input", "Enter")
    page.fill("#budget input", str(budget))
    page.click("#start")


def main() -> None:
    """A search on its way, one that is done, and two beside each other."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto("http://127.0.0.1:7860/")
        expect(page.locator("#prompt textarea")).not_to_have_value("")
        start(page, "random", 5120)
        expect(page.locator("#pictures .candidates figure").nth(15)).to_be_visible(timeout=120_000)
        shoot(page, "searching")
        page.click("#stop")
        expect(page.locator("#status")).to_have_text(re.compile("Stopped"), timeout=60_000)
        for search in ("random", "zero_order n=4"):
            start(page, search, 640)
            expect(page.locator("#status")).to_have_text(re.compile(f"Done.*{search}"), timeout=240_000)
        shoot(page, "done")
        page.get_by_role("tab", name="Compare").click()
        for mark, search in (("A", "random · done"), ("B", "zero_order")):
            page.click(f"#run-{mark} input")
            page.locator(f"#run-{mark}").get_by_role("option").filter(has_text=search).click()
        expect(page.locator("#comparison table")).to_be_visible(timeout=20_000)
        page.wait_for_timeout(1000)
        shoot(page, "compare")
        browser.close()


if __name__ == "__main__":
    main()
