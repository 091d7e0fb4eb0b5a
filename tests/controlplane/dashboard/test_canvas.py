"""The viewer in a real browser: what stands on its canvas is the grey that the file asks for."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from django.utils import timezone
from PIL import Image

from controlplane.accounts.models import Role, Team, User
from controlplane.celery import app
from controlplane.deployments.models import Deployment
from controlplane.jobs.models import Job
from controlplane.jobs.running import run_batch
from controlplane.studies import mapping
from controlplane.studies.models import Study
from controlplane.studies.services.drafts import add_picture, open_draft
from controlplane.studies.services.sending import send_study
from examples.golden_dicom.make import Golden, cases
from tests.controlplane.cast import ACTOR, new_user, signed_in
from tests.controlplane.deployments.rows import make_deployment, make_model
from tests.controlplane.jobs.conftest import GREY_8, brightness, children, home, serve, store_version
from tests.inference.runtime.picture_files import encoded

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["children", "home"]
pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

GOLDEN = cases()
PER_STUDY = 10
# Two frames later the canvas has been drawn; then the grey in the middle of each of the picture's pixels is read.
READ = """async ([rows, columns]) => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  await frame();
  await frame();
  const canvas = document.querySelector("[data-stage] canvas");
  const scale = Math.min(canvas.width / columns, canvas.height / rows);
  const [left, top] = [(canvas.width - columns * scale) / 2, (canvas.height - rows * scale) / 2];
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const found = [];
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const x = Math.floor(left + (column + 0.5) * scale), y = Math.floor(top + (row + 0.5) * scale);
      found.push([...data.slice(4 * (y * canvas.width + x), 4 * (y * canvas.width + x) + 3)]);
    }
  }
  return JSON.stringify(found);
}"""


@pytest.fixture
def xray(home: Path, team: Team, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    monkeypatch.setattr(app, "send_task", lambda name, args, queue: None)
    model = make_model(team, "chest")
    store_version(
        home,
        model,
        brightness(),
        task="image-multilabel",
        activation="sigmoid",
        labels=["dark", "bright"],
        preprocessor=GREY_8,
    )
    deployment = make_deployment(team, model, "xray")
    serve(deployment, v1=10_000)
    return deployment


@pytest.fixture
def doctor(team: Team) -> User:
    return new_user("doctor", team, Role.DOCTOR)


@pytest.fixture
def session(doctor: User, settings: Any) -> dict[str, str]:
    """The cookie of the signed-in doctor."""
    name = settings.SESSION_COOKIE_NAME
    return {"name": name, "value": signed_in(doctor).cookies[name].value}


@pytest.fixture
def viewer(live_server: Any, session: dict[str, str], browser: "Browser") -> "Iterator[Page]":
    """A page with the doctor signed in; a script error on it fails the test. While it is there the database is not for
    this thread, so tests take it through `opened`, once their rows are made."""
    context = browser.new_context(base_url=live_server.url, viewport={"width": 1360, "height": 1000})
    context.add_cookies([{"name": session["name"], "value": session["value"], "url": live_server.url}])
    page = context.new_page()
    page.set_default_timeout(20_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


@pytest.fixture
def opened(live_server: Any, session: dict[str, str], request: pytest.FixtureRequest) -> "Callable[[Study], Page]":
    """Opens a study's page."""

    def open_page(study: Study) -> "Page":
        page: Page = request.getfixturevalue("viewer")
        page.goto(f"/studies/{study.pk}/")
        return page

    return open_page


def sent(doctor: User, deployment: Deployment, contents: list[bytes]) -> Study:
    """A study of these pictures, whose suggestion is there."""
    study = open_draft(actor=ACTOR, user=doctor, deployment=deployment, reference="Golden")
    for content in contents:
        add_picture(actor=ACTOR, study=study, content=content)
    send_study(actor=ACTOR, study=study)
    while run_batch("x"):
        pass
    return study


def on_canvas(page: "Page", rows: int, columns: int) -> np.ndarray:
    """What stands on the canvas for each pixel of the picture, [rows, columns, 3]."""
    return np.array(json.loads(page.evaluate(READ, [rows, columns]))).reshape(rows, columns, 3)


def pick(page: "Page", number: int) -> None:
    page.locator(f"[data-picture='{number}']").click()
    page.locator(f"[data-stage] canvas[data-ready='{number}']").wait_for()


