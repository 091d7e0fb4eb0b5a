"""The doctor's pages: who gets in, what no cache may keep, and what happens to bad input."""

import json
import uuid
from datetime import timedelta
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.utils import timezone
from PIL import Image
from pytest_django import DjangoAssertNumQueries

from controlplane.accounts.models import Role, Team, User
from controlplane.audit.models import AuditEvent
from controlplane.deployments.models import Deployment
from controlplane.jobs.beating import beat
from controlplane.jobs.models import Job, Worker
from controlplane.jobs.running import run_batch
from controlplane.studies import sealing
from controlplane.studies.models import ReadingPolicy, Study, StudyPicture, StudyState, Verdict, new_id
from controlplane.studies.services.sending import send_study
from inference.runtime.viewing import split_frame
from tests.controlplane.cast import new_user, signed_in
from tests.controlplane.studies.conftest import (
    REFERENCE,
    as_actor,
    broker,
    chest_model,
    children,
    doctor,
    draft,
    foreign_doctor,
    home,
    picture,
    ready,
    second,
    sent,
    xray,
)

__all__ = ["broker", "chest_model", "children", "doctor", "foreign_doctor", "home", "ready", "second", "sent", "xray"]
pytestmark = pytest.mark.django_db

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
SCRIPT = {"X-Requested-With": "fetch"}


@pytest.fixture
def doctors(doctor: User) -> Client:
    return signed_in(doctor)


def file_of(content: bytes, name: str = "picture.png") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, content)


def looks(study: Study) -> list[str]:
    """What shows something of a study."""
    at = f"/studies/{study.pk}/"
    pictures = [f"{at}pictures/{pk}/" for pk in study.pictures.values_list("pk", flat=True)]
    return [
        at,
        f"{at}state/",
        *(base + part for base in pictures for part in ("pixels/", "thumbnail/", "model/", "heat/")),
    ]


def acts(study: Study) -> list[str]:
    """What changes something of a study."""
    at = f"/studies/{study.pk}/"
    first = study.pictures.values_list("pk", flat=True)[0]
    return [f"{at}{part}/" for part in ("add", "send", "discard", "verdict", "erase", f"pictures/{first}/remove")]


def test_a_doctors_day_begins_at_the_worklist(doctors: Client) -> None:
    answer = doctors.get("/")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/studies/")
    page = doctors.get("/studies/").content
    assert b'class="rail"' not in page
    assert b'class="live"' not in page


@pytest.mark.parametrize("path", ["/studies/", "/studies/new/"])
def test_who_holds_no_right_to_studies_is_refused(colleagues: Client, path: str) -> None:
    assert colleagues.get(path).status_code == 403


def test_the_rail_leads_who_sees_payloads_to_the_studies(owners: Client, colleagues: Client) -> None:
    assert b'href="/studies/"' in owners.get("/").content
    assert b'href="/studies/"' not in colleagues.get("/").content


@pytest.mark.parametrize("who", ["another team's doctor", "a viewer of the team", "a site admin"])
def test_nobody_else_finds_a_study_on_any_route(ready: Study, foreign_doctor: User, colleague: User, who: str) -> None:
    people = {
        "another team's doctor": foreign_doctor,
        "a viewer of the team": colleague,
        "a site admin": User.objects.create_superuser("root"),
    }
    client = signed_in(people[who])
    assert {path: client.get(path).status_code for path in looks(ready)} == dict.fromkeys(looks(ready), 404)
    assert {path: client.post(path).status_code for path in acts(ready)} == dict.fromkeys(acts(ready), 404)
    denied = AuditEvent.objects.filter(action="study.denied", actor_id=str(people[who].pk))
    assert denied.count() == len(looks(ready)) + len(acts(ready))
    assert not AuditEvent.objects.filter(
        action__in=["study.view", "picture.view"], actor_id=str(people[who].pk)
    ).exists()


