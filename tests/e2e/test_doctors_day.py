"""The doctor's day in a real browser: send pictures, look, answer; desktop and phone, light and dark."""

import base64
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from examples.golden_dicom.make import Golden, cases
from tests.controlplane.jobs.conftest import GREY_8, brightness
from tests.e2e.clinic import PASSWORD, make_people
from tests.e2e.test_admins_day import no_serious_violation
from tests.inference.runtime.picture_files import chest, encoded
from tests.services import Product

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, CDPSession, Locator, Page, ViewportSize

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SIZES: "dict[str, ViewportSize]" = {"desktop": {"width": 1360, "height": 900}, "phone": {"width": 390, "height": 844}}
THEMES = {"desktop": "light", "phone": "dark"}
DOCTOR = "doctor-of-the-day"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
_RECORD = """
from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from controlplane.studies.models import ReadingPolicy
ModelVersion.objects.filter(model__name="day-chest").update(
    intended_use={"modality": "DX", "body_part": "CHEST", "view": "PA or AP"},
    performance={"source": "a made test set", "labels": {"dark": {
        "threshold": 0.5, "sensitivity": 0.84, "specificity": 0.79, "positives": 112, "negatives": 500}}})
ReadingPolicy.objects.update_or_create(
    deployment=Deployment.objects.get(name="day-first"), defaults={"read_first": True})
"""


