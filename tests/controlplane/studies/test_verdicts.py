"""Verdicts: agree, correct, change; two readers and adjudication; read first; two tabs; what becomes feedback."""

import threading
from typing import Any

import pytest
from django.db import connection

from controlplane.accounts.models import Role, Team, User
from controlplane.audit.models import AuditEvent
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError
from controlplane.jobs.models import Job
from controlplane.jobs.running import run_batch
from controlplane.predictions.models import Feedback, Prediction
from controlplane.studies.models import Reading, Study, StudyState, Verdict
from controlplane.studies.queries import find_study, shows_suggestion, visible_verdicts
from controlplane.studies.services import verdicts
from controlplane.studies.services.policy import set_policy
from controlplane.studies.services.sending import send_study
from controlplane.studies.services.verdicts import give_late_feedback, open_study, show_suggestion
from tests.controlplane.cast import new_user, signed_in
from tests.controlplane.studies.conftest import Say, as_actor, draft, picture

pytestmark = pytest.mark.django_db


def counted() -> list[tuple[dict[str, Any], bool, bool | None]]:
    held = Feedback.objects.filter(latest=True, state="counted").order_by("id")
    return [(feedback.truth, feedback.ungradable, feedback.blind) for feedback in held]


def policy(user: User, deployment: Deployment, *, read_first: bool = False, readers: int = 1) -> None:
    set_policy(actor=as_actor(user), deployment=deployment, read_first=read_first, readers=readers, retention_days=90)


def test_agreeing_is_saying_the_labels_above_their_threshold(ready: Study, doctor: User, say: Say) -> None:
    verdict = say(ready, doctor, certainty=0.8, comment="as it says")

    assert (verdict.answer, verdict.labels, verdict.blinded, verdict.number) == ("agree", ["dark"], False, 1)
    assert Study.objects.get().state == StudyState.READ
    assert counted() == [({"labels": ["dark"]}, False, False)]
    assert Feedback.objects.get().prediction_id == ready.pictures.get().job_id
    assert Feedback.objects.get().comment == ""
    assert b"as it says" not in bytes(Verdict.objects.get().comment)
    event = AuditEvent.objects.filter(action="study.verdict").get()
    assert event.after == {"part": "reader", "number": 1, "blinded": False}


@pytest.mark.parametrize("shades", [(0,), (0, 20)])
def test_a_verdict_on_several_views_counts_for_each_and_the_accuracy_tab_says_so(
    doctor: User, colleague: User, xray: Deployment, say: Say, shades: tuple[int, ...]
) -> None:
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, *map(picture, shades)))
    while run_batch("x"):
        pass
    say(study, doctor, "correct", "dark")
    assert [truth for truth, _, _ in counted()] == [{"labels": ["dark"]}] * len(shades)
    page = signed_in(colleague).get("/deployments/xray/accuracy/").content.decode()
    assert "By version" in page
    assert ("Some studies have several pictures." in page) == (len(shades) > 1)


def test_a_verdict_can_be_changed_and_its_history_stays(ready: Study, doctor: User, say: Say) -> None:
    say(ready, doctor)
    say(ready, doctor, "correct", "bright", "dark", number=1)
    changed = say(ready, doctor, "ungradable", number=2)
    assert say(ready, doctor, "ungradable", number=2) == changed

    history = visible_verdicts(ready, doctor)
    assert [(verdict.number, verdict.answer, verdict.labels, verdict.latest) for verdict in history] == [
        (3, "ungradable", [], True),
        (2, "correct", ["dark", "bright"], False),
        (1, "agree", ["dark"], False),
    ]
    assert counted() == [({}, True, False)]


def test_two_tabs_do_not_overwrite_each_other(ready: Study, doctor: User, say: Say) -> None:
    say(ready, doctor, "correct", "bright")
    with pytest.raises(DomainError) as refused:
        say(ready, doctor, "correct", "dark", number=0)
    assert refused.value.code == "conflict"
    assert refused.value.extra["current_number"] == 1
    assert refused.value.extra["current"]["labels"] == ["bright"]
    assert Verdict.objects.get().labels == ["bright"]