@pytest.mark.parametrize(
    "start", [0, *(pytest.param(at, marks=pytest.mark.long) for at in range(PER_STUDY, len(GOLDEN), PER_STUDY))]
)
def test_the_canvas_shows_the_golden_grey_at_the_files_own_window(
    opened: "Callable[[Study], Page]", doctor: User, xray: Deployment, start: int
) -> None:
    part: list[Golden] = GOLDEN[start : start + PER_STUDY]
    study = sent(doctor, xray, [case.file() for case in part])
    viewer = opened(study)
    worst = {}
    for number, case in enumerate(part, 1):
        pick(viewer, number)
        drawn = on_canvas(viewer, *case.shown.shape).astype(int)
        worst[case.name] = int(np.abs(drawn - case.shown[..., np.newaxis]).max())
    assert {name: off for name, off in worst.items() if off > 1} == {}


def test_the_canvas_shows_deep_and_coloured_pictures_as_they_are(
    opened: "Callable[[Study], Page]", doctor: User, xray: Deployment
) -> None:
    random = np.random.default_rng(0)
    colour = random.integers(0, 256, (30, 44, 3), np.uint8)
    deep = random.integers(0, 65536, (31, 45), np.uint16)
    study = sent(doctor, xray, [encoded(colour), encoded(deep)])
    viewer = opened(study)
    pick(viewer, 1)
    np.testing.assert_array_equal(on_canvas(viewer, 30, 44), colour)
    pick(viewer, 2)
    drawn = on_canvas(viewer, 31, 45).astype(int)
    assert np.abs(drawn - (deep >> 8).astype(int)[..., np.newaxis]).max() <= 1


def test_a_heat_map_that_failed_is_said_to_have_failed(
    opened: "Callable[[Study], Page]", doctor: User, xray: Deployment
) -> None:
    study = sent(doctor, xray, [GOLDEN[0].file()])
    Job.objects.update(finished_at=timezone.now() - timedelta(hours=1))
    viewer = opened(study)
    pick(viewer, 1)
    viewer.locator("[data-heat]").fill("80")
    viewer.locator("[data-heat-said]", has_text="failed").wait_for()
    assert "send the picture as a new study" in viewer.locator("[data-said]").inner_text()


def test_invert_and_reset_do_what_they_say_and_the_heat_map_is_off_at_opening(
    opened: "Callable[[Study], Page]", doctor: User, xray: Deployment
) -> None:
    case = next(case for case in GOLDEN if case.name == "monochrome1_12")
    study = sent(doctor, xray, [case.file()])
    assert mapping.explain(study.pictures.get().pk)
    viewer = opened(study)
    pick(viewer, 1)
    at_first = on_canvas(viewer, *case.shown.shape)
    viewer.get_by_role("button", name="Invert").click()
    inverted = on_canvas(viewer, *case.shown.shape)
    np.testing.assert_array_equal(inverted, 255 - at_first)
    viewer.locator("[data-window]").fill("500")
    assert (on_canvas(viewer, *case.shown.shape) != inverted).any()
    viewer.get_by_role("button", name="Reset").click()
    np.testing.assert_array_equal(on_canvas(viewer, *case.shown.shape), at_first)

    viewer.locator("[data-heat-label]").select_option("bright")
    with viewer.expect_response("**/heat/?label=bright") as answer:
        viewer.locator("[data-heat]").fill("80")
    assert answer.value.ok
    viewer.locator("[data-heat-said]", has_text="80 %").wait_for()
    heated = on_canvas(viewer, *case.shown.shape)
    assert (heated[..., 0] > heated[..., 2] + 20).any()
    viewer.locator("[data-heat]").fill("0")
    np.testing.assert_array_equal(on_canvas(viewer, *case.shown.shape), at_first)


def test_what_the_model_saw_is_the_picture_at_the_models_size(
    opened: "Callable[[Study], Page]", doctor: User, xray: Deployment
) -> None:
    case = GOLDEN[0]
    study = sent(doctor, xray, [case.file()])
    viewer = opened(study)
    pick(viewer, 1)
    viewer.get_by_role("button", name="What the model saw").click()
    viewer.get_by_text("What the model saw: 8 × 8 pixels.").wait_for()
    shown = on_canvas(viewer, 8, 8)
    assert (shown[..., 0] == shown[..., 1]).all()
    wanted = np.asarray(Image.fromarray(case.shown).resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(shown[..., 0], wanted, atol=1)
