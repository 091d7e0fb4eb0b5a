"""What the worklist shows."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

from controlplane.accounts.models import Right, Team, User
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
    """What the page is asked to show; unknown values are left out."""

    status: str = ""
    team: str = ""
    mine: bool = False
    reference: str = ""
    page: str = ""

    @classmethod
    def read(cls, query: Mapping[str, str]) -> "Search":
        status = query.get("status", "")
        return cls(
            status=status if status in Status._value2member_map_ else "",
            team=query.get("team", ""),
            mine=query.get("mine") == "1",
            reference=query.get("reference", "").replace("\0", "").strip()[:200],
            page=query.get("page", ""),
        )

    @property
    def filtered(self) -> bool:
        return bool(self.status or self.team or self.mine or self.reference)

    def older(self, page: str) -> str:
        """The query of the next page."""
        asked = {
            "status": self.status,
            "team": self.team,
            "mine": "1" if self.mine else "",
            "reference": self.reference,
        }
        return urlencode({name: value for name, value in {**asked, "page": page}.items() if value})


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
        older=search.older(found.next_page) if found.next_page else "",
    )
