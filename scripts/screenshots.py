"""Draws the pictures of the documentation from a running product with its demo: `make screenshots`.

Reads SIGNALBOX_HOME, SIGNALBOX_HOST and SIGNALBOX_PORT as the product does; needs Debian's chromium.
"""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
DESKTOP, PHONE = {"width": 1360, "height": 860}, {"width": 390, "height": 844}
# (file, path, what must be there, viewport, colours)
SHOTS = (
    ("overview", "/", "tbody tr", DESKTOP, "light"),
    ("traffic", "/deployments/card-fraud/?range=24h", "#rate-chart .main-svg", DESKTOP, "light"),
    ("traffic-dark", "/deployments/card-fraud/?range=24h", "#rate-chart .main-svg", DESKTOP, "dark"),
    ("traffic-phone", "/deployments/card-fraud/?range=24h", "#rate-chart .main-svg", PHONE, "light"),
    ("report", "/models/card-fraud/versions/1/", ".checks li", DESKTOP, "light"),
)


def password(home: Path) -> str:
    given = os.environ.get("SIGNALBOX_ADMIN_PASSWORD", "")
    return given or (home / "admin-password").read_text().strip()


def shoot(browser: Browser, base_url: str, secret: str) -> None:
    """Signs in once per look and writes one PNG per shot."""
    for name, path, wanted, size, colours in SHOTS:
        context = browser.new_context(base_url=base_url, viewport=size, color_scheme=colours)
        page = context.new_page()
        page.goto("/accounts/login/")
        page.get_by_label("Name or e-mail").fill("admin")
        page.get_by_label("Password").fill(secret)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/")
        page.goto(path)
        page.locator(wanted).first.wait_for()
        page.wait_for_timeout(600)  # for the chart's last frame
        page.screenshot(path=IMAGES / f"{name}.png")
        context.close()
        print(IMAGES / f"{name}.png")


def main() -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("No chromium was found: type apt-get install chromium.")
    home = Path(os.environ.get("SIGNALBOX_HOME") or ROOT / "var")
    host, port = os.environ.get("SIGNALBOX_HOST", "127.0.0.1"), os.environ.get("SIGNALBOX_PORT", "8000")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        shoot(browser, f"http://{host}:{port}", password(home))
        browser.close()


if __name__ == "__main__":
    main()
