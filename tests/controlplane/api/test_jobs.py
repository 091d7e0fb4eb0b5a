"""/api/deployments/{d}/jobs/ and /api/jobs/: post, wait, cancel; table B rows 37 to 46 through the job's address."""

import base64
import threading
import uuid
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.middleware.csrf import get_token
from django.test import Client, RequestFactory
from PIL import Image
from pydicom.encaps import encapsulate

from controlplane.accounts.models import Role, Team
from controlplane.audit.models import AuditEvent
from controlplane.deployments.models import Deployment
from controlplane.jobs import dispatch
from controlplane.jobs.models import Job
from controlplane.jobs.running import run_batch
from controlplane.predictions.models import Prediction
from tests.controlplane.cast import Caller, bearer, new_key, new_user
from tests.controlplane.jobs.conftest import children, home, pictures, serve, table
from tests.inference.runtime.picture_files import chest, dicom, dicom_head, encoded, png_claiming

__all__ = ["children", "home", "pictures", "table"]
POST = "/api/deployments/xray/jobs/"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPIP = "1.2.840.10008.1.2.4.94"


@pytest.fixture(autouse=True)
def quiet_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.app, "send_task", lambda *_, **__: None)


@pytest.fixture
def app(as_key: Callable[..., Caller]) -> Caller:
    return as_key("predict", "pin")


def grey(value: int = 230) -> bytes:
    return encoded(np.full((32, 32), value, np.uint8))


def post(caller: Caller, body: bytes, kind: str = "image/png", path: str = POST, **headers: str) -> Any:
    return caller.client.post(path, body, content_type=kind, headers={**caller.headers, **headers})


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


@pytest.mark.django_db
def test_a_picture_is_taken_on_answered_and_logged(app: Caller, pictures: Deployment) -> None:
    response = post(app, grey(), **{"X-Client-Id": "case-1", "X-Context": "ward=7"})

    told = response.json()
    assert (response.status_code, told["status"], told["version"]) == (202, "queued", 1)
    assert (told["result"], told["error"], told["prediction_id"], told["finished_at"]) == (None, None, None, None)
    assert response["Location"] == f"/api/jobs/{told['id']}/"
    run_batch("x")
    done = app.get(response["Location"]).json()
    assert (done["status"], done["prediction_id"], done["client_id"]) == ("succeeded", told["id"], "case-1")
    assert done["result"]["label"] == "bright"
    assert set(done["result"]["scores"]) == {"dark", "bright"}
    row = Prediction.objects.get()
    assert (str(row.id), row.context, row.inputs, row.lane) == (told["id"], {"ward": "7"}, None, "job")
    assert row.pictures is not None
    assert row.pictures[0]["width"] == 32


@pytest.mark.django_db
def test_a_form_and_json_are_read_alike(app: Caller, pictures: Deployment) -> None:
    form = app.upload(POST, {"file": SimpleUploadedFile("../../<svg onload=x>Jane Doe.png", grey(), "text/html")})
    document = {"instances": [{"b64": base64.b64encode(grey()).decode()}, {"b64": base64.b64encode(grey(9)).decode()}]}
    many = app.post(POST, document)
    assert (form.status_code, many.status_code) == (202, 202)
    run_batch("x")
    run_batch("x")
    assert app.get(form["Location"]).json()["result"]["label"] == "bright"
    labels = [row["label"] for row in app.get(many["Location"]).json()["result"]["predictions"]]
    assert labels == ["bright", "dark"]
    assert "Jane" not in str(list(Job.objects.values()))


@pytest.mark.django_db
def test_rows_are_checked_at_the_post(app: Caller, table: Deployment) -> None:
    path = "/api/deployments/line/jobs/"
    good = app.post(path, {"instances": [{"a": 1, "b": 2, "c": 3}]})
    assert good.status_code == 202
    run_batch("x")
    assert app.get(good["Location"]).json()["result"]["outputs"] == {"y": [[2.5]]}
    refusals: list[tuple[Any, tuple[int, str]]] = [
        (b"", (400, "empty_body")),
        (b"{", (400, "bad_json")),
        (b"\xff\xfe{\0", (400, "bad_encoding")),
        (b'{"instances": [[1,2,3]], "instances": [[1,2,3]]}', (400, "duplicate_key")),
        (b'{"rows": []}', (400, "bad_request")),
        (b'{"instances": []}', (422, "wrong_shape")),
        (b'{"instances": [[1,2]]}', (422, "wrong_shape")),
        (b'{"instances": [["x",2,3]]}', (422, "wrong_type")),
        (b'{"instances": [[NaN,2,3]]}', (400, "non_finite")),
        (b'{"instances": [{"a":1,"b":2}]}', (422, "unknown_feature")),
        (b'{"inputs": {"a":[1],"b":[2],"d":[3]}}', (422, "unknown_feature")),
        (b'{"instances": ' + b"[" * 500 + b"]" * 500 + b"}", (400, "too_deep")),
        (b'{"instances": ' + b"[" * 100_000, (400, "too_deep")),
        (b'{"instances": [[' + b"1" * 10_000 + b",2,3]]}", (400, "bad_json")),
    ]
    for body, expected in refusals:
        assert code(post(app, body, "application/json", path)) == expected, body[:60]
    assert code(post(app, grey(), "image/png", path)) == (415, "unsupported_media_type")
    assert Job.objects.count() == 1