@pytest.fixture(scope="module")
def clinic(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Product:
    """A doctor, and a model for pictures that is served twice: once to be read first."""
    folder = tmp_path_factory.mktemp("clinic")
    parts = {"model.onnx": brightness(), "preprocessor.json": json.dumps(GREY_8).encode()}
    parts["thresholds.json"] = b'{"dark": 0.5, "bright": 0.5}'
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    described = ("--task", "image-multilabel", "--activation", "sigmoid", "--labels", "dark,bright")
    files = ("--preprocessor", str(folder / "preprocessor.json"), "--thresholds", str(folder / "thresholds.json"))
    product.manage("register_model", "day-chest", str(folder / "model.onnx"), *described, *files)
    for deployment in ("day-xray", "day-first"):
        product.manage("deploy", deployment, "day-chest")
    product.manage("shell", "-v", "0", "-c", _RECORD)
    make_people(product, {DOCTOR: [("default", "doctor")]})
    return product


@pytest.fixture(params=list(SIZES))
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def doctor(clinic: Product, browser: "Browser", contexts: "dict[str, BrowserContext]", size: str) -> Iterator["Page"]:
    """A page of that size with the doctor signed in; a script error on it fails the test."""
    if size not in contexts:
        contexts[size] = browser.new_context(
            base_url=clinic.base_url,
            viewport=SIZES[size],
            has_touch=size == "phone",
            color_scheme="dark" if THEMES[size] == "dark" else "light",
        )
        entrance = contexts[size].new_page()
        sign_in(entrance)
        entrance.wait_for_url("**/studies/")
        entrance.close()
    page = contexts[size].new_page()
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto("/studies/")
    yield page
    page.close()
    assert errors == []


def sign_in(page: "Page") -> None:
    if "/accounts/login/" not in page.url:
        page.goto("/accounts/login/")
    page.get_by_label("Name or e-mail").fill(DOCTOR)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()


def golden(name: str) -> Golden:
    return next(case for case in cases() if case.name == name)


def file_of(name: str, content: bytes) -> Any:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def begin(page: "Page", reference: str, deployment: str, *files: Any) -> None:
    """The form of a new study, filled; each file is on the list once its size in pixels, or its fault, is said."""
    page.get_by_role("link", name="New study").first.click()
    page.get_by_label("Case reference").fill(reference)
    page.get_by_label("Ask").select_option(deployment)
    page.locator("input[name=file]").set_input_files(list(files))
    for file in files:
        page.locator("[data-staged] li", has_text=file["name"]).get_by_text("×").or_(
            page.locator("[data-staged] li", has_text=file["name"]).locator("[data-wrong]:visible")
        ).first.wait_for()


def in_both_themes(page: "Page", size: str) -> None:
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
        no_serious_violation(page)
    page.emulate_media(color_scheme="dark" if THEMES[size] == "dark" else "light")


def small_targets(page: "Page") -> list[str]:
    """Buttons and fields that a finger would miss."""
    found: list[str] = page.evaluate("""() => [...document.querySelectorAll(
        "main .btn, main .tools button, main .tools input, main .tools select, main label.check, main .findings label")]
        .filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 44
            && !(each.matches("input") && each.closest("label")?.getBoundingClientRect().height >= 44))
        .map((each) => each.outerHTML.slice(0, 120))""")
    return found


def middle_of(canvas: "Locator") -> tuple[float, float]:
    box = canvas.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def two_fingers(page: "Page", spread: float, shift: float) -> None:
    """Two fingers around the middle of the picture, which then go apart by `spread` and aside by `shift` pixels."""
    x, y = middle_of(page.locator("[data-stage] canvas"))
    session: CDPSession = page.context.new_cdp_session(page)
    for step in range(6):
        apart, aside = 40 + spread * step / 5, shift * step / 5
        points = [{"x": x - apart + aside, "y": y}, {"x": x + apart + aside, "y": y}]
        kind = "touchMove" if step else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    session.detach()


def number_of(page: "Page", tool: str) -> float:
    return float(page.locator(f".tools [data-{tool}]").input_value())


def test_the_doctors_day(doctor: "Page", size: str) -> None:
    reference = f"2026-{size}"
    in_both_themes(doctor, size)

    # Choose a PNG, a DICOM file and a HEIC picture, which is named; black out the edge of the first
    files = [file_of("chest.png", encoded(chest())), file_of("film.dcm", golden("monochrome1_12").file())]
    begin(doctor, reference, "day-xray", *files, file_of("IMG_1.HEIC", HEIC))
    refused = doctor.locator("[data-staged] li", has_text="IMG_1.HEIC")
    refused.get_by_text("This is a HEIC picture").wait_for()
    in_both_themes(doctor, size)
    refused.get_by_role("button", name="Remove").click()
    doctor.get_by_role("button", name="Black out text").first.click()
    doctor.get_by_role("button", name="Top edge").click()
    doctor.get_by_text("One area is blacked out.").wait_for()
    no_serious_violation(doctor)
    doctor.get_by_role("button", name="Done").click()
    doctor.get_by_text("1 area blacked out").wait_for()
    if size == "phone":
        assert small_targets(doctor) == []

    # A double click sends one study; the suggestion comes by itself
    doctor.get_by_role("button", name="Send 2 pictures").dblclick()
    doctor.locator("[data-scores='2']").wait_for()
    address = doctor.url
    assert "above their threshold" in doctor.locator(".sentence").inner_text().replace("Above", "above")
    doctor.get_by_text("Not for diagnosis.").wait_for()
    doctor.get_by_text("sensitivity 0.84 ± 0.07, specificity 0.79 ± 0.04, from 612 labelled pictures").first.wait_for()
    in_both_themes(doctor, size)
    if size == "phone":
        assert small_targets(doctor) == []
        bar = doctor.locator(".verdict").bounding_box()
        assert bar is not None
        assert round(bar["y"] + bar["height"]) == SIZES[size]["height"]

    look_around(doctor, size)

    # Agree, then correct; both stay
    doctor.get_by_role("button", name="Agree").click()
    doctor.get_by_text("Your answer is kept.").wait_for()
    doctor.get_by_role("link", name="Correct…").click()
    doctor.locator("#correct").get_by_label("bright").check()
    doctor.get_by_label("How certain are you?").select_option("0.75")
    doctor.get_by_label("Comment").fill("rotated <b>film</b>")
    in_both_themes(doctor, size)
    doctor.get_by_role("button", name="Keep my answer").click()
    doctor.get_by_text("Earlier answers (1)").wait_for()
    assert "“rotated <b>film</b>”" in doctor.locator(".said-verdict").inner_text()
    doctor.emulate_media(media="print")
    mark = doctor.evaluate("getComputedStyle(document.querySelector('.view'), '::after').content")
    assert "NOT FOR DIAGNOSIS" in mark
    doctor.emulate_media(media="screen")

    # The worklist finds it by its reference, and opens it by the keyboard
    doctor.goto("/studies/")
    doctor.keyboard.press("/")
    doctor.keyboard.type(reference)
    doctor.get_by_label("Only mine").check()
    doctor.get_by_role("button", name="Show", exact=True).click()
    doctor.wait_for_url("**/studies/?*")
    assert reference not in doctor.url
    assert doctor.locator("[data-row]").count() == 1
    in_both_themes(doctor, size)
    doctor.keyboard.press("j")
    doctor.keyboard.press("Enter")
    doctor.wait_for_url(address)


def look_around(page: "Page", size: str) -> None:
    """Window, zoom, invert, the second picture, what the model saw, the heat map, reset."""
    canvas = page.locator("[data-stage] canvas")
    page.locator("canvas[data-ready='1']").wait_for()
    if size == "phone":
        page.locator(".thumbs a").nth(1).click()
    else:
        page.keyboard.press("ArrowRight")
    page.locator("canvas[data-ready='2']").wait_for()
    opened = number_of(page, "window")
    canvas.scroll_into_view_if_needed()
    if size == "phone":
        two_fingers(page, spread=0, shift=80)
        page.wait_for_function(
            "before => Number(document.querySelector('.tools [data-window]').value) > before", arg=opened
        )
        two_fingers(page, spread=60, shift=0)
    else:
        x, y = middle_of(canvas)
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 120, y, steps=4)
        page.mouse.up()
        page.wait_for_function(
            "before => Number(document.querySelector('.tools [data-window]').value) > before", arg=opened
        )
        page.mouse.wheel(0, -300)
    page.wait_for_function("parseInt(document.querySelector('[data-zoom]').textContent) > 110")
    invert = page.get_by_role("button", name="Invert")
    invert.click()
    page.locator("[data-invert][aria-pressed='true']").wait_for()
    page.get_by_role("button", name="What the model saw").click()
    page.get_by_text("What the model saw: 8 × 8 pixels.").wait_for()
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function(
        "before => Number(document.querySelector('.tools [data-window]').value) === before", arg=opened
    )
    assert page.locator("[data-zoom]").inner_text() == "100 %"
    slider = page.get_by_label("Opacity of the heat map")
    assert slider.input_value() == "0"
    slider.fill("60")
    page.get_by_text("60 %", exact=True).wait_for()
    slider.fill("0")