def test_who_may_see_payloads_looks_and_does_not_act(ready: Study, team: Team) -> None:
    scientist = signed_in(new_user("scientist", team, Role.DATA_SCIENTIST))
    page = scientist.get(f"/studies/{ready.pk}/")
    assert page.status_code == 200
    assert b"Agree" not in page.content
    assert {scientist.post(path).status_code for path in acts(ready)} == {403}
    assert scientist.get("/studies/new/").status_code == 403


def test_no_cache_keeps_an_answer_about_a_patient(doctors: Client, ready: Study) -> None:
    for path in ["/studies/", "/studies/new/", *looks(ready)]:
        answer = doctors.get(path)
        assert answer.status_code in (200, 202), path
        assert answer.headers["Cache-Control"] == "no-store", path
        assert answer.headers["X-Content-Type-Options"] == "nosniff", path


def test_each_view_of_a_study_and_its_pictures_is_audited(doctors: Client, doctor: User, ready: Study) -> None:
    for path in looks(ready):
        doctors.get(path)
    seen = AuditEvent.objects.filter(actor_id=str(doctor.pk), action__endswith=".view").order_by("pk")
    assert [event.action for event in seen] == [*["study.view"] * 2, *["picture.view"] * 3]
    assert REFERENCE not in str([event.after for event in AuditEvent.objects.all()])


def test_pictures_are_named_neutrally_and_of_full_depth(doctors: Client, ready: Study) -> None:
    base = f"/studies/{ready.pk}/pictures/{ready.pictures.get().pk}/"
    pixels = doctors.get(f"{base}pixels/")
    assert pixels.headers["Content-Disposition"] == 'inline; filename="picture-1"'
    assert split_frame(pixels.content)[0].dtype == "uint8"
    assert doctors.get(f"{base}thumbnail/").headers["Content-Type"] == "image/png"


def test_a_form_without_its_token_is_refused(doctor: User, xray: Deployment) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(doctor)
    study = draft(doctor, xray, picture())
    for path in ["/studies/new/", "/studies/preview/", *acts(study)]:
        assert client.post(path).status_code == 403, path
    assert study.pictures.count() == 1


def new_study(
    client: Client, *files: bytes, identity: uuid.UUID | None = None, headers: dict[str, str] | None = None
) -> Any:
    fields = {"study": str(identity or new_id()), "reference": REFERENCE, "deployment": "xray"}
    sent_files = [file_of(content, f"DOE^JANE-{number}.png") for number, content in enumerate(files)]
    return client.post("/studies/new/", {**fields, "file": sent_files}, headers=headers)


def test_a_plain_form_opens_fills_and_sends_a_study(doctors: Client, xray: Deployment) -> None:
    answer = new_study(doctors, picture(), picture(20))
    study = Study.objects.get()
    assert (answer.status_code, answer.headers["Location"]) == (302, f"/studies/{study.pk}/")
    assert study.state == StudyState.SENT
    assert Job.objects.count() == 2
    assert b"DOE" not in doctors.get(f"/studies/{study.pk}/").content


def test_a_double_click_sends_one_study(doctors: Client, xray: Deployment) -> None:
    identity = new_id()
    answers = [new_study(doctors, picture(), identity=identity) for _ in range(2)]
    assert {answer.headers["Location"] for answer in answers} == {f"/studies/{identity}/"}
    assert (Study.objects.count(), StudyPicture.objects.count(), Job.objects.count()) == (1, 1, 1)


def test_a_form_cannot_take_the_id_of_anothers_study(doctors: Client, second: User, xray: Deployment) -> None:
    taken = draft(second, xray)
    answer = new_study(doctors, picture(), identity=taken.pk)
    assert answer.status_code == 409
    assert Study.objects.get().created_by == second


