"""Bad input to the doctor's form, and workers that die, on the whole product: table B rows 37 to 49 and the rest."""

import contextlib
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.controlplane.jobs.conftest import brightness
from tests.e2e.clinic import (
    Person,
    count,
    deploy_findings,
    hidden,
    identity,
    make_people,
    picture_ids,
    rows,
    scores_of,
    signed_in,
    standing,
    text_of,
)
from tests.e2e.test_bad_pictures import JPIP, REFUSED, grey
from tests.inference.runtime.picture_files import chest, dicom, encoded, png_chunk
from tests.services import Product

pytestmark = pytest.mark.timeout(600)

NAME = "bad-studies"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


@pytest.fixture(scope="module")
def clinic(product: Product) -> Iterator[Product]:
    """Two findings of any picture, dark and bright; doctors of two teams."""
    make_people(product, {"bad-doctor": [("default", "doctor")], "bad-foreign": [("bad-other", "doctor")]})
    deploy_findings(product, NAME, brightness())
    yield product


@pytest.fixture
def doctor(clinic: Product) -> Iterator[Person]:
    with signed_in(clinic, "bad-doctor") as person:
        yield person


@pytest.fixture
def foreign(clinic: Product) -> Iterator[Person]:
    with signed_in(clinic, "bad-foreign") as person:
        yield person


def stored_files(clinic: Product) -> set[Path]:
    """What lies encrypted on the disk."""
    return {path for path in (clinic.home / "pictures").rglob("*") if path.is_file()}


def assert_refused(answer: httpx.Response, status: int, codes: set[str]) -> None:
    """A sentence for the doctor, with nothing of the inside."""
    told = answer.json()
    assert (answer.status_code, told["code"] in codes) == (status, True), told
    assert told["detail"][0].isupper()
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    for leaked in ("Traceback", 'File "', "site-packages", "SELECT ", "<svg", "<script"):
        assert leaked not in answer.text


# Pictures that are none


def test_what_is_no_picture_is_refused_and_the_draft_stays_as_it_was(clinic: Product, doctor: Person) -> None:
    """Rows 37 to 40 and 43 to 46, file by file as the page's script sends them."""
    address = doctor.draft(NAME, "refused", encoded(chest()))
    before = stored_files(clinic)
    for row, (content, status, codes) in REFUSED.items():
        # An empty file is none, whatever its sender calls it.
        expected = (415, {"not_an_image"}) if row == "37 nothing" else (status, codes)
        answer = doctor.script(f"{address}add/", {"file": ("picture", content())})
        assert answer.status_code == expected[0], (row, answer.text)
        assert_refused(answer, *expected)
    heic = doctor.script(f"{address}add/", {"file": ("picture", HEIC)})
    assert_refused(heic, 422, {"unsupported_image"})
    assert "HEIC" in heic.json()["detail"]
    assert len(picture_ids(doctor.page(address))) == 1
    assert stored_files(clinic) == before


def test_a_plain_form_says_which_files_were_refused_and_keeps_the_others(doctor: Person) -> None:
    damaged = encoded(chest(), "JPEG")[:-300]
    answer = doctor.send(NAME, "some refused", encoded(chest()), damaged, HEIC)
    assert answer.status_code == 302
    page = doctor.page(answer.headers["location"])
    assert "File 2:" in text_of(page)
    assert "File 3:" in text_of(page)
    assert "HEIC" in text_of(page)
    assert len(picture_ids(page)) == 1
    sent = doctor.post(f"{answer.headers['location']}send/")
    assert "Ready" in standing(doctor.answered(sent.headers["location"]))


def test_a_real_picture_over_the_pixel_cap_is_refused_with_its_size(doctor: Person) -> None:
    content = encoded(Image.new("1", (9_000, 6_000)))
    assert len(content) < 100_000
    address = doctor.draft(NAME, "too large")
    answer = doctor.script(f"{address}add/", {"file": ("picture", content)})
    assert_refused(answer, 422, {"too_many_pixels"})
    assert "9000 x 6000" in answer.json()["detail"]


def test_a_picture_larger_than_may_be_sent_is_refused_and_the_draft_kept(clinic: Product, doctor: Person) -> None:
    address = doctor.draft(NAME, "too heavy", encoded(chest()))
    answer = doctor.script(f"{address}add/", {"file": ("picture", os.urandom(70 * 1024**2))})
    assert answer.status_code == 413, answer.text
    assert len(picture_ids(doctor.page(address))) == 1


