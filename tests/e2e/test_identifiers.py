"""A picture that names its patient sixty times, sent by every way there is: the names are found nowhere afterwards."""

import base64
import json
import secrets
import uuid
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psycopg
import pydicom
import pytest
from PIL import PngImagePlugin
from psycopg import sql
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from redis import Redis

from tests.controlplane.jobs.conftest import GREY_8, brightness
from tests.e2e.control import Control, control_of
from tests.inference.runtime.picture_files import chest, dicom, encoded
from tests.services import Product, wait_for

pytestmark = pytest.mark.timeout(400)

NAME = "ward"
REFERENCE = "case " + secrets.token_hex(8)
# Where a name, a number or free text about a patient stands, or fits.
TEXTS = (
    *("PatientName", "PatientID", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "PatientAddress"),
    *("PatientTelephoneNumbers", "PatientComments", "AdditionalPatientHistory", "Occupation", "EthnicGroup"),
    *("MilitaryRank", "CountryOfResidence", "IssuerOfPatientID", "AccessionNumber", "StudyID", "InstitutionName"),
    *("InstitutionAddress", "InstitutionalDepartmentName", "ReferringPhysicianName", "PerformingPhysicianName"),
    *("OperatorsName", "PhysiciansOfRecord", "RequestingPhysician", "StudyDescription", "SeriesDescription"),
    *("ProtocolName", "DeviceSerialNumber", "StationName", "ImageComments", "DerivationDescription"),
    *("PatientBirthDate", "StudyDate", "StudyTime", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
    # Code strings, of which known terms stay.
    *("BodyPartExamined", "ViewPosition", "Laterality", "PatientSex", "PatientAge"),
)
META = ("SourceApplicationEntityTitle", "ImplementationVersionName", "PrivateInformationCreatorUID")


class Names:
    """Sixty words that occur nowhere else, by the place in which each stands."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def __call__(self, place: str) -> str:
        return self.of.setdefault(place, "QZ" + secrets.token_hex(6).upper())

    def found_in(self, content: bytes) -> list[str]:
        """The places whose words occur, as they are, in hex, in base64 or in UTF-16."""
        found = []
        for place, word in self.of.items():
            raw = word.encode()
            # The part of base64 that is the same at each of the three alignments.
            coded = [base64.b64encode(b"\0" * shift + raw)[4 if shift else 0 : -4] for shift in range(3)]
            forms = [raw, raw.lower(), raw.hex().encode(), raw.hex().upper().encode(), word.encode("utf-16-le"), *coded]
            if any(form in content for form in forms):
                found.append(place)
        return found


def nested(names: Names, place: str, depth: int) -> Dataset:
    inner = Dataset()
    inner.PatientName = names(f"{place} {depth}")
    if depth > 1:
        inner.ReferencedStudySequence = Sequence([nested(names, place, depth - 1)])
    return inner


def named_patient(names: Names, shade: int = 0) -> bytes:
    """A DICOM file with all of the names in it, of pixels that depend on `shade`."""
    pixels = np.clip(chest().astype(np.int16) + shade, 0, 255).astype(np.uint8)
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table["LUTDescriptor"].VR = "US"
    table.LUTData = [entry * 257 for entry in range(256)]
    table["LUTData"].VR = "US"
    table.LUTExplanation = names("LUTExplanation")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pydicom.config.settings, "_writing_validation_mode", pydicom.config.IGNORE)
        whole = dicom(pixels, VOILUTSequence=Sequence([table]), **{place: names(place) for place in TEXTS})
        dataset = pydicom.dcmread(BytesIO(whole))
        dataset.OtherPatientIDsSequence = Sequence([nested(names, "sequence", 3)])
        block = dataset.private_block(0x0009, names("private creator"), create=True)
        block.add_new(0x01, "LO", names("private text"))
        block.add_new(0x02, "UN", names("private bytes").encode())
        block.add_new(0x03, "SQ", [nested(names, "private sequence", 2)])
        dataset.add_new(0x60003000, "OW", names("overlay").encode() * 4)
        dataset.add_new(0x60000022, "LO", names("overlay description"))
        dataset.add_new(0x60001500, "LO", names("overlay label"))
        dataset.add_new(0xFFFCFFFC, "OB", names("trailing padding").encode())
        for place in META:
            setattr(dataset.file_meta, place, names(place))
        dataset.file_meta.PrivateInformation = names("PrivateInformation").encode()
        out = BytesIO()
        dataset.save_as(out)
    return names("preamble").encode().ljust(128, b"\0") + out.getvalue()[128:]


def named_png(names: Names) -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", names("text of a PNG"))
    texts.add_itxt("Patient", names("international text of a PNG"), zip=True)
    return encoded(chest(), "PNG", pnginfo=texts)


@pytest.fixture(scope="module")
def ward(product: Product) -> Iterator[Control]:
    with control_of(product) as control:
        fields = {"labels": "dark,bright", "task": "image-multilabel", "activation": "sigmoid"}
        control.upload(NAME, brightness(), preprocessor=json.dumps(GREY_8), **fields)
        assert control.validated(NAME)["state"] == "ready"
        control.deploy(NAME)
        product.manage(
            "shell",
            "-c",
            "from controlplane.accounts.models import *; team = Team.objects.get(name='default')\n"
            "for role in ('doctor', 'viewer', 'data_scientist'):\n"
            "    user = User.objects.create_user(f'ward-{role}', password='a-password-of-the-tests')\n"
            "    Membership.objects.create(user=user, team=team, role=role)",
        )
        yield control


class Person:
    """Somebody in a browser without scripts; remembers every page."""

    def __init__(self, product: Product, name: str) -> None:
        self.client = httpx.Client(base_url=product.base_url, timeout=60.0, trust_env=False, follow_redirects=True)
        self.pages: list[tuple[str, bytes]] = []
        self.get("/accounts/login/")
        self.post("/accounts/login/", {"login": name, "password": "a-password-of-the-tests"})
        assert self.client.get("/accounts/login/").url.path != "/accounts/login/"

    def get(self, path: str) -> httpx.Response:
        return self._kept(self.client.get(path))

    def post(self, path: str, fields: dict[str, Any], **options: Any) -> httpx.Response:
        token = {"csrfmiddlewaretoken": self.client.cookies["signalbox-csrf"]}
        return self._kept(self.client.post(path, data={**token, **fields}, **options))

    def _kept(self, answer: httpx.Response) -> httpx.Response:
        assert answer.status_code < 500, answer.text[-2000:]
        self.pages.append((str(answer.url), str(answer.headers).encode() + answer.content))
        return answer


def by_the_form(doctor: Person, names: Names, files: Iterable[bytes]) -> str:
    """A study of these files by the form alone; the address of its page."""
    doctor.get("/studies/new/")
    study = str(uuid.uuid4())
    fields = {"study": study, "reference": REFERENCE, "deployment": NAME}
    sent = [("file", (names("file name") + ".dcm", content, "application/dicom")) for content in files]
    answer = doctor.post("/studies/new/", fields, files=sent)
    assert answer.status_code == 200, answer.text[-2000:]
    return f"/studies/{study}/"


def by_the_api(ward: Control, names: Names) -> list[str]:
    """The same picture as jobs and as predictions; the ids of all."""
    jobs = [
        ward.client.post(
            f"/api/deployments/{NAME}/jobs/",
            files={"file": (names("file name of a job") + ".dcm", named_patient(names, 1), "application/dicom")},
        ),
        ward.client.post(
            f"/api/deployments/{NAME}/jobs/",
            content=named_patient(names, 2),
            headers={"Content-Type": "application/dicom"},
        ),
    ]
    coded = base64.b64encode(named_patient(names, 3)).decode()
    predictions = [
        ward.client.post(
            f"/v1/models/{NAME}:predict",
            content=named_patient(names, 4),
            headers={"Content-Type": "application/dicom"},
        ),
        ward.client.post(f"/v1/models/{NAME}:predict", json={"instances": [{"b64": coded}]}),
        ward.client.post(f"/v1/models/{NAME}:predict", content=named_png(names), headers={"Content-Type": "image/png"}),
    ]
    for answer in (*jobs, *predictions):
        assert answer.status_code in (200, 202), answer.text
        assert names.found_in(str(answer.headers).encode() + answer.content) == []
    ids = [str(job.json()["id"]) for job in jobs]
    for identity in ids:
        job: dict[str, Any] = {}
        while job.get("status") not in ("succeeded", "failed"):
            job = ward.got(f"/api/jobs/{identity}/", wait=25)
        assert job["status"] == "succeeded", job
    made = [answer.headers["x-prediction-id"] for answer in predictions]
    for identity in made:
        ward.prediction(identity)
    return [*ids, *made]


def refused_everywhere(ward: Control, doctor: Person, names: Names) -> None:
    """A file that is refused may be quoted in no refusal, and the refusal is kept."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pydicom.config.settings, "_writing_validation_mode", pydicom.config.IGNORE)
        odd = dicom(
            PhotometricInterpretation=names("photometric interpretation")[:14], PatientName=names("refused patient")
        )
    for path in (f"/api/deployments/{NAME}/jobs/", f"/v1/models/{NAME}:predict"):
        answer = ward.client.post(path, content=odd, headers={"Content-Type": "application/dicom"})
        assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_object")
        assert names.found_in(answer.content) == []
    address = by_the_form(doctor, names, [odd])
    assert "Draft" in doctor.get(address).text


def test_nothing_that_names_the_patient_is_kept_or_shown(product: Product, ward: Control) -> None:
    names = Names()
    sample = named_patient(names)
    for place, word in names.of.items():
        assert word.encode() in sample, place
    doctor = Person(product, "ward-doctor")

    address = by_the_form(doctor, names, [sample, named_patient(names, 20), named_png(names)])
    ids = by_the_api(ward, names)
    refused_everywhere(ward, doctor, names)
    assert len(names.of) >= 60

    def is_ready() -> bool:
        return "above" in doctor.get(address).text

    wait_for(is_ready, 120, "the suggestion", every_s=0.5)
    doctor.get("/studies/")
    with psycopg.connect(product.settings["DATABASE_URL"]) as connection:
        study = address.split("/")[-2]
        pictures = connection.execute("SELECT id FROM studies_studypicture WHERE study_id = %s", [study]).fetchall()
        jobs = connection.execute(
            "SELECT jobs_job.id FROM jobs_job JOIN deployments_deployment d ON d.id = deployment_id WHERE d.name = %s",
            [NAME],
        ).fetchall()
        workers = connection.execute("SELECT count(*) FROM jobs_worker").fetchone()
    assert (len(pictures), len(jobs), workers) == (3, 5, (1,))
    for (picture,) in pictures:
        for view in ("pixels", "thumbnail", "model", "heat"):
            doctor.get(f"{address}pictures/{picture}/{view}/")
    people = [doctor, Person(product, "ward-viewer"), Person(product, "ward-data_scientist")]
    for person in people:
        for (job,) in jobs:
            for path in (f"/jobs/{job}/", f"/api/jobs/{job}/", f"/deployments/{NAME}/predictions/{job}/"):
                person.get(path)
        for identity in ids:
            person.get(f"/deployments/{NAME}/predictions/{identity}/")
            person.get(f"/api/predictions/{identity}/")
        for path in ("/", "/jobs/", "/audit/", f"/deployments/{NAME}/predictions/", f"/api/deployments/{NAME}/jobs/"):
            person.get(path)

        person.client.close()

    found = {url: places for person in people for url, page in person.pages if (places := names.found_in(page))}
    assert found == {}
    assert in_tables(product, names) == {}
    assert in_redis(product, names) == {}
    assert in_files(product, names) == {}
    assert in_tables(product, reference_names()) == {}
    assert in_files(product, reference_names()) == {}


def reference_names() -> Names:
    """The case reference as something to look for: pages of its team show it, nothing keeps it in the clear."""
    names = Names()
    names.of["case reference"] = REFERENCE
    return names


def in_tables(product: Product, names: Names) -> dict[str, list[str]]:
    """What is found in the rows of each table, as PostgreSQL writes them as text (bytes as hex)."""
    found = {}
    with psycopg.connect(product.settings["DATABASE_URL"]) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        assert len(tables) > 30
        for schema, table in tables:
            with connection.cursor().copy(
                sql.SQL("COPY (SELECT * FROM {}) TO STDOUT").format(sql.Identifier(schema, table))
            ) as copied:
                content = b"".join(bytes(chunk) for chunk in copied)
            if places := names.found_in(content):
                found[table] = places
    return found


def in_redis(product: Product, names: Names) -> dict[str, list[str]]:
    found = {}
    address = (product.home / "run" / "redis-url").read_text().strip()
    with Redis(unix_socket_path=urlsplit(address).path) as redis:
        for key in redis.scan_iter():
            if places := names.found_in(key + (redis.dump(key) or b"")):
                found[key.decode(errors="replace")] = places
    return found


def in_files(product: Product, names: Names) -> dict[str, list[str]]:
    """What is found in the home (spool, logs, artifacts, pictures, Redis's files), temporary files and the output."""
    found = {}
    files = [path for path in product.home.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"tmp", "home"} <= {path.name for path in product.home.parent.iterdir()}
    assert any(path.parent.parent.name == "studies" for path in files)
    assert any(path.parent == product.home / "spool" for path in files)
    for path in (*files, product.output_file):
        if places := names.found_in(str(path).encode() + path.read_bytes()):
            found[str(path.relative_to(product.home.parent))] = places
    return found
