"""The admin's day in a real browser: sign in, upload, deploy, move the split, watch, roll back; desktop and phone."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.inference import toys
from tests.services import Product

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SIZES = {"desktop": {"width": 1360, "height": 900}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(params=list(SIZES))
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def admin(product: Product, browser: "Browser", contexts: "dict[str, BrowserContext]", size: str) -> Iterator["Page"]:
    """A page of that size with the site admin signed in; a script error on it fails the test."""
    if size not in contexts:
        contexts[size] = browser.new_context(base_url=product.base_url, viewport=SIZES[size], has_touch=size == "phone")
        entrance = contexts[size].new_page()
        entrance.goto("/accounts/login/")
        entrance.get_by_label("Name or e-mail").fill("admin")
        entrance.get_by_label("Password").fill(product.admin_password)
        entrance.get_by_role("button", name="Sign in").click()
        entrance.wait_for_url("**/")
        entrance.close()
    page = contexts[size].new_page()
    page.set_default_timeout(20_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto("/models/")
    yield page
    page.close()
    assert errors == []


def no_serious_violation(page: "Page") -> None:
    """axe-core finds nothing serious or critical, and nothing is wider than the screen."""
    found = Axe().run(page).response["violations"]
    serious = [
        (violation["id"], [node["html"][:160] for node in violation["nodes"][:3]])
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious == [], page.url
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0, f"{page.url} is {overflow} px too wide"


def upload(page: "Page", model: str, file: Path) -> None:
    page.goto(f"/models/{model}/upload/")
    page.locator("input[name=file]").set_input_files(str(file))
    page.get_by_text(f"{file.name} ·").wait_for()
    page.get_by_label("Labels").fill("legitimate, fraud")
    no_serious_violation(page)
    page.get_by_role("button", name="Upload and validate").click()
    page.wait_for_url(f"**/models/{model}/versions/*/")
    page.locator(".st.good", has_text="Ready").wait_for()
    no_serious_violation(page)


def test_the_admins_day(admin: "Page", product: Product, size: str, tmp_path: Path) -> None:
    name = f"day-{size}"
    files = [tmp_path / "first.onnx", tmp_path / "second.onnx"]
    for file, scale in zip(files, (1.0, 2.0), strict=True):
        file.write_bytes(toys.classifier(scale=scale))

    # Upload two versions
    admin.goto("/models/")
    no_serious_violation(admin)
    admin.get_by_label("Name").fill(name)
    admin.get_by_role("button", name="Register").click()
    admin.wait_for_url(f"**/models/{name}/upload/")
    for file in files:
        upload(admin, name, file)

    # Deploy under a name, all traffic to version 1
    admin.goto(f"/models/{name}/")
    no_serious_violation(admin)
    admin.get_by_role("link", name="Deploy it").click()
    admin.get_by_role("button", name="Make it, without traffic").click()
    admin.wait_for_url(f"**/deployments/{name}/")
    admin.get_by_label("Per cent for version 1", exact=True).fill("100")
    admin.get_by_role("button", name="Apply").click()
    admin.get_by_text("version 1 100 % answers now").wait_for()
    no_serious_violation(admin)

    # An app calls it
    with product.http(product.issue_key(f"app-{size}", "--deployment", name)) as app:
        body = {"instances": [[0.1, 0.2, 0.3]]}
        answers = [app.post(f"/v1/models/{name}:predict", json=body) for _ in range(20)]
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.headers["x-model-version"] for answer in answers} == {"1"}

        # Move 10 % to version 2 with the slider; the other follows, and the total stays
        slider = admin.get_by_label("Share of version 2")
        slider.fill("1000")
        assert admin.get_by_label("Per cent for version 1", exact=True).input_value() == "90.00"
        assert "100.00 %" in admin.locator("[data-total]").inner_text()
        admin.get_by_label("Why?").fill("a careful start")
        admin.get_by_role("button", name="Apply: version 2 from 0 % to 10 %").click()
        admin.get_by_text("version 1 90 % and version 2 10 % answers now").wait_for()
        keys = [{"X-Sticky-Key": f"customer-{number}"} for number in range(200)]
        arms = [app.post(f"/v1/models/{name}:predict", json=body, headers=key) for key in keys]
        assert {answer.headers["x-model-version"] for answer in arms} == {"1", "2"}

        # Watch: what was answered is on the page, live
        admin.get_by_text("220 calls", exact=True).wait_for()
        admin.get_by_text("a careful start").first.wait_for()
        admin.locator("#rate-chart .main-svg").first.wait_for()
        no_serious_violation(admin)
        admin.goto(f"/deployments/{name}/predictions/")
        admin.locator("tbody tr").first.wait_for()
        no_serious_violation(admin)
        admin.locator("tbody a").first.click()
        admin.get_by_role("heading", name="Payload").wait_for()
        no_serious_violation(admin)

        # Roll back with one click
        admin.goto(f"/deployments/{name}/")
        admin.get_by_role("button", name="Return to this").first.click()
        admin.get_by_text("version 1 100 % answers now").wait_for()
        again = [app.post(f"/v1/models/{name}:predict", json=body, headers=key) for key in keys[:50]]
        assert {answer.headers["x-model-version"] for answer in again} == {"1"}


def test_try_it_asks_the_front_door(admin: "Page", product: Product, size: str, tmp_path: Path) -> None:
    name = f"try-{size}"
    file = tmp_path / "toy.onnx"
    file.write_bytes(toys.classifier())
    product.manage("register_model", name, str(file), "--labels", "no,yes", "--columns", "a,b,c")
    product.manage("deploy", name, name)
    admin.goto(f"/deployments/{name}/try/")
    admin.get_by_label("a", exact=True).fill("1.5")
    admin.get_by_role("button", name="Ask").click()
    admin.locator("#answer .st.good", has_text="200").wait_for()
    no_serious_violation(admin)
    admin.get_by_label("b", exact=True).fill("much")
    admin.get_by_role("button", name="Ask").click()
    admin.locator("#answer .st.bad", has_text="422").wait_for()


@pytest.mark.parametrize("path", ["/", "/deployments/", "/jobs/", "/keys/", "/audit/", "/system/"])
def test_pages_fit_the_screen_and_have_no_serious_violation(admin: "Page", path: str) -> None:
    admin.goto(path)
    admin.locator("h1").wait_for()
    no_serious_violation(admin)


def test_dark_pages_have_enough_contrast(product: Product, browser: "Browser") -> None:
    context = browser.new_context(base_url=product.base_url, color_scheme="dark")
    page = context.new_page()
    page.goto("/accounts/login/")
    no_serious_violation(page)
    context.close()


def test_linked_sliders_always_total_100(admin: "Page", size: str) -> None:
    totals = admin.evaluate("""async () => {
        const { relink } = await import("/static/js/split.js");
        const found = [];
        let seed = 7;
        const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
        for (let round = 0; round < 2000; round += 1) {
            const size = 1 + Math.floor(random() * 6);
            let shares = Array(size).fill(0);
            shares[0] = 10000;
            for (let move = 0; move < 5; move += 1) {
                shares = relink(shares, Math.floor(random() * size), Math.floor(random() * 12000) - 1000);
                found.push(shares.reduce((a, b) => a + b, 0));
                if (shares.some((share) => share < 0 || !Number.isInteger(share))) found.push(-1);
            }
        }
        return [...new Set(found)];
    }""")
    assert totals == [10000]


def test_keyboard_alone_moves_traffic_within_the_page(admin: "Page") -> None:
    admin.goto("/audit/")
    admin.keyboard.press("/")
    assert admin.evaluate("document.activeElement.id") == "q"
    admin.keyboard.press("Escape")
    admin.evaluate("document.activeElement.blur()")
    admin.keyboard.press("?")
    admin.get_by_role("dialog").get_by_text("overview", exact=True).wait_for()
