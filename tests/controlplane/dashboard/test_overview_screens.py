"""The overview of forty deployments in a browser, on a desk and on a phone: nothing scrolls sideways, `/` searches."""

import os
import random
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.conf import settings
from django.utils import timezone

from controlplane.accounts.models import Role, Team, User
from controlplane.deployments.models import SplitRevision
from controlplane.monitoring.models import DriftVerdict
from controlplane.predictions.ingest import record_predictions
from inference.contracts import Outcome
from tests.controlplane.cast import signed_in
from tests.controlplane.dashboard.test_overview import TEAMS, deploy, label
from tests.controlplane.deployments.rows import make_version
from tests.controlplane.predictions.records import refused, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize
    from pytest_django.live_server_helper import LiveServer

pytestmark = [pytest.mark.long, pytest.mark.browser, pytest.mark.timeout(300)]

SIZES: "dict[str, ViewportSize]" = {"desktop": {"width": 1360, "height": 900}, "phone": {"width": 390, "height": 844}}


@pytest.fixture
def forty(transactional_db: None, team: Team, owner: User) -> None:
    """Forty deployments in three teams, some of them in trouble, an hour of calls each."""
    teams = [team, *(Team.objects.create(name=name) for name in TEAMS[1:])]
    for other in teams[1:]:
        other.memberships.create(user=owner, role=Role.ADMIN)
    draw = random.Random(3)
    records = []
    for index in range(40):
        deployment, version = deploy(teams[index % 3], f"recommender-of-products-{index:02d}")
        now = time.time()
        for minute in range(3 * 60):
            if not 60 < minute < 80 or index % 4:
                at = now - 60 * minute
                records += [served(deployment, version, at=at, total_ms=draw.gammavariate(3, 2)) for _ in range(2)]
        if index == 12:
            records += [refused(deployment, at=now - 600 * n, loc=f"instances.{n}.amount") for n in range(18)]
            records += [
                refused(deployment, at=now - 300 * n, code="overloaded", outcome=Outcome.SHED, status=503, loc="")
                for n in range(30)
            ]
        if index == 20:
            label(deployment, version, [{"label": "ok" if n % 2 else "fraud"} for n in range(40)])
        if index == 21:
            label(deployment, version, [{"label": "ok"}] * 38 + [{"label": "fraud"}] * 2)
        if index == 22:
            make_version(version.model)
            SplitRevision.objects.filter(deployment=deployment).update(shares={"1": 9000, "2": 1000}, shadow={"1": 100})
        if index % 5 == 0:
            moved = {"moved": 3, "most": "amount", "since": timezone.now() - timedelta(hours=2)} if index == 5 else {}
            DriftVerdict.objects.create(
                deployment=deployment,
                checked_at=timezone.now(),
                **{"compared": 12, "moved": 0, "baseline": "reference", **moved},
            )
    deploy(team, "a-deployment-without-a-split", serves=False)
    record_predictions(records)


@pytest.fixture
def cookie(forty: None, owner: User) -> str:
    """The owner's session; made before a browser runs, as there is no asking the database beside one."""
    return signed_in(owner).cookies[settings.SESSION_COOKIE_NAME].value


@pytest.fixture(params=list(SIZES))
def page(
    request: pytest.FixtureRequest, cookie: str, live_server: "LiveServer", browser: "Browser"
) -> Iterator["Page"]:
    """A page of that size with the owner signed in; a script error on it fails the test."""
    context = browser.new_context(
        base_url=live_server.url, viewport=SIZES[request.param], has_touch=request.param == "phone"
    )
    context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": cookie, "url": live_server.url}])
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert errors == []


def looks_right(page: "Page", name: str) -> None:
    """Nothing is wider than the screen, and axe-core finds nothing serious; kept as pictures if a folder is named."""
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0, f"{page.url} is {overflow} px too wide"
    found = Axe().run(page).response["violations"]
    serious = [(one["id"], one["nodes"][0]["html"][:160]) for one in found if one["impact"] in ("serious", "critical")]
    assert serious == [], page.url
    if folder := os.environ.get("SCREENSHOTS"):
        assert page.viewport_size is not None
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=Path(folder) / f"{name}-{page.viewport_size['width']}-{scheme}.png")


def test_forty_deployments_fit_a_desk_and_a_phone(page: "Page") -> None:
    page.goto("/")
    page.get_by_role("heading", name="Overview").wait_for()
    assert page.locator("tbody tr").count() == 41
    assert "recommender-of-products-12" in page.locator("tbody tr").first.inner_text()
    looks_right(page, "overview")

    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("products-21")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=products-21**")
    assert page.locator("tbody tr").count() == 1
    page.goto("/?team=radiology")
    assert page.locator("tbody tr").count() == 13
    page.goto("/?q=nothing+of+the+kind")
    page.get_by_text("No deployment matches").wait_for()
    looks_right(page, "overview-none")

    page.goto("/deployments/recommender-of-products-12/")
    page.locator("#errors .js-plotly-plot").wait_for()
    page.locator("#errors").scroll_into_view_if_needed()
    looks_right(page, "failed-calls")
