"""What the worklist shows."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

from controlplane.accounts.models import Right, Team, User
from controlplane.studies import sealing
from controlplane.studies.queries import STATUS_WORDS, Status, worklist

TONES = {
    Status.DRAFT: "",
    Status.WAITING: "busy",
    Status.READY: "busy",
    Status.FAILED: "bad",
    Status.NEEDS_SECOND: "warn",
    Status.NEEDS_ADJUDICATION: "warn",
    Status.READ: "good",
    Status.ERASED: "",
}


@dataclass(frozen=True, slots=True)
class Search:
    """What the page is asked to show; unknown values are left out.

    A case reference comes typed, in a form, or sealed, in an address: browsers' histories and proxies' logs keep those.
    """

    status: str = ""
    team: str = ""
    mine: bool = False
    reference: str = ""
    page: str = ""

    @classmethod
    def read(cls, asked: Mapping[str, str], reference: str) -> "Search":
        """`reference`: as it was typed."""
        status = asked.get("status", "")
        return cls(
            status=status if status in Status._value2member_map_ else "",
            team=asked.get("team", ""),
            mine=asked.get("mine") == "1",
            reference=reference.replace("\0", "").strip()[:200],
            page=asked.get("page", ""),
        )

    @classmethod
    def typed(cls, form: Mapping[str, str]) -> "Search":
        return cls.read({**form, "page": ""}, form.get("reference", ""))

    @classmethod
    def addressed(cls, query: Mapping[str, str], user: User) -> "Search":
        return cls.read(query, sealing.open_search(user.pk, query.get("case", "")))

    @property
    def filtered(self) -> bool:
        return bool(self.status or self.team or self.mine or self.reference)

    def query(self, user: User, page: str = "") -> str:
        """The query of an address that shows this to the person, from `page` on."""
        asked = {
            "status": self.status,
            "team": self.team,
            "mine": "1" if self.mine else "",
            "case": sealing.seal_search(user.pk, self.reference),
            "page": page,
        }
        return urlencode({name: value for name, value in asked.items() if value})


@dataclass(frozen=True, slots=True)
class WorklistEntry:
    identity: uuid.UUID
    reference: str
    words: str
    tone: str
    deployment: str
    team: str
    pictures: int
    sent_at: datetime | None
    created_by: str
    readers: str


@dataclass(frozen=True, slots=True)
class WorklistPage:
    rows: list[WorklistEntry]
    search: Search
    statuses: list[tuple[str, str]]
    teams: list[Team]
    older: str


def worklist_page(user: User, search: Search) -> WorklistPage:
    """Four queries: the teams, and the worklist's three."""
    rights = {Right.STUDY, Right.VIEW_PAYLOAD}
    teams = [
        team for team in Team.objects.filter(memberships__user=user).distinct() if rights & user.rights_in(team.pk)
    ]
    team = next((each for each in teams if each.name == search.team), None)
    found = worklist(
        user, team=team, status=search.status, mine=search.mine, reference=search.reference, page=search.page
    )
    return WorklistPage(
        rows=[
            WorklistEntry(
                identity=row.study.pk,
                reference=row.reference,
                words=row.status_word,
                tone=TONES[row.status],
                deployment=row.study.deployment.name,
                team=row.study.team.name,
                pictures=row.pictures,
                sent_at=row.study.sent_at,
                created_by=row.study.created_by.get_username(),
                readers=", ".join(row.readers),
            )
            for row in found.rows
        ],
        search=search,
        statuses=[(status.value, words) for status, words in STATUS_WORDS.items()],
        teams=teams,
        older=search.query(user, found.next_page) if found.next_page else "",
    )
