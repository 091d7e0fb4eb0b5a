"""Doctors and others of a running product, signed in as a browser without script is; studies by the plain form."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row

from tests.e2e.control import control_of
from tests.services import Product, wait_for

PASSWORD = "a-password-of-the-clinic"
# With a worker on a machine that runs other things too.
ANSWERED_WITHIN_S = 120.0
GREY_8 = {
    "do_resize": True,
    "size": {"height": 8, "width": 8},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": False,
    "do_grayscale": True,
}
FINAL = ("Ready in", "Ready", "No suggestion", "Read")
_ACCOUNTS = """
import json, os
from controlplane.accounts.models import Membership, Team, User
for name, roles in json.loads(os.environ["CLINIC_PEOPLE"]).items():
    user, made = User.objects.get_or_create(username=name, defaults={"is_staff": not roles, "is_superuser": not roles})
    if made:
        user.set_password(os.environ["CLINIC_PASSWORD"])
        user.save()
    for team, role in roles:
        team, _ = Team.objects.get_or_create(name=team)
        Membership.objects.get_or_create(user=user, team=team, role=role)
"""


def make_people(product: Product, people: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Accounts by name, each with (team, role) pairs; one without any is a site admin."""
    settings = dict(product.settings)
    product.settings |= {"CLINIC_PEOPLE": json.dumps(people), "CLINIC_PASSWORD": PASSWORD}
    try:
        product.manage("shell", "-v", "0", "-c", _ACCOUNTS)
    finally:
        product.settings = settings


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody's browser: cookies, forms, no script."""

    client: httpx.Client
    name: str

    def sign_in(self) -> None:
        form = self.client.get("/accounts/login/").text
        fields = {"login": self.name, "password": PASSWORD, "csrfmiddlewaretoken": hidden(form, "csrfmiddlewaretoken")}
        answer = self.client.post("/accounts/login/", data=fields, headers=self._referrer)
        assert answer.status_code == 302, answer.text[:500]

    def post(self, path: str, files: Any = None, **fields: Any) -> httpx.Response:
        """A form of one of our pages."""
        fields.setdefault("csrfmiddlewaretoken", self.token)
        return self.client.post(path, data=fields, files=files, headers=self._referrer)

    def script(self, path: str, files: Any = None, **fields: Any) -> httpx.Response:
        """As the scripts of our pages post."""
        headers = {"X-Requested-With": "fetch", **self.same_origin}
        return self.client.post(path, data=fields, files=files, headers=headers)

    def form(self) -> str:
        """The page of a new study."""
        answer = self.client.get("/studies/new/")
        assert answer.status_code == 200, answer.text[:500]
        return answer.text

    def send(self, deployment: str, reference: str, *pictures: bytes, names: Sequence[str] = ()) -> httpx.Response:
        """All of it in one post, as the form does without script; the answer is not followed."""
        form = self.form()
        called = names or [f"{number}.png" for number in range(1, len(pictures) + 1)]
        files = [("file", (name, content)) for name, content in zip(called, pictures, strict=True)]
        return self.post(
            "/studies/new/",
            files,
            csrfmiddlewaretoken=hidden(form, "csrfmiddlewaretoken"),
            study=hidden(form, "study"),
            deployment=deployment,
            reference=reference,
        )

    def sent(self, deployment: str, reference: str, *pictures: bytes) -> str:
        """The address of the study, which must have been taken."""
        answer = self.send(deployment, reference, *pictures)
        assert answer.status_code == 302, answer.text[:2000]
        page = self.client.get(answer.headers["location"])
        assert "data-stage" in page.text, page.text[:4000]
        return str(answer.headers["location"])

    def draft(self, deployment: str, reference: str, *pictures: bytes) -> str:
        """The address of a draft with these pictures, made as our script makes it."""
        made = self.script(
            "/studies/new/", study=hidden(self.form(), "study"), deployment=deployment, reference=reference
        )
        assert made.status_code == 201, made.text
        for content in pictures:
            added = self.script(made.json()["add"], {"file": ("picture", content)})
            assert added.status_code == 201, added.text
        return str(made.json()["address"])

    def page(self, address: str) -> str:
        answer = self.client.get(address)
        assert answer.status_code == 200, (address, answer.status_code)
        return answer.text

    def answered(self, address: str, within_s: float = ANSWERED_WITHIN_S) -> str:
        """The study's page once its suggestion is there, or has failed."""
        wait_for(lambda: standing(self.page(address)).startswith(FINAL), within_s, f"{address} answered", 0.2)
        return self.page(address)

    @property
    def token(self) -> str:
        found = next((cookie.value for cookie in self.client.cookies.jar if "csrf" in cookie.name), "")
        return found or ""

    @property
    def same_origin(self) -> dict[str, str]:
        """What shows that a call comes from one of our pages."""
        return {"X-CSRFToken": self.token, **self._referrer}

    @property
    def _referrer(self) -> dict[str, str]:
        return {"Referer": f"{self.client.base_url}/", "Origin": str(self.client.base_url).rstrip("/")}


@contextmanager
def signed_in(product: Product, name: str) -> Iterator[Person]:
    with product.http() as client:
        person = Person(client, name)
        person.sign_in()
        yield person


def deploy_findings(product: Product, name: str, model: bytes, **settings: Any) -> None:
    """Deploys a model of grey pictures, 8 x 8, that scores two findings: dark and bright, each above 0.5."""
    with control_of(product) as control:
        control.upload(
            name,
            model,
            labels="dark,bright",
            task="image-multilabel",
            activation="sigmoid",
            thresholds=json.dumps({"dark": 0.5, "bright": 0.5}),
            preprocessor=json.dumps(GREY_8),
        )
        version = control.validated(name)
        assert version["state"] == "ready", version["reason"]
        control.deploy(name, **settings)


def hidden(page: str, name: str) -> str:
    """The value of a hidden field."""
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found is not None, page[:2000]
    return unescape(found.group(1))


def standing(page: str) -> str:
    """Where the study stands, in the page's words."""
    found = re.search(r'id="study-status"[^>]*>([^<]*)<', page)
    return unescape(found.group(1)).strip() if found else ""


def text_of(page: str) -> str:
    """What the page says, without its marks."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


def scores_of(page: str) -> dict[int, dict[str, float]]:
    """Each picture's scores by label, as the page shows them (two decimals)."""
    found = {}
    for group in re.split(r'<div data-scores="', page)[1:]:
        rows = re.findall(
            r'<span>([^<]*)</span>\s*<span class="score">.*?<span class="num">([0-9.]+)', group, re.DOTALL
        )
        found[int(group.partition('"')[0])] = {unescape(label): float(score) for label, score in rows}
    return found


def identity(address: str) -> str:
    """A study's id from its address."""
    return address.strip("/").rpartition("/")[2]


def picture_ids(page: str) -> list[str]:
    """The ids of a study's pictures, in their order."""
    return list(dict.fromkeys(re.findall(r"/pictures/([0-9a-f-]{36})/", page)))


def count(product: Product, statement: str, *values: Any) -> int:
    """How many rows a statement finds in the product's database."""
    return len(rows(product, statement, *values))


def rows(product: Product, statement: str, *values: Any) -> list[dict[str, Any]]:
    """What lies in the product's database."""
    with psycopg.connect(
        (product.home / "run" / "database-url").read_text().strip(), row_factory=dict_row
    ) as connection:
        return list(connection.execute(statement, values).fetchall())
