"""Real radiographs through the doctor's form give the golden scores, and nobody else gets anything of them."""

import base64
import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import product as combinations
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from django.urls import get_resolver
from django.urls.resolvers import RoutePattern, URLResolver
from PIL import Image

from tests.controlplane.jobs.test_real_worker import DATA, PREPROCESSOR
from tests.e2e.clinic import (
    PASSWORD,
    Person,
    identity,
    make_people,
    picture_ids,
    rows,
    scores_of,
    signed_in,
    text_of,
)
from tests.e2e.control import control_of
from tests.services import Product, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.shared, pytest.mark.timeout(600)]

NAME, OTHER = "nih", "nih-elsewhere"
REFERENCE = "QZ 7731-4471 XW"
# Scores that are neither 0 nor 1, so that their digits are found where they are told.
PLANTED = ("multi_label/00000920_000.png", "Consolidation/00004979_000.png", "No_Finding/00002987_000.png")
WITHIN = 0.02
SCOPES = ("predict", "pin", "feedback", "read", "upload", "deploy", "admin")


def long(value: str) -> Any:
    """A case of `make prove` alone."""
    return pytest.param(value, marks=pytest.mark.long)


def golden() -> dict[str, dict[str, float]]:
    with (DATA / "nih15_expected_softmax.csv").open(newline="") as stream:
        return {
            row["file"]: {
                name: float(value) for name, value in row.items() if name not in ("file", "all_labels", "top1")
            }
            for row in csv.DictReader(stream)
        }


def radiograph(file: str) -> bytes:
    return (DATA / "nih" / file).read_bytes()


@pytest.fixture(scope="module")
def clinic(product: Product) -> Iterator[Product]:
    """The chest model behind a deployment of the team `default`, and people of two teams."""
    if not DATA.is_dir():
        pytest.skip("the shared data folder is not here")
    make_people(
        product,
        {
            "nih-doctor": [("default", "doctor")],
            "nih-scientist": [("default", "data_scientist")],
            "nih-foreign": [("nih-other", "doctor"), ("nih-other", "data_scientist")],
            "nih-viewer": [("default", "viewer")],
            "nih-developer": [("default", "developer")],
            "nih-admin": [("default", "admin")],
            "nih-root": [],
        },
    )
    with control_of(product) as control:
        control.upload(
            NAME,
            (DATA / "nih15_model" / "model.onnx").read_bytes(),
            preprocessor=json.dumps(PREPROCESSOR),
            labels=",".join(next(iter(golden().values()))),
            task="image-classification",
            activation="softmax",
        )
        assert control.validated(NAME)["state"] == "ready"
        control.deploy(NAME)
    yield product


@pytest.fixture(scope="module")
def doctor(clinic: Product) -> Iterator[Person]:
    with signed_in(clinic, "nih-doctor") as person:
        yield person


def assert_golden(shown: dict[int, dict[str, float]], files: Sequence[str]) -> None:
    """The page's scores, which have two decimals, are those of the reference for every label and picture."""
    expected = golden()
    assert len(shown) == len(files)
    for number, file in enumerate(files, 1):
        assert shown[number].keys() == expected[file].keys()
        assert max(abs(shown[number][label] - expected[file][label]) for label in expected[file]) <= WITHIN, file


@pytest.mark.long
def test_58_radiographs_through_the_form_give_the_golden_scores(doctor: Person) -> None:
    files = list(golden())
    studies = [files[at : at + 12] for at in range(0, len(files), 12)]
    addresses = [
        doctor.sent(NAME, f"golden {number}", *map(radiograph, some)) for number, some in enumerate(studies, 1)
    ]
    for address, some in zip(addresses, studies, strict=True):
        assert_golden(scores_of(doctor.answered(address, 300)), some)
    assert len(files) == 58


@pytest.mark.browser
def test_radiographs_through_a_real_browser_give_the_golden_scores(clinic: Product, browser: "Browser") -> None:
    context = browser.new_context(base_url=clinic.base_url)
    page = context.new_page()
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto("/accounts/login/")
    page.get_by_label("Name or e-mail").fill("nih-doctor")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/studies/")
    page.goto("/studies/new/")
    page.get_by_label("Case reference").fill("by hand")
    page.get_by_label("Ask").select_option(NAME)
    page.locator("#id_file").set_input_files([str(DATA / "nih" / file) for file in PLANTED])
    page.get_by_role("button", name=f"Send {len(PLANTED)} pictures").click()
    page.locator("[data-scores]").nth(len(PLANTED) - 1).wait_for()
    assert_golden(scores_of(page.content()), PLANTED)
    # The picture itself is on the canvas, and nothing stands on it that the file does not hold.
    page.locator("canvas[data-ready='1']").wait_for()
    context.close()
    assert errors == []


