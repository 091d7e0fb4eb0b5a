"""The report page ticks checks off while validation runs, keeps them through a reload, and names the failed one."""

from typing import TYPE_CHECKING

import pytest

from tests.e2e.control import control_of
from tests.inference import toys
from tests.services import Product

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.long, pytest.mark.browser, pytest.mark.timeout(300)]


def test_checks_tick_off_while_validation_runs(page: "Page", product: Product) -> None:
    """The endless loop passes every check up to its first run, which goes on until the clock ends the child."""
    page.goto("/accounts/login/")
    page.get_by_label("Name or e-mail").fill("admin")
    page.get_by_label("Password").fill(product.admin_password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/")
    with control_of(product) as control:
        uploaded = control.upload("endless", toys.endless_loop())
        assert {check["state"] for check in uploaded["checks"]} == {"pending"}
        page.goto("/models/endless/versions/1/")
        for _ in range(2):
            page.locator("[data-check=sample].running").wait_for()
            assert page.locator("[data-check=load].done").is_visible()
            assert page.locator("[data-check=latency].pending").is_visible()
            page.reload()
        states = {check["name"]: check["state"] for check in control.got("/api/models/endless/versions/1/")["checks"]}
        assert (states["load"], states["sample"], states["latency"]) == ("done", "running", "pending")

    # The live region has the page loaded anew when it is over.
    page.locator(".st.bad", has_text="Rejected").wait_for(timeout=120_000)
    assert page.locator("[data-check=load].done").is_visible()
    failed = page.locator("[data-check].failed")
    assert failed.get_attribute("data-check") == "sample"
    assert "timeout" in failed.inner_text()