def test_a_script_sends_file_by_file_with_black_areas(doctors: Client, doctor: User, xray: Deployment) -> None:
    opened = new_study(doctors, headers=SCRIPT)
    assert opened.status_code == 201
    places = opened.json()
    body = {"file": file_of(picture()), "blackouts": json.dumps([[0, 0, 30, 20]])}
    assert doctors.post(places["add"], body, headers=SCRIPT).status_code == 201
    study = Study.objects.get()
    kept = Image.open(BytesIO(sealing.open_file(study, study.pictures.get().name)))
    assert np.asarray(kept.convert("L"))[:20, :30].max() == 0
    assert study.state == StudyState.DRAFT
    assert doctors.post(places["send"], headers=SCRIPT).json() == {"address": places["address"]}
    assert doctors.post(places["send"], headers=SCRIPT).json() == {"address": places["address"]}
    assert Job.objects.count() == 1


@pytest.mark.parametrize(
    "areas",
    ["{", '"x"', "[[1, 2, 3]]", "[[1, 2, 3, true]]", "[[-1, 0, 5, 5]]", "[[0, 0, 0, 5]]", "[" * 100_000],
    ids=range(7),
)
def test_areas_that_are_none_are_refused(doctors: Client, doctor: User, xray: Deployment, areas: str) -> None:
    study = draft(doctor, xray)
    body = {"file": file_of(picture()), "blackouts": areas}
    assert doctors.post(f"/studies/{study.pk}/add/", body, headers=SCRIPT).status_code == 422
    assert not study.pictures.exists()


@pytest.mark.parametrize("files", [[], [picture(), picture(20)]])
def test_one_file_at_a_time_means_one(doctors: Client, doctor: User, xray: Deployment, files: list[bytes]) -> None:
    study = draft(doctor, xray)
    body = {"file": [file_of(content) for content in files]}
    answer = doctors.post(f"/studies/{study.pk}/add/", body, headers=SCRIPT)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["file"]
    assert not study.pictures.exists()


def test_a_heic_picture_is_named_and_the_fit_ones_are_kept(doctors: Client, xray: Deployment) -> None:
    answer = new_study(doctors, picture(), HEIC)
    study = Study.objects.get()
    assert study.state == StudyState.DRAFT
    assert study.pictures.count() == 1
    page = doctors.get(answer.headers["Location"]).content.decode()
    assert "File 2" in page
    assert "HEIC" in page
    refused = doctors.post("/studies/preview/", {"file": file_of(HEIC)}, headers=SCRIPT)
    assert refused.status_code in (415, 422)
    assert "HEIC" in refused.json()["detail"]


def test_a_preview_shows_the_pixels_and_keeps_nothing(doctors: Client, xray: Deployment) -> None:
    answer = doctors.post("/studies/preview/", {"file": file_of(picture())}, headers=SCRIPT)
    assert answer.status_code == 200
    assert split_frame(answer.content)[0].channels == 1
    assert not Study.objects.exists()
    assert not sealing._FILES.path.exists()


def test_a_form_that_says_too_little_keeps_what_was_typed(doctors: Client, xray: Deployment) -> None:
    answer = doctors.post("/studies/new/", {"study": str(new_id()), "deployment": "xray"})
    assert answer.status_code == 422
    assert "This field is required." in answer.content.decode()
    told = doctors.post("/studies/new/", {"study": "x", "reference": "1", "deployment": "xray"}, headers=SCRIPT)
    assert told.status_code == 422
    assert not Study.objects.exists()


def test_a_draft_survives_a_session_that_ended(doctors: Client, doctor: User, xray: Deployment) -> None:
    study = draft(doctor, xray, picture())
    doctors.logout()
    answer = doctors.post(f"/studies/{study.pk}/add/", {"file": file_of(picture(20))})
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith("/accounts/login/")
    again = signed_in(doctor)
    page = again.get(f"/studies/{study.pk}/").content.decode()
    assert REFERENCE in page
    assert "Picture 1" in page


def test_a_draft_is_its_makers_alone(second: User, doctor: User, xray: Deployment) -> None:
    study = draft(doctor, xray, picture())
    assert signed_in(second).get(f"/studies/{study.pk}/").status_code == 404


