"""The people and keys of the control plane's tests: an owner, a colleague with fewer rights, an outsider."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.test import Client

from controlplane.accounts.models import ApiKey, Membership, Role, Team, User
from controlplane.accounts.services import issue_key
from controlplane.audit.services import Actor

ACTOR = Actor("user:owner")


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who calls the control API: a signed-in person, or a bearer key. JSON in, JSON out.

    Answers are Django's test responses, whose `json()` the stubs do not know.
    """

    client: Client
    headers: dict[str, str]

    def get(self, path: str, **query: Any) -> Any:
        return self._answer(self.client.get(path, query, headers=self.headers))

    def post(self, path: str, body: Any = None) -> Any:
        return self._answer(self.client.post(path, body, content_type="application/json", headers=self.headers))

    def patch(self, path: str, body: Any = None) -> Any:
        return self._answer(self.client.patch(path, body, content_type="application/json", headers=self.headers))

    def delete(self, path: str) -> Any:
        return self._answer(self.client.delete(path, headers=self.headers))

    def upload(self, path: str, fields: dict[str, Any], **extra: Any) -> Any:
        """A multipart form."""
        return self._answer(self.client.post(path, fields, headers=self.headers, **extra))

    @staticmethod
    def _answer(response: Any) -> Any:
        """No answer is a bare server error, whatever was asked."""
        assert response.status_code < 500 or response.status_code in (503, 507), response.content
        return response


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def person(user: User) -> Caller:
    return Caller(signed_in(user), {})


def bearer(token: str) -> Caller:
    return Caller(Client(), {"Authorization": f"Bearer {token}"})


def nobody() -> Caller:
    return Caller(Client(), {})


def new_user(name: str, team: Team | None = None, *roles: str) -> User:
    user = User.objects.create(username=name)
    for role in roles:
        assert team is not None
        Membership.objects.create(user=user, team=team, role=role)
    return user


def new_key(team: Team, scopes: Sequence[str], **options: Any) -> tuple[ApiKey, str]:
    return issue_key(actor=ACTOR, team=team, label=f"{team.name} {' '.join(scopes)}", scopes=scopes, **options)


__all__ = ["ACTOR", "Caller", "Role", "bearer", "new_key", "new_user", "nobody", "person", "signed_in"]