def jpeg() -> bytes:
    return encoded(chest(), "JPEG")


def dicom_of(**elements: Any) -> bytes:
    return dicom(chest(), **elements)


def compressed(syntax: str) -> bytes:
    return dicom(chest(), syntax, PixelData=encapsulate([bytes(100)]))


ROWS: list[tuple[str, Callable[[], bytes], tuple[int, str]]] = [
    ("37 empty", lambda: b"", (400, "empty_body")),
    ("37 text", lambda: b"hello", (415, "not_an_image")),
    ("37 svg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg' onload='x'/>", (415, "not_an_image")),
    ("37 pdf", lambda: b"%PDF-1.7\n", (415, "not_an_image")),
    ("37 exe", lambda: b"MZ" + bytes(200), (415, "not_an_image")),
    ("38 truncated jpeg", lambda: jpeg()[:-200], (422, "corrupt_image")),
    ("38 truncated png", lambda: grey()[:-30], (422, "corrupt_image")),
    ("39 a line of 2^31 - 1", lambda: png_claiming(2**31 - 1, 1), (422, "too_many_pixels")),
    ("39 12,000 x 10,000", lambda: png_claiming(12_000, 10_000), (422, "too_many_pixels")),
    ("39 nothing", lambda: png_claiming(0, 10), (422, "corrupt_image")),
    ("43 no DICM", lambda: b"MZ" + dicom_of()[2:128] + b"XXXX" + dicom_of()[132:], (415, "not_an_image")),
    ("43 no picture", lambda: dicom_head("1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.88.11"),
     (422, "unsupported_object")),
    ("44 too short", lambda: dicom_of(Rows=4000), (422, "pixel_mismatch")),
    ("44 no rows", lambda: dicom_of(Rows=0), (422, "pixel_mismatch")),
    ("46 JPEG-LS", lambda: compressed(JPEG_LS), (422, "unsupported_transfer_syntax")),
    ("46 JPIP", lambda: compressed(JPIP), (422, "unsupported_transfer_syntax")),
    ("44 a billion frames", lambda: dicom_of(NumberOfFrames=10**9), (422, "pixel_mismatch")),
]  # fmt: skip


@pytest.mark.django_db
@pytest.mark.parametrize(("body", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_bad_pictures_are_refused_at_the_post_and_leave_nothing(
    app: Caller, pictures: Deployment, home: Path, body: Callable[[], bytes], expected: tuple[int, str]
) -> None:
    assert code(post(app, body(), "image/png")) == expected
    assert not Job.objects.exists()
    assert [path for path in (home / "pictures").rglob("*") if path.is_file()] == []


@pytest.mark.django_db
@pytest.mark.parametrize("kind", ["GIF", "APNG", "TIFF"])
def test_row_40_several_pages_are_refused(app: Caller, pictures: Deployment, kind: str) -> None:
    frames = [Image.new("L", (16, 16), value) for value in (10, 200)]
    out = BytesIO()
    frames[0].save(out, "PNG" if kind == "APNG" else kind, save_all=True, append_images=frames[1:])
    status, told = code(post(app, out.getvalue()))
    assert (status, told) in {(422, "unsupported_image"), (415, "not_an_image")}


@pytest.mark.django_db
@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "P", "I;16", "1"])
def test_row_40_other_modes_are_read(app: Caller, pictures: Deployment, mode: str) -> None:
    picture = Image.fromarray(chest()).convert("RGB")
    picture = picture.convert(mode) if mode != "I;16" else Image.fromarray(chest().astype(np.uint16) * 256)
    response = post(app, encoded(picture, "JPEG" if mode == "CMYK" else "PNG"))
    assert response.status_code == 202
    run_batch("x")
    assert app.get(response["Location"]).json()["status"] == "succeeded"


