"""/api/models/ and /api/models/{m}/versions/: who may see and do what."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test.client import BOUNDARY, MULTIPART_CONTENT, encode_multipart
from pytest_django import DjangoAssertNumQueries

from controlplane.accounts.models import Team
from controlplane.audit.models import AuditEvent
from controlplane.catalog.models import ModelVersion, RegisteredModel, VersionState
from tests.controlplane.cast import Caller, nobody
from tests.controlplane.catalog.uploads import new_model, ready, upload
from tests.inference import toys

pytestmark = [
    pytest.mark.urls("tests.controlplane.api.catalog_urls"),
    pytest.mark.django_db,
    pytest.mark.usefixtures("store", "sandbox"),
]

MODEL = "/api/models/fraud/"
VERSIONS = "/api/models/fraud/versions/"


def onnx(content: bytes | None = None, name: str = "model.onnx") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, toys.classifier() if content is None else content)


@pytest.fixture
def model(team: Team) -> RegisteredModel:
    return new_model(team)


def test_a_model_is_registered_and_read(as_owner: Caller) -> None:
    made = as_owner.post("/api/models/", {"name": "fraud", "description": "Card fraud"})
    assert made.status_code == 201
    assert made["Location"] == MODEL
    body = made.json()
    assert {**body, "created_at": None} == {
        "name": "fraud",
        "team": "cards",
        "description": "Card fraud",
        "versions": 0,
        "latest_ready": None,
        "created_at": None,
        "archived_at": None,
        "url": MODEL,
    }
    assert as_owner.get(MODEL).json() == body
    event = AuditEvent.objects.get(action="model.register")
    assert (event.actor, event.address, event.request_id) == ("user:owner", "127.0.0.1", made["X-Request-Id"])


def test_a_list_takes_the_same_few_queries_however_long(
    as_owner: Caller, team: Team, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(5):
        upload(new_model(team, f"model-{number}"))
    with django_assert_num_queries(4):  # session, person, memberships, models
        answer = as_owner.get("/api/models/", page_size=3)
    assert len(answer.json()["results"]) == 3 and answer.json()["next"]
    with django_assert_num_queries(5):
        upload_list = as_owner.get("/api/models/model-1/versions/")
    assert [version["number"] for version in upload_list.json()["results"]] == [1]


def test_pages_follow_each_other_and_a_made_up_cursor_is_404(as_owner: Caller, team: Team) -> None:
    names = {new_model(team, f"model-{number}").name for number in range(5)}
    seen: set[str] = set()
    address: str | None = "/api/models/?page_size=2"
    while address:
        page = as_owner.get(address).json()
        seen |= {row["name"] for row in page["results"]}
        address = page["next"]
    assert seen == names
    for cursor in ("cD1ub25zZW5zZQ==", "////", "cD0AAAA=", "cj0xJnA9MjAyNg=="):
        assert as_owner.get("/api/models/", cursor=cursor).status_code == 404


@pytest.mark.parametrize("name", ["../x", "a" * 300, "🦊", "fr\u202eaud", "frаud", "Fraud", "", "a\x00b", "-a"])
def test_a_name_that_is_no_name_is_422(as_owner: Caller, name: str) -> None:
    answer = as_owner.post("/api/models/", {"name": name})
    assert answer.status_code == 422
    assert answer.json()["code"] in ("bad_name", "validation_error")
    assert answer.json()["errors"][0]["loc"] == ["name"]
    assert not RegisteredModel.objects.exists()


def test_a_taken_name_is_409_whoever_has_it(as_outsider: Caller, model: RegisteredModel) -> None:
    answer = as_outsider.post("/api/models/", {"name": "fraud"})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_a_team_that_one_is_not_in_is_404(as_owner: Caller, other_team: Team) -> None:
    assert as_owner.post("/api/models/", {"name": "x", "team": "radiology"}).status_code == 404


@pytest.mark.parametrize("address", [MODEL, VERSIONS, f"{VERSIONS}1/", f"{VERSIONS}1/report/"])
def test_owner_and_colleague_read_and_an_outsider_finds_nothing(
    as_owner: Caller,
    as_colleague: Caller,
    as_outsider: Caller,
    as_key: Callable[..., Caller],
    model: RegisteredModel,
    address: str,
) -> None:
    upload(model)
    assert as_owner.get(address).status_code == 200
    assert as_colleague.get(address).status_code == 200
    assert as_key("read").get(address).status_code == 200
    assert as_outsider.get(address).status_code == 404
    refused = as_key("predict").get(address)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert nobody().get(address).status_code == 401


def test_lists_hold_one_s_own_teams_alone(as_outsider: Caller, as_colleague: Caller, model: RegisteredModel) -> None:
    assert as_outsider.get("/api/models/").json()["results"] == []
    assert len(as_colleague.get("/api/models/").json()["results"]) == 1


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("post", "/api/models/"),
        ("patch", MODEL),
        ("delete", MODEL),
        ("upload", VERSIONS),
        ("patch", f"{VERSIONS}1/"),
        ("delete", f"{VERSIONS}1/"),
    ],
)
def test_only_who_may_upload_changes_anything(
    as_colleague: Caller,
    as_outsider: Caller,
    as_key: Callable[..., Caller],
    model: RegisteredModel,
    method: str,
    address: str,
) -> None:
    upload(model)

    def call(caller: Caller) -> Any:
        if method == "upload":
            return caller.upload(address, {"file": onnx()}).status_code
        body = {"name": "another", "description": "d", "notes": "n"}
        return getattr(caller, method)(*([address] if method == "delete" else [address, body])).status_code

    before = AuditEvent.objects.count()
    assert call(as_colleague) == 403
    assert call(as_key("read", "predict", "deploy")) == 403
    assert call(nobody()) == 401
    if address != "/api/models/":
        assert call(as_outsider) == 404
    assert AuditEvent.objects.exclude(action="key.issue").count() == before


def test_a_model_is_edited_and_archived(as_owner: Caller, model: RegisteredModel) -> None:
    upload(model)
    assert as_owner.patch(MODEL, {"description": "new"}).json()["description"] == "new"
    assert as_owner.delete(MODEL).status_code == 204
    assert as_owner.get(MODEL).json()["archived_at"]
    assert as_owner.get("/api/models/").json()["results"] == []
    assert len(as_owner.get("/api/models/", archived="true").json()["results"]) == 1
    answer = as_owner.upload(VERSIONS, {"file": onnx(toys.linear_regression())})
    assert (answer.status_code, answer.json()["code"]) == (410, "gone")


def test_a_version_reads_with_its_report(as_owner: Caller, model: RegisteredModel) -> None:
    ready(model, labels="ok,fraud", reference=b"a,b,c,target\n1,2,3,0\n")
    body = as_owner.get(f"{VERSIONS}1/").json()
    assert (body["state"], body["task"], body["labels"]) == ("ready", "tabular-classification", ["ok", "fraud"])
    assert body["signature"]["inputs"][0]["name"] == "features"
    assert body["reference"]["rows"] == 1 and body["reference"]["names"] == ["a", "b", "c"]
    assert body["report"]["ok"] is True and body["latency_ms"] is not None
    report = as_owner.get(f"{VERSIONS}1/report/").json()
    assert report["report"] == body["report"] and report["state"] == "ready"
    assert as_owner.get(MODEL).json()["latest_ready"] == 1


def test_a_ready_version_takes_remarks_and_reference_but_no_new_meaning(
    as_owner: Caller, model: RegisteredModel
) -> None:
    ready(model, labels="ok,fraud", columns="a,b,c")
    address = f"{VERSIONS}1/"
    assert as_owner.patch(address, {"notes": "n", "intended_use": {"modality": "CR"}}).json()["notes"] == "n"
    frozen = as_owner.patch(address, {"labels": ["x", "y"]})
    assert (frozen.status_code, frozen.json()["code"]) == (409, "conflict")
    form = {"reference": SimpleUploadedFile("r.csv", b"a,b,c\n1,2,3\n")}
    changed = patch_form(as_owner, address, form)
    assert (changed.status_code, changed.json()["reference"]["file_name"]) == (200, "r.csv")
    bad = patch_form(as_owner, address, {"reference": SimpleUploadedFile("r.csv", b"a,b\n1,2\n")})
    assert (bad.status_code, bad.json()["code"]) == (422, "bad_reference")
    assert (ModelVersion.objects.get().reference_summary or {})["rows"] == 1


def patch_form(caller: Caller, address: str, fields: dict[str, Any]) -> Any:
    content = encode_multipart(BOUNDARY, fields)
    return caller.client.patch(address, content, content_type=MULTIPART_CONTENT, headers=caller.headers)


def test_a_version_is_archived(as_owner: Caller, model: RegisteredModel) -> None:
    ready(model)
    assert as_owner.delete(f"{VERSIONS}1/").status_code == 204
    assert ModelVersion.objects.get().state == VersionState.ARCHIVED
    assert as_owner.get(VERSIONS).json()["results"] == []
    assert as_owner.get(VERSIONS, archived="1").json()["results"][0]["state"] == "archived"


def test_addresses_that_lead_nowhere_are_404_or_405(as_owner: Caller, model: RegisteredModel) -> None:
    for address in (
        *("/api/models/absent/", f"{VERSIONS}7/", f"{VERSIONS}99999999999999999999/", f"{VERSIONS}x/"),
        *("/api/models/Fraud/", "/api/models/%00/", "/api/models/..%2Fx/"),
    ):
        assert as_owner.get(address).status_code == 404, address
    refused = as_owner.patch("/api/models/", {})
    assert refused.status_code == 405 and "POST" in refused["Allow"]