def test_reading_first_shows_the_suggestion_after_the_answer(doctor: "Page", size: str) -> None:
    begin(doctor, f"first-{size}", "day-first", file_of("chest.png", encoded(chest())))
    doctor.get_by_role("button", name="Send", exact=True).click()
    doctor.get_by_text("Answer first: the suggestion is shown once you have.").wait_for()
    assert doctor.locator(".scores, [data-heat]").count() == 0
    in_both_themes(doctor, size)
    doctor.locator("#correct").get_by_label("dark").check()
    doctor.get_by_role("button", name="Keep my answer").click()
    doctor.locator("[data-scores='1']").wait_for()
    assert "above its threshold" in doctor.locator(".sentence").inner_text()
    doctor.get_by_text("before the suggestion was shown").wait_for()


def test_a_session_that_ends_before_the_upload_loses_nothing(doctor: "Page", size: str) -> None:
    begin(doctor, f"later-{size}", "day-xray", file_of("chest.png", encoded(chest())))
    doctor.context.clear_cookies(name="signalbox-session")
    doctor.get_by_role("button", name="Send", exact=True).click()
    doctor.get_by_text("Your session has ended.").wait_for()
    with doctor.expect_popup() as opened:
        doctor.get_by_role("link", name="Sign in").click()
    sign_in(opened.value)
    opened.value.wait_for_url("**/studies/**")
    opened.value.close()
    doctor.get_by_role("button", name="Send", exact=True).click()
    doctor.locator("[data-scores='1']").wait_for()


_DRAWN = """async (files) => {
  const { decode, draw } = await import("/static/js/studies/pixels.js");
  const token = document.querySelector("[name=csrfmiddlewaretoken]").value;
  const found = [];
  for (const file of files) {
    const body = new FormData();
    body.append("file", new Blob([Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0))]));
    const headers = { "X-CSRFToken": token, "X-Requested-With": "fetch" };
    const answer = await fetch("/studies/preview/", { method: "POST", body, headers });
    const canvas = draw(decode(await answer.arrayBuffer()));
    const shown = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    found.push([...shown].filter((value, at) => at % 4 === 0));
  }
  return found;
}"""


@pytest.mark.long
def test_the_canvas_shows_what_the_standard_says(clinic: Product, browser: "Browser") -> None:
    """Each golden file, grey by grey: MONOCHROME1 and 2, 8 to 16 bits, signed, tables and windows."""
    context = browser.new_context(base_url=clinic.base_url)
    page = context.new_page()
    sign_in(page)
    page.wait_for_url("**/studies/")
    page.goto("/studies/new/")
    known = cases()
    drawn = page.evaluate(_DRAWN, [base64.b64encode(case.file()).decode() for case in known])
    context.close()
    far = {
        case.name: int(np.abs(np.array(values).reshape(case.shown.shape) - case.shown.astype(int)).max())
        for case, values in zip(known, drawn, strict=True)
    }
    assert {name: off for name, off in far.items() if off > 1} == {}