def test_a_picture_is_removed_and_a_draft_discarded(doctors: Client, doctor: User, xray: Deployment) -> None:
    study = draft(doctor, xray, picture(), picture(20))
    first = study.pictures.all()[0]
    assert doctors.post(f"/studies/{study.pk}/pictures/{first.pk}/remove/").status_code == 302
    assert study.pictures.count() == 1
    assert doctors.post(f"/studies/{study.pk}/discard/").status_code == 302
    assert not Study.objects.exists()


def test_a_study_says_that_no_worker_runs_and_that_the_picture_is_safe(doctors: Client, sent: Study) -> None:
    Worker.objects.all().delete()
    page = doctors.get(f"/studies/{sent.pk}/").content.decode()
    assert "No worker is running" in page
    assert "Your pictures are safe" in page
    assert 'data-live="5"' in page


def test_a_page_asks_often_while_the_suggestion_is_due_and_less_often_later(doctors: Client, sent: Study) -> None:
    beat("a worker")
    assert b'data-live="0.25"' in doctors.get(f"/studies/{sent.pk}/").content
    Study.objects.update(sent_at=timezone.now() - timedelta(minutes=1))
    assert b'data-live="1"' in doctors.get(f"/studies/{sent.pk}/state/").content


def test_the_suggestion_comes_by_the_live_part(doctors: Client, sent: Study) -> None:
    run_batch("x")
    live = doctors.get(f"/studies/{sent.pk}/state/", headers={"HX-Request": "true"})
    page = live.content.decode()
    assert "One finding is above its threshold: dark" in page
    assert 'hx-swap-oob="true"' in page
    assert "data-live" not in page


def test_waiting_costs_no_redrawing(doctors: Client, sent: Study) -> None:
    live = doctors.get(f"/studies/{sent.pk}/state/")
    assert "In the queue" in live.content.decode() or "No worker" in live.content.decode()
    unchanged = doctors.get(f"/studies/{sent.pk}/state/", headers={"If-None-Match": live.headers["ETag"]})
    assert unchanged.status_code == 304
    assert not AuditEvent.objects.filter(action="study.view").exists()


def test_a_result_says_what_it_is_and_claims_no_more(doctors: Client, ready: Study) -> None:
    page = doctors.get(f"/studies/{ready.pk}/").content.decode()
    assert "Not for diagnosis." in page
    assert "A score is not a probability." in page
    assert "Made for: PA or AP view, DX or CR, age 18-90." in page
    assert "The pictures do not all say their modality, view or age" in page
    assert "Nothing is on record" in page


def verdict(client: Client, study: Study, **fields: Any) -> Any:
    return client.post(f"/studies/{study.pk}/verdict/", {"expected_number": "0", **fields})


def test_agreeing_is_one_click_and_correcting_a_form(doctors: Client, ready: Study) -> None:
    doctors.get(f"/studies/{ready.pk}/")
    assert verdict(doctors, ready, answer="agree").status_code == 302
    corrected = {"answer": "correct", "labels": ["bright"], "certainty": "0.75", "comment": "<b>x</b>"}
    assert verdict(doctors, ready, expected_number="1", **corrected).status_code == 302
    latest = Verdict.objects.get(latest=True)
    assert (latest.labels, latest.certainty, latest.number) == (["bright"], 0.75, 2)
    page = doctors.get(f"/studies/{ready.pk}/").content.decode()
    assert "Earlier answers (1)" in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page


def test_two_tabs_do_not_overwrite_each_other(doctors: Client, ready: Study) -> None:
    doctors.get(f"/studies/{ready.pk}/")
    verdict(doctors, ready, answer="agree")
    answer = verdict(doctors, ready, answer="correct", labels=["bright"], comment="typed")
    assert answer.status_code == 409
    page = answer.content.decode()
    assert "in another tab" in page
    assert "typed" in page
    assert Verdict.objects.count() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"answer": "correct", "labels": ["fracture"]},
        {"answer": "maybe"},
        {"answer": "correct", "certainty": "2"},
        {"answer": "correct", "comment": "x" * 3000},
        {"answer": "agree", "expected_number": "soon"},
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(doctors: Client, ready: Study, wrong: dict[str, Any]) -> None:
    doctors.get(f"/studies/{ready.pk}/")
    assert verdict(doctors, ready, **wrong).status_code == 422
    assert not Verdict.objects.exists()


