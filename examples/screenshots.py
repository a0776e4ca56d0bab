"""Screenshots of a running server's playground for the documentation: light, dark and on a phone.

    python -m examples.screenshots --url http://127.0.0.1:8800 --domain industrial

Needs playwright and Chromium. The images hold few colors, so that the repository stays small.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

DESK, PHONE = ViewportSize(width=1080, height=640), ViewportSize(width=375, height=640)
COLORS = 160


def take(page: Page, url: str, domain: str, example: int) -> bytes:
    """What a visitor sees after choosing one of the drawn examples."""
    page.goto(url)
    page.locator("#examples button").first.wait_for()
    page.locator("#domain").select_option(domain)
    page.locator("#examples button").nth(example).click()
    page.locator(".pane .bars li").first.wait_for()
    page.wait_for_timeout(700)  # bars grow to their length
    return page.screenshot(full_page=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8800")
    parser.add_argument("--domain", default="industrial")
    parser.add_argument("--example", type=int, default=1, help="which of the drawn ones, from 0")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        for name, viewport, scheme in (("", DESK, "light"), ("-dark", DESK, "dark"), ("-phone", PHONE, "light")):
            page = browser.new_page(viewport=viewport, color_scheme="dark" if scheme == "dark" else "light")
            shot = Image.open(io.BytesIO(take(page, options.url, options.domain, options.example))).convert("RGB")
            path = options.out / f"playground{name}.png"
            shot.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