@pytest.mark.django_db(transaction=True)
def test_a_double_click_gives_one_verdict(ready: Study, doctor: User, say: Say) -> None:
    said: list[Any] = []

    def click() -> None:
        said.append(say(ready, doctor).pk)
        connection.close()

    threads = [threading.Thread(target=click) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(said) == 4
    assert len(set(said)) == Verdict.objects.count() == len(counted()) == 1


def test_what_makes_no_sense_is_refused(ready: Study, doctor: User, say: Say) -> None:
    for answer, labels, fields, code in (
        ("correct", ["mass"], {}, "unknown_label"),
        ("correct", ["<script>"], {}, "unknown_label"),
        ("maybe", [], {}, "validation_error"),
        ("agree", [], {"certainty": 1.5}, "validation_error"),
        ("agree", [], {"comment": "x" * 2001}, "validation_error"),
        ("agree", [], {"comment": "a\0"}, "bad_text"),
    ):
        with pytest.raises(DomainError) as refused:
            say(ready, doctor, answer, *labels, **fields)
        assert refused.value.code == code
    assert not Verdict.objects.exists()
    assert Study.objects.get().state == StudyState.SENT


def test_nobody_else_gives_a_verdict(
    ready: Study, foreign_doctor: User, colleague: User, owner: User, second: User, doctor: User, say: Say
) -> None:
    for user in (foreign_doctor, colleague, owner):
        with pytest.raises(DomainError) as refused:
            say(ready, user)
        assert refused.value.code == "not_found"
    say(ready, doctor)
    with pytest.raises(DomainError, match="has been read"):
        say(ready, second)
    assert Verdict.objects.count() == 1


def test_without_the_suggestion_there_is_no_verdict_yet(sent: Study, doctor: User, say: Say) -> None:
    for answer in ("agree", "correct", "ungradable"):
        with pytest.raises(DomainError) as refused:
            say(sent, doctor, answer, *(["dark"] if answer == "correct" else []))
        assert refused.value.code == "conflict"
    Job.objects.update(status="failed", finished_at=sent.sent_at, error={"code": "internal", "detail": "Broken."})
    with pytest.raises(DomainError):
        say(sent, doctor)

    assert say(sent, doctor, "correct", "dark").labels == ["dark"]
    assert Study.objects.get().state == StudyState.READ
    assert counted() == []


def test_agreeing_needs_a_look(ready: Study, doctor: User) -> None:
    from controlplane.studies.services.verdicts import give_verdict

    with pytest.raises(DomainError, match="Look at the suggestion"):
        give_verdict(actor=as_actor(doctor), study=ready, user=doctor, answer="agree", expected_number=0)


def test_in_the_read_first_mode_the_answer_comes_first_and_is_blind(
    doctor: User, second: User, xray: Deployment, say: Say
) -> None:
    policy(doctor, xray, read_first=True)
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture(), picture(9)))
    assert not shows_suggestion(study, doctor)
    with pytest.raises(DomainError):
        say(study, doctor)

    first = say(study, doctor, "correct", "bright")

    assert (first.blinded, Study.objects.get().state) == (True, StudyState.READ)
    assert counted() == []
    run_batch("x")
    assert give_late_feedback() == 2
    assert give_late_feedback() == 0
    assert counted() == [({"labels": ["bright"]}, False, True)] * 2
    assert Feedback.objects.filter(given_by="user:doctor", user=doctor).count() == 2
    assert show_suggestion(actor=as_actor(doctor), study=study, user=doctor) is not None

    changed = say(study, doctor, "agree", number=1)
    assert (changed.blinded, changed.labels) == (False, ["dark", "bright"])
    assert {blind for _, _, blind in counted()} == {False}


@pytest.mark.parametrize(
    "page",
    [
        "/jobs/{job}/",
        "/deployments/xray/predictions/{job}/",
        "/deployments/xray/predictions/",
        "/api/jobs/{job}/",
        "/api/predictions/{job}/",
    ],
)
def test_who_looked_at_the_scores_before_they_read_studies_does_not_answer_blind(
    doctor: User, team: Team, xray: Deployment, say: Say, page: str
) -> None:
    policy(doctor, xray, read_first=True, readers=2)
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture()))
    run_batch("x")
    scientist = new_user("scientist", team, Role.DATA_SCIENTIST)
    address = page.format(job=study.pictures.get().job_id)
    assert signed_in(scientist).get(address).status_code == 200
    scientist.memberships.create(team=team, role=Role.DOCTOR)
    doctor.memberships.create(team=team, role=Role.DATA_SCIENTIST)
    # A doctor is shown nothing there before the answer, so looking changes nothing.
    assert signed_in(doctor).get(address).status_code == 200

    people = User.objects.filter(pk__in=[doctor.pk, scientist.pk])
    blinded = {reader.username: say(study, reader, "correct", "dark").blinded for reader in people}

    assert blinded == {"doctor": True, "scientist": False}