def test_a_file_that_names_an_address_fetches_nothing(doctor: Person) -> None:
    address = doctor.draft(NAME, "an address")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/pixels"
        content = dicom(syntax=JPIP, PixelData=None, PixelDataProviderURL=url)
        answer = doctor.script(f"{address}add/", {"file": ("picture", content)})
        assert_refused(answer, 422, {"unsupported_transfer_syntax"})
        with pytest.raises(TimeoutError):
            listener.accept()


def test_strange_pictures_that_can_be_read_are_answered_as_they_are_meant(doctor: Person) -> None:
    """Rows 40, 43 and 47, in one study."""
    bright, dark = grey(230), grey(10)
    turned = Image.fromarray(bright)
    exif = turned.getexif()
    exif[0x0112], exif[0x010F] = 6, "Jane Doe's camera"
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    sent = {
        "CMYK": (encoded(Image.fromarray(bright).convert("CMYK"), "JPEG"), "bright"),
        "RGBA": (encoded(Image.fromarray(bright).convert("RGBA")), "bright"),
        "palette": (encoded(Image.fromarray(grey(228)).convert("P")), "bright"),
        "16 bits": (encoded(Image.fromarray(bright.astype(np.uint16) * 256)), "bright"),
        "rotated": (encoded(turned, "JPEG", exif=exif), "bright"),
        "text": (encoded(dark)[:33] + png_chunk(b"tEXt", b"Name\0Jane Doe") + encoded(dark)[33:], "dark"),
        "ELF": (b"\x7fELF".ljust(128, b"\xcc") + dicom(bright, **window)[128:], "bright"),
        "MONOCHROME1": (dicom(grey(229), PhotometricInterpretation="MONOCHROME1", **window), "dark"),
        "signed": (dicom(grey(-900, np.int16), WindowCenter="0", WindowWidth="2000"), "dark"),
    }
    page = doctor.answered(doctor.sent(NAME, "strange", *(content for content, _ in sent.values())))
    shown = scores_of(page)
    assert [max(shown[number], key=shown[number].__getitem__) for number in sorted(shown)] == [
        label for _, label in sent.values()
    ]
    assert "Jane" not in page


def test_pictures_out_of_scope_or_with_burned_in_text_carry_a_warning_on_the_page(doctor: Person) -> None:
    colourful = np.zeros((64, 64, 3), np.uint8)
    colourful[:32, :, 0], colourful[32:, :, 2] = 255, 255
    sent = {
        "colour": encoded(colourful),
        "blank": encoded(np.full((64, 64), 128, np.uint8)),
        "burned in": dicom(BurnedInAnnotation="YES", PatientName="DOE^JANE", PatientID="4711"),
    }
    for words, content in (("colour", sent["colour"]), ("blank", sent["blank"]), ("burned", sent["burned in"])):
        page = doctor.answered(doctor.sent(NAME, "warned", content))
        assert "data-warning" in page, words
        assert words in text_of(page).lower(), text_of(page)
        assert "JANE" not in page


def test_a_header_that_lies_about_monochrome1_is_said_loudly(doctor: Person) -> None:
    """The pixels of an upright chest under a header that turns them round, and a header that contradicts itself."""
    lying = dicom(chest(256, 256), PhotometricInterpretation="MONOCHROME1")
    page = doctor.answered(doctor.sent(NAME, "lying", lying))
    assert "looks inverted" in text_of(page)
    honest = dicom(255 - chest(256, 256), PhotometricInterpretation="MONOCHROME1")
    page = doctor.answered(doctor.sent(NAME, "honest", honest))
    assert "looks inverted" not in text_of(page)
    contradiction = dicom(chest(256, 256), PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="IDENTITY")
    page = doctor.answered(doctor.sent(NAME, "contradicting itself", contradiction))
    pixels = f"{address_of(page)}pixels/"
    header = doctor.client.get(pixels).content[4:2000].decode("latin-1")
    assert "contradict" in header or "looks inverted" in text_of(page)


def address_of(page: str) -> str:
    """Where the first picture's views are."""
    start = page.index("/studies/", page.index("data-pixels"))
    return page[start : page.index("pixels/", start)]