@dataclass(frozen=True, slots=True)
class Planted:
    """A study whose traces can be told from anything else."""

    address: str
    study: str
    pictures: list[str]
    jobs: list[str]
    said: list[str]
    pairs: list[re.Pattern[str]]
    bytes_of_it: list[bytes]

    def found_in(self, answer: httpx.Response) -> list[str]:
        """What of the study an answer holds."""
        body, text = answer.content, answer.text
        found = [said for said in self.said if said in text]
        found += [pair.pattern for pair in self.pairs if pair.search(text_of(text))]
        found += [f"bytes {number}" for number, piece in enumerate(self.bytes_of_it) if piece in body]
        kind = answer.headers.get("content-type", "")
        if answer.status_code == 200 and kind.startswith(("image/", "application/octet-stream", "application/dicom")):
            found.append(kind)
        return found


@pytest.fixture(scope="module")
def planted(clinic: Product, doctor: Person) -> Planted:
    address = doctor.sent(NAME, REFERENCE, *map(radiograph, PLANTED))
    page = doctor.answered(address, 300)
    study = identity(address)
    jobs = rows(
        clinic,
        "SELECT j.id, j.result FROM jobs_job j JOIN studies_studypicture p ON p.job_id = j.id"
        " WHERE p.study_id = %s ORDER BY p.position",
        study,
    )
    scores = [score for job in jobs for score in job["result"]["scores"].values() if score > 1e-4]
    coded = [REFERENCE.encode().hex(), base64.b64encode(REFERENCE.encode()).decode().rstrip("=")]
    pixels = [np.asarray(Image.open(BytesIO(radiograph(file))).convert("L")) for file in PLANTED]
    answered = doctor.page(address)
    assert REFERENCE in answered
    # A heat map is asked for in its turn; the last picture's says that all of them are there.
    wait_for(lambda: not missing_maps(clinic, study), 300, "the heat maps", every_s=0.5)
    return Planted(
        address=address,
        study=study,
        pictures=picture_ids(page),
        jobs=[str(job["id"]) for job in jobs],
        said=[REFERENCE, REFERENCE.replace(" ", "%20"), REFERENCE.replace(" ", "+"), *coded]
        + [repr(float(score))[:8] for score in scores],
        pairs=[
            re.compile(rf"{re.escape(label)}\W{{1,12}}(?:score\W+)?{score:.2f}")
            for shown in scores_of(page).values()
            for label, score in shown.items()
            if score >= 0.05
        ],
        bytes_of_it=[array.tobytes()[array.size // 2 :][:64] for array in pixels]
        + [radiograph(file)[len(radiograph(file)) // 2 :][:48] for file in PLANTED],
    )


def missing_maps(clinic: Product, study: str) -> bool:
    return bool(rows(clinic, "SELECT 1 FROM studies_studypicture WHERE study_id = %s AND heat_map = ''", study))


def routes(resolver: Any = None, before: str = "") -> Iterator[str]:
    """Every address of the table of contents, with its places to fill. Patterns are allauth's and the admin's rest."""
    for pattern in (resolver or get_resolver("controlplane.urls")).url_patterns:
        if isinstance(pattern.pattern, RoutePattern):
            whole = before + str(pattern.pattern)
            yield from routes(pattern, whole) if isinstance(pattern, URLResolver) else [whole]


def addresses(planted: Planted) -> list[str]:
    """Every route with the ids of the study and of what belongs to it, and the questions that some of them take."""
    filled: dict[str, list[str]] = {
        "name": [NAME],
        "number": ["1"],
        "pk": ["1"],
        "study_id": [planted.study],
        "picture_id": planted.pictures[:1],
        "job_id": planted.jobs[:2],
        "prediction_id": planted.jobs[:2],
        "content_type_id": ["1", "20"],
    }
    found = []
    for route in routes():
        names = re.findall(r"<(?:\w+:)?(\w+)>", route)
        anything = [planted.study, planted.jobs[0]][: 1 if route.startswith("admin/") else 2]
        for values in combinations(*(filled.get(name, anything) for name in names)):
            address = route
            for value in values:
                address = re.sub(r"<[^>]*>", value, address, count=1)
            # Signing out would end the question.
            if "logout" not in address:
                found.append("/" + address)
    found += [
        *(f"{planted.address}pictures/{picture}/thumbnail/?size=large" for picture in planted.pictures),
        *(f"{planted.address}pictures/{picture}/heat/?label=Effusion" for picture in planted.pictures),
        f"{planted.address}?picture=2",
        f"/api/jobs/{planted.jobs[0]}/?wait=1",
        f"/api/predictions/?deployment={NAME}&limit=200",
        f"/deployments/{NAME}/predictions/?version=1",
        f"/api/deployments/{NAME}/accuracy/?since=1h",
        f"/audit/?q={planted.study}",
        "/studies/?status=ready",
    ]
    doors = ["/ping", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready", "/invocations"]
    for name in (NAME, planted.study, planted.jobs[0]):
        doors += [f"/v1/models/{name}", f"/v1/models/{name}/metadata", f"/v1/models/{name}:predict"]
        doors += [f"/v2/models/{name}", f"/v2/models/{name}/ready", f"/v2/models/{name}/infer"]
    static = ["/static/pictures/", "/media/", "/pictures/", "/var/", f"/studies/{planted.study}/pictures/"]
    return [*found, *doors, *static]


@dataclass(frozen=True, slots=True)
class Asker:
    """Somebody who asks every route, by a session or with a key or with neither."""

    client: httpx.Client
    person: Person | None = None

    def ask(self, address: str) -> Iterator[httpx.Response]:
        yield self.client.get(address)
        if address.startswith(("/accounts/", "/admin/", "/theme/")):
            return
        if self.person is None or address.startswith(("/api/", "/v1/", "/v2", "/invocations")):
            yield self.client.post(address, json={}, headers=self._headers)
        else:
            yield self.person.post(address, about="nothing")
            yield self.person.script(address, about="nothing")
        if re.match(r"/api/(jobs|predictions)/.", address):
            for method in ("PUT", "PATCH", "DELETE"):
                yield self.client.request(method, address, json={}, headers=self._headers)

    @property
    def _headers(self) -> dict[str, str]:
        """What a signed-in person's call of the control API needs."""
        return self.person.same_origin if self.person is not None else {}


def everything(asker: Asker, planted: Planted) -> tuple[list[Any], list[tuple[str, int]]]:
    """What was found where, and how the study's own routes answered. No answer is a bare server error."""
    found, own = [], []
    for address in addresses(planted):
        for answer in asker.ask(address):
            assert answer.status_code < 500 or answer.status_code == 503, (address, answer.text[:500])
            told = planted.found_in(answer)
            if told:
                found.append((answer.request.method, address, answer.status_code, told))
            if address.startswith(planted.address):
                own.append((address, answer.status_code))
    return found, own


def test_the_search_finds_what_those_see_who_may(clinic: Product, doctor: Person, planted: Planted) -> None:
    """Otherwise that it finds nothing elsewhere would say nothing."""
    page = doctor.client.get(planted.address)
    assert {REFERENCE} <= set(planted.found_in(page))
    assert any(found in {pair.pattern for pair in planted.pairs} for found in planted.found_in(page))
    picture = f"{planted.address}pictures/{planted.pictures[0]}"
    pixels = doctor.client.get(f"{picture}/pixels/")
    assert {"bytes 0", "application/octet-stream"} <= set(planted.found_in(pixels))
    for view in ("thumbnail/", "model/", "heat/?label=Effusion"):
        assert "image/png" in planted.found_in(doctor.client.get(f"{picture}/{view}")), view
    for answer in (page, pixels):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
    with signed_in(clinic, "nih-scientist") as scientist:
        job = scientist.client.get(f"/api/jobs/{planted.jobs[0]}/")
        assert set(planted.said) & set(planted.found_in(job))


@pytest.mark.parametrize(
    "name", ["nih-foreign", long("nih-viewer"), "nih-root", long("nih-developer"), long("nih-admin")]
)
def test_another_teams_doctor_and_who_may_not_see_payloads_get_nothing_on_any_route(
    clinic: Product, planted: Planted, name: str
) -> None:
    with signed_in(clinic, name) as person:
        found, own = everything(Asker(person.client, person), planted)
    assert found == []
    # No route says more than that there is none; one that takes no such method says so.
    assert {status for _, status in own} <= {404, 405}
    denied = rows(
        clinic,
        "SELECT count(*) AS n FROM audit_auditevent WHERE action = 'study.denied' AND target_id = %s AND actor = %s",
        planted.study,
        f"user:{name}",
    )
    assert denied[0]["n"] >= len({address for address, status in own if status == 404}) - 2


@pytest.mark.parametrize("whose", ["the same team", long("another team"), long("nobody")])
def test_keys_of_every_scope_and_nobody_get_nothing_on_any_route(clinic: Product, planted: Planted, whose: str) -> None:
    scopes = [part for scope in SCOPES for part in ("--scope", scope)]
    team = ["--team", "nih-other"] if whose == "another team" else []
    key = None if whose == "nobody" else clinic.issue_key(f"nih {whose}", *team, *scopes)
    with clinic.http(key) as client:
        if key is not None:
            wait_for(lambda: client.get("/v2").status_code == 200, 10, "the key at the front door")
        found, own = everything(Asker(client), planted)
    assert found == []
    assert {status for _, status in own} <= {302, 401, 403, 404, 405}


def test_all_that_asking_changed_nothing_of_the_study(doctor: Person, planted: Planted) -> None:
    assert_golden(scores_of(doctor.page(planted.address)), PLANTED)
    assert REFERENCE in doctor.page(planted.address)
