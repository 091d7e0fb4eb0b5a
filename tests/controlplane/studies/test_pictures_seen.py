"""What people see of a study's pictures: full depth, thumbnails, the model's view, and where the model looked."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from django.utils import timezone
from PIL import Image

from controlplane.accounts.models import Team, User
from controlplane.celery import app
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError
from controlplane.jobs import dispatch
from controlplane.jobs.models import Job
from controlplane.jobs.running import run_batch
from controlplane.studies import explaining, mapping, sealing, viewing
from controlplane.studies.models import Study, StudyPicture
from controlplane.studies.services.drafts import add_picture, open_draft
from controlplane.studies.services.erasing import erase_study
from controlplane.studies.services.sending import send_study
from examples.golden_dicom.make import cases
from inference.runtime.explain import HeatMap
from inference.runtime.viewing import display_frame, split_frame
from tests.controlplane.cast import ACTOR
from tests.controlplane.deployments.rows import make_deployment, make_model
from tests.controlplane.jobs.conftest import GREY_8, children, home, serve, store_version
from tests.inference import toys
from tests.inference.runtime.picture_files import encoded

__all__ = ["children", "home"]
pytestmark = pytest.mark.django_db

GOLDEN = {case.name: case for case in cases()}
Draft = Callable[..., Study]


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, uuid.UUID]]:
    """The messages that went to the broker."""
    messages: list[tuple[str, str, uuid.UUID]] = []
    monkeypatch.setattr(app, "send_task", lambda name, args, queue: messages.append((name, queue, uuid.UUID(args[0]))))
    monkeypatch.setattr(dispatch, "_broker_down_until", 0.0)
    return messages


def corner() -> bytes:
    """Two scores of a grey 8 x 8 picture: the mean of its top left quarter, and 0.25 whatever it shows."""
    weights = np.zeros((64, 2), np.float32)
    weights.reshape(8, 8, 2)[:4, :4, 0] = 1 / 16
    return toys.saved(
        [
            toys.node("Flatten", ["picture"], ["flat"], axis=1),
            toys.node("MatMul", ["flat", "weights"], ["sum"]),
            toys.node("Add", ["sum", "offset"], ["scores"]),
        ],
        [toys.tensor("picture", toys.FLOAT, ["n", 1, 8, 8])],
        [toys.tensor("scores", toys.FLOAT, ["n", 2])],
        [toys.constant("weights", weights), toys.constant("offset", np.array([0, 0.25], np.float32))],
    )


@pytest.fixture
def chest(home: Path, team: Team) -> Deployment:
    model = make_model(team, "corner")
    store_version(
        home, model, corner(), task="image-multilabel", activation="none", labels=["corner", "same"],
        preprocessor=GREY_8,
    )  # fmt: skip
    deployment = make_deployment(team, model, "chest")
    serve(deployment, v1=10_000)
    return deployment


@pytest.fixture
def draft(chest: Deployment, doctor: User) -> Draft:
    def one(*contents: bytes) -> Study:
        study = open_draft(actor=ACTOR, user=doctor, deployment=chest, reference="Case 7")
        for content in contents:
            add_picture(actor=ACTOR, study=study, content=content)
        return study

    return one


def lit_corner() -> bytes:
    """160 wide and 80 high: the top left eighth of it bright, the rest dark."""
    pixels = np.full((80, 160), 40, np.uint8)
    pixels[:30, :60] = 230
    return encoded(pixels)


def suggested(study: Study) -> StudyPicture:
    """The first picture after its job has run."""
    send_study(actor=ACTOR, study=study)
    while run_batch("x"):
        pass
    picture = StudyPicture.objects.select_related("study", "job").get(study=study, position=1)
    assert picture.job is not None
    assert picture.job.status == "succeeded", picture.job.error
    return picture


def seen(png: bytes) -> np.ndarray:
    with Image.open(BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


@pytest.mark.parametrize("name", ["monochrome1_12", "rescale_12", "modality_lut_12", "voi_lut_12", "signed_16"])
def test_a_stored_picture_keeps_its_depth_and_its_windows(draft: Draft, name: str) -> None:
    case = GOLDEN[name]
    picture = draft(case.file()).pictures.get()
    header, values = split_frame(viewing.pixels(picture))
    whole, same = split_frame(display_frame(case.file()))
    assert header == whole
    np.testing.assert_array_equal(values, same)
    assert (picture.width, picture.height) == (header.columns, header.rows)


def test_a_thumbnail_and_the_models_view_are_small_pictures(draft: Draft) -> None:
    study = draft(GOLDEN["monochrome1_12"].file())
    picture = study.pictures.select_related("study").get()
    small = seen(viewing.thumbnail(picture, 24))
    assert max(small.shape) == 24
    with pytest.raises(DomainError) as refused:
        viewing.model_view(picture)
    assert refused.value.code == "not_found"

    model = seen(viewing.model_view(suggested(study)))

    wanted = Image.fromarray(GOLDEN["monochrome1_12"].shown).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(model, np.asarray(wanted))


def test_nothing_is_seen_of_an_erased_study(draft: Draft) -> None:
    picture = suggested(draft(lit_corner()))
    assert mapping.explain(picture.pk)
    erase_study(actor=ACTOR, study=picture.study)
    stale = StudyPicture.objects.select_related("study").get(pk=picture.pk)
    for view in (viewing.pixels, viewing.thumbnail, viewing.model_view):
        with pytest.raises(DomainError) as refused:
            view(stale)
        assert refused.value.code == "gone"
    assert stale.heat_map == ""
    assert not mapping.explain(picture.pk)


def test_the_map_shows_what_the_score_rests_on_in_the_pictures_own_shape(draft: Draft) -> None:
    picture = suggested(draft(lit_corner()))

    assert mapping.explain(picture.pk)

    picture.refresh_from_db()
    drawn = seen(explaining.heat_map_png(picture, "corner"))
    assert drawn.shape == (80, 160, 4)
    alpha = drawn[..., 3].astype(float)
    hottest = np.unravel_index(alpha.argmax(), alpha.shape)
    assert hottest[0] < 40
    assert hottest[1] < 80
    assert alpha[:40, :80].sum() > 0.8 * alpha.sum()
    assert not alpha[60:].any()
    assert not alpha[:, 120:].any()
    assert not seen(explaining.heat_map_png(picture, "same"))[..., 3].any()
    with pytest.raises(DomainError) as refused:
        explaining.heat_map_png(picture, "<b>")
    assert refused.value.code == "unknown_label"


def test_a_stored_map_is_encrypted_and_computed_once(draft: Draft, home: Path) -> None:
    picture = suggested(draft(lit_corner()))
    assert mapping.explain(picture.pk)
    assert not mapping.explain(picture.pk)
    picture.refresh_from_db()
    stored = next(home.rglob(picture.heat_map)).read_bytes()
    assert b"corner" not in stored
    heat = msgspec.msgpack.decode(sealing.open_file(picture.study, picture.heat_map), type=HeatMap)
    assert heat.labels == ["corner", "same"]
    assert heat.scores[1] == pytest.approx(0.25)
    assert len(list((home / "pictures" / "studies").glob("*/*"))) == 2


def test_a_draft_and_a_picture_without_a_suggestion_get_no_map(draft: Draft) -> None:
    study = draft(lit_corner())
    picture = study.pictures.get()
    assert not mapping.explain(picture.pk)
    send_study(actor=ACTOR, study=study)
    assert not mapping.explain(picture.pk)
    assert not mapping.explain(uuid.uuid4())
    with pytest.raises(DomainError) as refused:
        explaining.heat_map_png(picture, "corner")
    assert refused.value.code == "not_found"


def test_a_job_that_waits_is_run_before_the_map_goes_on(draft: Draft) -> None:
    first = suggested(draft(lit_corner()))
    other = draft(GOLDEN["plain_8"].file())
    send_study(actor=ACTOR, study=other)
    assert Job.objects.filter(status="queued").count() == 1

    assert mapping.explain(first.pk)

    assert Job.objects.get(study_picture__study=other).status == "succeeded"


def test_a_map_that_had_to_wait_too_long_is_put_back_in_its_queue(
    draft: Draft, sent: list[tuple[str, str, uuid.UUID]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = suggested(draft(lit_corner()))
    send_study(actor=ACTOR, study=draft(GOLDEN["plain_8"].file()))
    sent.clear()
    monkeypatch.setattr(mapping, "PATIENCE_S", 0.0)

    assert not mapping.explain(first.pk)

    assert sent == [("studies.explain", "celery", first.pk)]
    assert not Job.objects.filter(status="queued").exists()


def test_a_map_that_cannot_be_had_leaves_the_suggestion_as_it_is(
    draft: Draft, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = suggested(draft(lit_corner()))
    next(home.rglob(picture.name)).unlink()
    assert not mapping.explain(picture.pk)
    assert "no heat map" in caplog.text
    picture.refresh_from_db()
    assert (picture.heat_map, picture.job.status if picture.job else "") == ("", "succeeded")


def test_a_study_erased_meanwhile_keeps_no_map(draft: Draft, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = suggested(draft(lit_corner()))
    computed = mapping.heat_map

    def slow(*given: Any) -> HeatMap:
        heat = computed(*given)
        erase_study(actor=ACTOR, study=picture.study)
        return heat

    monkeypatch.setattr(mapping, "heat_map", slow)
    assert not mapping.explain(picture.pk)
    picture.refresh_from_db()
    assert picture.heat_map == ""
    # That of the picture itself goes when the erasure is committed.
    assert len(list((home / "pictures" / "studies").glob("*/*"))) == 1


def test_a_job_that_succeeds_asks_for_the_map_of_its_picture_alone(
    draft: Draft, sent: list[tuple[str, str, uuid.UUID]], django_capture_on_commit_callbacks: Any
) -> None:
    study = draft(lit_corner())
    send_study(actor=ACTOR, study=study)
    sent.clear()
    with django_capture_on_commit_callbacks(execute=True):
        assert run_batch("x") == 1
    assert sent == [("studies.explain", "celery", study.pictures.get().pk)]


def test_a_lost_message_is_sent_again_for_some_minutes(draft: Draft, sent: list[tuple[str, str, uuid.UUID]]) -> None:
    picture = suggested(draft(lit_corner()))
    sent.clear()
    now = timezone.now()
    for age, again in ((timedelta(seconds=5), 0), (timedelta(minutes=2), 1), (timedelta(minutes=20), 0)):
        Job.objects.update(finished_at=now - age)
        assert explaining.resend() == again
    assert sent == [("studies.explain", "celery", picture.pk)]
    Job.objects.update(finished_at=now - timedelta(minutes=2))
    mapping.explain(picture.pk)
    assert explaining.resend() == 0