def test_reading_first_hides_the_suggestion_until_the_answer(doctors: Client, doctor: User, xray: Deployment) -> None:
    ReadingPolicy.objects.create(deployment=xray, read_first=True)
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture()))
    run_batch("x")
    study.pictures.update(heat_map="0" * 32)
    shown = [path for path in looks(study) if path.endswith("heat/")]
    for path in (f"/studies/{study.pk}/", f"/studies/{study.pk}/state/"):
        page = doctors.get(path).content.decode()
        assert "above its threshold" not in page
        assert 'class="scores"' not in page
        assert "data-heat-label" not in page
        assert "Answer first" in page
    assert {doctors.get(path).status_code for path in shown} == {404}
    assert verdict(doctors, study, answer="correct", labels=["dark"]).status_code == 302
    assert Verdict.objects.get().blinded
    assert "One finding is above its threshold: dark" in doctors.get(f"/studies/{study.pk}/").content.decode()


def test_erasing_asks_for_the_case_reference(doctors: Client, ready: Study) -> None:
    doctors.post(f"/studies/{ready.pk}/erase/", {"reference": "something"})
    ready.refresh_from_db()
    assert ready.wrapped_key is not None
    doctors.post(f"/studies/{ready.pk}/erase/", {"reference": REFERENCE})
    ready.refresh_from_db()
    assert ready.state == StudyState.ERASED
    gone = doctors.get(f"/studies/{ready.pk}/")
    assert gone.status_code == 410
    assert REFERENCE not in gone.content.decode()


def test_the_worklist_costs_the_same_with_more_studies(
    doctors: Client, doctor: User, xray: Deployment, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    draft(doctor, xray, reference="<b>one</b>")
    doctors.get("/studies/")
    with django_assert_num_queries(6):
        page = doctors.get("/studies/").content.decode()
    assert "&lt;b&gt;one&lt;/b&gt;" in page
    for number in range(5):
        draft(doctor, xray, reference=f"case {number}")
    with django_assert_num_queries(6):
        assert "case 4" in doctors.get("/studies/").content.decode()


@pytest.mark.parametrize(
    "query", ["status=nonsense", "page=x", "team=nowhere", "team=%00", "page=%00", "case=x", "case=%C3%A9", "case=AAAA"]
)
def test_a_worklist_asked_nonsense_still_answers(doctors: Client, query: str) -> None:
    assert doctors.get(f"/studies/?{query}").status_code == 200


def test_settings_say_what_studies_are_for_and_how_they_are_read(owners: Client, xray: Deployment) -> None:
    at = "/deployments/xray/"
    assert b"What studies are for" in owners.get(f"{at}settings/").content
    unnamed = owners.post(f"{at}purpose/", {"purpose": "clinical", "approver": ""})
    assert unnamed.status_code == 422
    assert "Name who approved clinical use." in unnamed.content.decode()
    assert owners.post(f"{at}purpose/", {"purpose": "clinical", "approver": "Dr. Berg"}).status_code == 302
    policy = {"read_first": "on", "readers": "2", "retention_days": "30"}
    assert owners.post(f"{at}reading/", policy).status_code == 302
    xray.refresh_from_db()
    assert (xray.purpose, xray.approver) == ("clinical", "Dr. Berg")
    kept = ReadingPolicy.objects.get(deployment=xray)
    assert (kept.read_first, kept.readers, kept.retention_days) == (True, 2, 30)
    assert owners.post(f"{at}reading/", {**policy, "readers": "3"}).status_code == 422


def test_only_who_deploys_changes_how_studies_are_read(colleagues: Client, doctors: Client, xray: Deployment) -> None:
    for path in ("/deployments/xray/purpose/", "/deployments/xray/reading/"):
        assert colleagues.post(path, {"purpose": "clinical"}).status_code == 403
        assert doctors.post(path, {"purpose": "clinical"}).status_code == 404