def test_a_files_name_is_kept_shown_and_logged_nowhere(clinic: Product, doctor: Person) -> None:
    """Row 42."""
    mark = "QZNAME" + uuid.uuid4().hex[:8]
    names = [f"<svg onload=alert(1)>{mark}.png", f"../../{mark}", f"\u202e{mark}gnp.exe", f"Jane {mark} Doe 1970.png"]
    pictures = [encoded(grey(level)) for level in (10, 60, 110, 160)]
    answer = doctor.send(NAME, "names", *pictures, names=names)
    assert answer.status_code == 302
    page = doctor.answered(answer.headers["location"])
    assert len(picture_ids(page)) == 4
    for picture in picture_ids(page):
        shown = doctor.client.get(f"{answer.headers['location']}pictures/{picture}/thumbnail/")
        assert mark not in shown.headers["content-disposition"]
    assert mark not in page
    logs = b"".join(path.read_bytes() for path in (clinic.home / "log").rglob("*") if path.is_file())
    assert mark.encode() not in logs
    assert not [path for path in clinic.home.rglob("*") if mark in path.name]
    told = rows(clinic, "SELECT row_to_json(s)::text || row_to_json(p)::text AS whole FROM studies_study s"
                " JOIN studies_studypicture p ON p.study_id = s.id")  # fmt: skip
    events = rows(clinic, "SELECT row_to_json(e)::text AS whole FROM audit_auditevent e")
    assert mark not in "".join(str(row["whole"]) for row in told + events)


# The form


def test_a_form_without_its_token_is_refused(clinic: Product, doctor: Person) -> None:
    """Row 48."""
    before = count(clinic, "SELECT 1 FROM studies_study")
    study = hidden(doctor.form(), "study")
    fields = {"study": study, "deployment": NAME, "reference": "forged"}
    for headers in ({}, {"Origin": "https://evil.example", "Referer": "https://evil.example/"}):
        token = {"csrfmiddlewaretoken": doctor.token} if headers else {}
        answer = doctor.client.post(
            "/studies/new/", data=fields | token, files={"file": encoded(chest())}, headers=headers
        )
        assert answer.status_code == 403
    assert count(clinic, "SELECT 1 FROM studies_study") == before


def test_a_double_click_sends_one_study_with_one_job(clinic: Product, doctor: Person) -> None:
    """Row 48: the same form twice at the same moment, and once more from behind the back button."""
    form = doctor.form()
    fields = {"study": hidden(form, "study"), "deployment": NAME, "reference": "twice"}
    token = hidden(form, "csrfmiddlewaretoken")
    content = encoded(grey(77))
    ready = threading.Barrier(2)

    def click() -> httpx.Response:
        with httpx.Client(
            base_url=clinic.base_url, cookies=doctor.client.cookies, timeout=60, trust_env=False
        ) as other:
            ready.wait(30)
            return Person(other, doctor.name).post(
                "/studies/new/", {"file": ("1.png", content)}, csrfmiddlewaretoken=token, **fields
            )

    with ThreadPoolExecutor(2) as both:
        answers = [future.result() for future in [both.submit(click) for _ in range(2)]]
    back = doctor.post("/studies/new/", {"file": ("1.png", content)}, csrfmiddlewaretoken=token, **fields)
    answers.append(back)
    assert {(answer.status_code, answer.headers.get("location")) for answer in answers} == {
        (302, f"/studies/{fields['study']}/")
    }
    assert count(clinic, "SELECT 1 FROM studies_study WHERE id = %s", fields["study"]) == 1
    assert count(clinic, "SELECT 1 FROM studies_studypicture WHERE study_id = %s", fields["study"]) == 1
    sent = "SELECT 1 FROM audit_auditevent WHERE target_id = %s AND action = 'study.send'"
    assert count(clinic, sent, fields["study"]) == 1
    doctor.answered(f"/studies/{fields['study']}/")


def test_two_files_where_one_is_taken_are_refused(doctor: Person) -> None:
    address = doctor.draft(NAME, "two at once")
    files = [("file", (f"{number}.png", encoded(grey(level)))) for number, level in enumerate((30, 200))]
    assert_refused(doctor.script(f"{address}add/", files), 422, {"validation_error"})
    assert picture_ids(doctor.page(address)) == []


