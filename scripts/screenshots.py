"""Draws the pictures of the documentation from a running product with its demo: `make screenshots`.

Reads SIGNALBOX_HOME, SIGNALBOX_HOST and SIGNALBOX_PORT as the product does; needs Debian's chromium.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
DESKTOP, PHONE = ViewportSize(width=1360, height=860), ViewportSize(width=390, height=844)


@dataclass(frozen=True, slots=True)
class Shot:
    """`wanted` must be there; `follow` is clicked first, on the page of `path`."""

    name: str
    path: str
    wanted: str
    follow: str = ""
    who: str = "admin"
    phone: bool = False
    dark: bool = False


TRAFFIC, CHART = "/deployments/card-fraud/?range=24h", "#rate-chart .main-svg"
# Unread and within what the model is for: the demo sends it as its doctor.
UNREAD, OPEN = "/studies/?reference=SYNTHETIC-04", "[data-row] a"
SHOTS = (
    Shot("overview", "/", "tbody tr"),
    Shot("traffic", TRAFFIC, CHART),
    Shot("traffic-dark", TRAFFIC, CHART, dark=True),
    Shot("traffic-phone", TRAFFIC, CHART, phone=True),
    Shot("accuracy", "/deployments/card-fraud/accuracy/?range=24h", "[data-chart=accuracy-data] .main-svg"),
    Shot("drift", "/deployments/card-fraud/drift/?range=24h", "table tbody tr"),
    Shot("report", "/models/card-fraud/versions/1/", ".checks li"),
    Shot("worklist", "/studies/", "[data-row]", who="doctor"),
    Shot("study", UNREAD, "canvas[data-ready='1']", follow=OPEN, who="doctor"),
    Shot("study-phone", UNREAD, "canvas[data-ready='1']", follow=OPEN, who="doctor", phone=True),
)


def password(home: Path, who: str) -> str:
    """Of the site admin, or of the demo's doctor."""
    given = os.environ.get("SIGNALBOX_ADMIN_PASSWORD", "") if who == "admin" else ""
    return given or (home / f"{who}-password").read_text().strip()


def shoot(browser: Browser, base_url: str, home: Path) -> None:
    """Signs in once per look and writes one PNG per shot."""
    for shot in SHOTS:
        context = browser.new_context(
            base_url=base_url, viewport=PHONE if shot.phone else DESKTOP, color_scheme="dark" if shot.dark else "light"
        )
        page = context.new_page()
        page.goto("/accounts/login/")
        page.get_by_label("Name or e-mail").fill(shot.who)
        page.get_by_label("Password").fill(password(home, shot.who))
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(lambda url: "/login/" not in url)
        page.goto(shot.path)
        if shot.follow:
            page.locator(shot.follow).first.click()
        page.locator(shot.wanted).first.wait_for()
        page.wait_for_timeout(600)  # for the last frame of a chart or picture
        page.screenshot(path=IMAGES / f"{shot.name}.png")
        context.close()
        print(IMAGES / f"{shot.name}.png")


def main() -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("No chromium was found: type apt-get install chromium.")
    home = Path(os.environ.get("SIGNALBOX_HOME") or ROOT / "var")
    host, port = os.environ.get("SIGNALBOX_HOST", "127.0.0.1"), os.environ.get("SIGNALBOX_PORT", "8000")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        shoot(browser, f"http://{host}:{port}", home)
        browser.close()


if __name__ == "__main__":
    main()