@pytest.mark.django_db
def test_row_41_out_of_scope_pictures_carry_a_warning(app: Caller, pictures: Deployment) -> None:
    colourful = np.zeros((64, 64, 3), np.uint8)
    colourful[:32, :, 0] = 255
    colourful[32:, :, 2] = 255
    response = post(app, encoded(colourful))
    run_batch("x")
    assert any("out_of_scope" in warning for warning in app.get(response["Location"]).json()["warnings"])


@pytest.mark.django_db
def test_row_47_identifiers_are_gone_before_anything_is_stored(
    app: Caller, pictures: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    from controlplane.jobs import vault

    kept: list[bytes] = []
    seal = vault.seal
    monkeypatch.setattr("controlplane.jobs.vault.seal", lambda content: kept.append(content) or seal(content))
    body = dicom_of(PatientName="DOE^JANE", PatientID="4711", BurnedInAnnotation="YES")

    response = post(app, body, "application/dicom")

    assert response.status_code == 202
    assert response.json()["warnings"]
    assert b"DOE" not in kept[0]
    assert b"4711" not in kept[0]


@pytest.mark.django_db
def test_the_same_key_and_body_are_one_job(app: Caller, pictures: Deployment, home: Path) -> None:
    first = post(app, grey(), **{"Idempotency-Key": "k1"})
    again = post(app, grey(), **{"Idempotency-Key": "k1"})
    other = post(app, grey(7), **{"Idempotency-Key": "k1"})

    assert first.json()["id"] == again.json()["id"]
    assert again.status_code == 202
    assert code(other) == (409, "idempotency_conflict")
    assert Job.objects.count() == 1
    run_batch("x")
    assert post(app, grey(), **{"Idempotency-Key": "k1"}).status_code == 200
    assert len([path for path in (home / "pictures").rglob("*") if path.is_file()]) == 1


@pytest.mark.django_db(transaction=True)
def test_waiting_ends_with_the_job(app: Caller, pictures: Deployment) -> None:
    location = post(app, grey())["Location"]

    def work() -> None:
        run_batch("x")
        connection.close()

    worker = threading.Thread(target=work)
    worker.start()
    told = app.get(f"{location}?wait=60").json()
    worker.join()
    assert told["status"] == "succeeded"
    assert told["result"]["label"] == "bright"


@pytest.mark.django_db
def test_waiting_has_an_end(app: Caller, pictures: Deployment) -> None:
    response = post(app, grey(), Prefer="wait=1")
    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert code(app.get(f"{response['Location']}?wait=soon")) == (400, "bad_request")


@pytest.mark.django_db
def test_cancelling(app: Caller, pictures: Deployment) -> None:
    location = post(app, grey())["Location"]
    assert app.delete(location).json()["status"] == "cancelled"
    assert app.delete(location).json()["status"] == "cancelled"
    assert run_batch("x") == 0
    assert app.get(location).json()["error"]["code"] == "cancelled"
    assert AuditEvent.objects.filter(action="job.cancel").count() == 1
    done = post(app, grey())["Location"]
    run_batch("x")
    assert code(app.delete(done)) == (409, "conflict")


@pytest.mark.django_db
def test_pins_need_their_scope(as_key: Callable[..., Caller], app: Caller, pictures: Deployment) -> None:
    serve(pictures, v1=10_000, v2=0)
    pinned = post(app, grey(), path=f"{POST}?version=2")
    assert (pinned.status_code, pinned.json()["version"], pinned.json()["pinned"]) == (202, 2, True)
    assert code(post(app, grey(), path=f"{POST}?version=99")) == (404, "not_found")
    assert code(post(app, grey(), path=f"{POST}?version=x")) == (404, "not_found")
    assert code(post(as_key("predict"), grey(), path=f"{POST}?version=2")) == (403, "forbidden")


@pytest.mark.django_db
def test_an_admin_key_may_neither_ask_nor_pin(as_key: Callable[..., Caller], pictures: Deployment) -> None:
    assert code(post(as_key("admin"), grey())) == (403, "forbidden")
    assert code(post(as_key("admin", "predict"), grey(), path=f"{POST}?version=1")) == (403, "forbidden")
    assert not Job.objects.exists()
    assert post(as_key("admin", "predict"), grey()).status_code == 202


@pytest.mark.django_db
def test_odd_headers_are_ignored_or_refused(app: Caller, pictures: Deployment) -> None:
    assert post(app, grey(), **{"X-Client-Id": "x" * 129}).json()["client_id"] == ""
    assert code(post(app, grey(), **{"Idempotency-Key": "x" * 256})) == (400, "bad_header")
    assert code(post(app, grey(), **{"X-Context": "nonsense"})) == (400, "bad_header")
    assert code(post(app, grey(), **{"X-Context": ",".join(f"k{n}=v" for n in range(9))})) == (400, "bad_header")


@pytest.mark.django_db
def test_two_files_or_none_are_refused(app: Caller, pictures: Deployment) -> None:
    files = [SimpleUploadedFile(f"{n}.png", grey(), "image/png") for n in range(2)]
    assert code(app.upload(POST, {"file": files})) == (422, "validation_error")
    assert code(app.upload(POST, {"text": "x"})) == (422, "validation_error")
    assert code(app.upload(POST, {"picture": files[0]})) == (422, "validation_error")


@pytest.mark.django_db
def test_what_is_too_large_is_refused(app: Caller, pictures: Deployment, settings: Any) -> None:
    Deployment.objects.update(max_body_bytes=100)
    assert code(post(app, bytes(101))) == (413, "too_large")
    settings.SIGNALBOX_MAX_PICTURE_BYTES = settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 50
    assert code(post(app, bytes(101))) == (413, "too_large")


@pytest.mark.django_db
def test_without_a_split_there_is_no_version(app: Caller, pictures: Deployment) -> None:
    pictures.revisions.all().delete()
    assert code(post(app, grey())) == (503, "no_active_version")


@pytest.mark.django_db
def test_jobs_belong_to_the_team(
    as_owner: Caller, as_colleague: Caller, as_outsider: Caller, app: Caller, team: Team, other_team: Team,
    pictures: Deployment,
) -> None:  # fmt: skip
    location = post(app, grey())["Location"]
    run_batch("x")

    assert as_outsider.get(location).status_code == 404
    assert post(as_outsider, grey()).status_code == 404
    assert post(bearer(new_key(other_team, ["predict"])[1]), grey()).status_code == 404
    assert bearer(new_key(team, ["predict"])[1]).get(location).status_code == 404
    assert code(post(bearer(new_key(team, ["read"])[1]), grey())) == (403, "forbidden")
    assert code(post(as_colleague, grey())) == (403, "forbidden")
    withheld = as_colleague.get(location).json()
    assert (withheld["status"], withheld["result"], withheld["payload"]) == ("succeeded", None, "withheld")
    assert as_owner.get(location).json()["result"]["label"] == "bright"
    assert AuditEvent.objects.filter(action="job.view_payload").count() == 1
    assert code(as_colleague.delete(location)) == (403, "forbidden")
    assert as_outsider.delete(location).status_code == 404
    assert app.get("/api/jobs/not-a-job/").status_code == 404
    assert app.get(f"/api/jobs/{uuid.uuid4()}/").status_code == 404


@pytest.mark.django_db
def test_the_list_costs_the_same_for_many(
    as_colleague: Caller, as_key: Callable[..., Caller], app: Caller, pictures: Deployment,
    django_assert_max_num_queries: Any,
) -> None:  # fmt: skip
    post(app, grey())
    with django_assert_max_num_queries(8):
        as_colleague.get(POST)
    for _ in range(6):
        post(app, grey())
    with django_assert_max_num_queries(8):
        told = as_colleague.get(POST).json()
    assert len(told["results"]) == 7
    assert as_colleague.get(POST, status="succeeded").json()["results"] == []
    assert as_colleague.get(POST, status="odd").status_code == 422
    assert as_key("predict").get(POST).json()["results"] == []


@pytest.mark.django_db
def test_a_signed_in_person_posts_a_body_as_an_app_does(pictures: Deployment, team: Team) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(new_user("developer", team, Role.DEVELOPER))
    assert client.post(POST, grey(), content_type="image/png").status_code == 403
    token = get_token(RequestFactory().get("/"))
    client.cookies[settings.CSRF_COOKIE_NAME] = token
    taken = client.post(POST, grey(), content_type="image/png", headers={"X-CSRFToken": token})
    assert taken.status_code == 202, taken.content
    wrong = client.post(POST, b"{}", content_type="application/json", headers={"X-CSRFToken": token})
    assert code(wrong) == (400, "bad_request")