def test_a_session_that_ends_in_the_middle_keeps_the_draft(clinic: Product, doctor: Person) -> None:
    """Row 48: the second picture meets a sign-in page; signed in again, the first is there and the rest goes on."""
    address = doctor.draft(NAME, "interrupted", encoded(grey(30)))
    session = next(cookie.value for cookie in doctor.client.cookies.jar if "session" in cookie.name)
    with contextlib.closing(__import__("psycopg").connect(clinic.settings["DATABASE_URL"], autocommit=True)) as store:
        store.execute("DELETE FROM django_session WHERE session_key = %s", [session])
    late = doctor.script(f"{address}add/", {"file": ("picture", encoded(grey(200)))})
    assert (late.status_code, late.headers["location"].startswith("/accounts/login/")) == (302, True)
    doctor.client.cookies.clear()
    doctor.sign_in()
    assert len(picture_ids(doctor.page(address))) == 1
    added = doctor.script(f"{address}add/", {"file": ("picture", encoded(grey(200)))})
    assert added.status_code == 201, added.text
    sent = doctor.post(f"{address}send/")
    assert set(scores_of(doctor.answered(sent.headers["location"]))) == {1, 2}


# Other people's studies


def test_guessing_finds_nothing_and_is_audited(clinic: Product, doctor: Person, foreign: Person) -> None:
    """Row 49, and a verdict on someone else's study."""
    address = doctor.sent(NAME, "not yours", encoded(grey(42)))
    page = doctor.answered(address)
    picture = picture_ids(page)[0]
    denied = (
        "SELECT 1 FROM audit_auditevent WHERE target_id = %s AND action = 'study.denied' AND actor = 'user:bad-foreign'"
    )
    looks = [address, f"{address}state/"]
    looks += [f"{address}pictures/{picture}/{view}/" for view in ("pixels", "thumbnail", "model", "heat")]
    for number, look in enumerate(looks, 1):
        assert foreign.client.get(look).status_code == 404
        assert count(clinic, denied, identity(address)) == number
    for act in ("verdict", "add", "send", "discard", "erase"):
        answer = foreign.post(f"{address}{act}/", answer="agree", expected_number="0", reference="not yours")
        assert answer.status_code == 404
    assert count(clinic, denied, identity(address)) == len(looks) + 5
    assert count(clinic, "SELECT 1 FROM studies_verdict WHERE study_id = %s", identity(address)) == 0
    for guess in (uuid.uuid4(), picture):
        assert foreign.client.get(f"/studies/{guess}/").status_code == 404
    assert "Agree" in doctor.page(address)


def test_two_tabs_do_not_overwrite_each_other_and_keep_what_was_typed(doctor: Person) -> None:
    address = doctor.sent(NAME, "two tabs", encoded(grey(43)))
    page = doctor.answered(address)
    number = hidden(page, "expected_number")
    first = doctor.post(f"{address}verdict/", answer="agree", expected_number=number)
    assert first.status_code == 302
    late = doctor.post(
        f"{address}verdict/",
        answer="correct",
        expected_number=number,
        labels="bright",
        certainty="0.5",
        comment="typed in the other tab <b>",
    )
    assert late.status_code == 409
    assert "another tab" in text_of(late.text)
    assert "typed in the other tab &lt;b&gt;" in late.text
    assert 'value="bright" checked' in " ".join(late.text.split())
    again = doctor.post(
        f"{address}verdict/",
        answer="correct",
        expected_number=hidden(late.text, "expected_number"),
        labels="bright",
    )
    assert again.status_code == 302
    assert "Earlier answers (1)" in text_of(doctor.page(address))


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": "Mass"},
        {"labels": "bright\x00"},
        {"answer": "perhaps"},
        {"certainty": "7"},
        {"expected_number": "-1"},
        {"comment": "x" * 3_000},
    ],
    ids=lambda wrong: " ".join(wrong),
)
def test_an_answer_that_makes_no_sense_is_refused(clinic: Product, doctor: Person, wrong: dict[str, str]) -> None:
    """A label that is not in the list, and the rest."""
    address = doctor.sent(NAME, "no sense", encoded(grey(44)))
    doctor.answered(address)
    fields = {"answer": "correct", "labels": "bright", "expected_number": "0", "comment": "kept while wrong"} | wrong
    answer = doctor.post(f"{address}verdict/", **fields)
    assert answer.status_code == 422, text_of(answer.text)[:500]
    assert 'role="alert"' in answer.text
    if "comment" not in wrong:
        assert "kept while wrong" in answer.text
    assert count(clinic, "SELECT 1 FROM studies_verdict WHERE study_id = %s", identity(address)) == 0