def test_late_feedback_that_is_refused_is_asked_once_and_again_when_the_verdict_changes(
    doctor: User, xray: Deployment, say: Say
) -> None:
    policy(doctor, xray, read_first=True)
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture()))
    say(study, doctor, "correct", "bright")
    run_batch("x")
    Prediction.objects.update(outcome="error")

    assert [give_late_feedback(), give_late_feedback()] == [1, 0]
    refused = Feedback.objects.get()
    assert (refused.state, refused.code, refused.latest) == ("rejected", "not_found", False)
    assert (refused.truth, refused.prediction_id) == ({"labels": ["bright"]}, study.pictures.get().job_id)

    Prediction.objects.update(outcome="ok")
    assert give_late_feedback() == 0
    say(study, doctor, "correct", "dark", number=1)
    assert [truth for truth, _, _ in counted()] == [{"labels": ["dark"]}]
    assert give_late_feedback() == 0


@pytest.mark.django_db(transaction=True)
def test_late_feedback_is_not_laid_over_an_answer_that_is_changed_meanwhile(
    doctor: User, xray: Deployment, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy(doctor, xray, read_first=True)
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture()))
    say(study, doctor, "correct", "bright")
    run_batch("x")
    counting = verdicts._counting
    threads: list[threading.Thread] = []

    def change() -> None:
        say(study, doctor, "correct", "dark", number=1)
        connection.close()

    def at_the_wrong_moment(*args: Any) -> Any:
        found = counting(*args)
        if not threads:
            threads.append(threading.Thread(target=change))
            threads[0].start()
            # It ends only where nothing holds it up.
            threads[0].join(timeout=1)
        return found

    monkeypatch.setattr(verdicts, "_counting", at_the_wrong_moment)
    give_late_feedback()
    threads[0].join()

    assert [truth for truth, _, _ in counted()] == [{"labels": ["dark"]}]


def test_a_suggestion_is_hidden_until_the_answer_and_its_first_sight_is_dated(
    doctor: User, colleague: User, xray: Deployment, say: Say
) -> None:
    policy(doctor, xray, read_first=True)
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture()))
    run_batch("x")
    open_study(actor=as_actor(doctor), study=study, user=doctor)
    assert show_suggestion(actor=as_actor(doctor), study=study, user=doctor) is None
    assert Reading.objects.get().shown_at is None

    say(study, doctor, "correct")

    assert counted() == [({"labels": []}, False, True)]
    told = show_suggestion(actor=as_actor(doctor), study=study, user=doctor)
    assert told is not None
    assert told.sentence.startswith("One finding is above its threshold: dark (score 0.")
    assert Reading.objects.get().shown_at is not None


def test_two_readers_who_agree_make_it_read(doctor: User, second: User, xray: Deployment, say: Say) -> None:
    policy(doctor, xray, readers=2)
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture()))
    run_batch("x")
    say(study, doctor)
    assert find_study(second, study.pk, actor=as_actor(second)).status == "needs_second"  # type: ignore[attr-defined]  # annotated by with_status
    assert visible_verdicts(study, second) == []
    assert len(visible_verdicts(study, doctor)) == 1
    assert counted() == []

    say(study, second, "correct", "dark")

    assert Study.objects.get().state == StudyState.READ
    assert len(visible_verdicts(study, second)) == 2
    assert counted() == [({"labels": ["dark"]}, False, False)]


def test_two_readers_who_differ_need_a_third(
    doctor: User, second: User, third: User, xray: Deployment, say: Say
) -> None:
    policy(doctor, xray, readers=2)
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture()))
    run_batch("x")
    say(study, doctor)
    say(study, second, "correct", "bright")
    status = find_study(third, study.pk, actor=as_actor(third)).status  # type: ignore[attr-defined]  # annotated by with_status
    assert (status, Study.objects.get().state, counted()) == ("needs_adjudication", StudyState.SENT, [])
    assert len(visible_verdicts(study, third)) == 2

    decided = say(study, third, "correct", "bright")

    assert (decided.part, Study.objects.get().state) == ("adjudicator", StudyState.READ)
    assert counted() == [({"labels": ["bright"]}, False, False)]
    # A reader may still change their word; the adjudicator's counts.
    say(study, second, "agree", number=1)
    assert (Study.objects.get().state, counted()) == (StudyState.READ, [({"labels": ["bright"]}, False, False)])


def test_a_change_that_ends_an_agreement_opens_the_study_again(
    doctor: User, second: User, xray: Deployment, say: Say
) -> None:
    policy(doctor, xray, readers=2)
    study = send_study(actor=as_actor(doctor), study=draft(doctor, xray, picture()))
    run_batch("x")
    say(study, doctor)
    say(study, second)
    say(study, second, "ungradable", number=1)
    assert Study.objects.get().state == StudyState.SENT
    say(study, doctor, "ungradable", number=1)
    assert (Study.objects.get().state, counted()) == (StudyState.READ, [({}, True, False)])
