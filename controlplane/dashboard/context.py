"""What the frame around every page shows: the rail that this person may use, and the theme."""

from dataclasses import dataclass

from django.http import HttpRequest

from controlplane.accounts.models import Right, User
from controlplane.monitoring.traffic import freshness

THEME_COOKIE = "signalbox-theme"
THEMES = ("light", "dark")


@dataclass(frozen=True, slots=True)
class RailEntry:
    label: str
    url: str
    icon: str
    current: bool
    under_more: bool = False
    ruled: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    theme: str
    rail: list[RailEntry]

    @property
    def lag_s(self) -> float:
        """How far the figures are behind, where a page shows figures. One query when a template asks."""
        return freshness()["lag_s"] or 0.0


# Label, address, icon, the rights of which one suffices, under More on a phone, ruled off.
ENTRIES: tuple[tuple[str, str, str, tuple[Right, ...], bool, bool], ...] = (
    ("Overview", "/", "overview", (Right.VIEW,), False, False),
    ("Deployments", "/deployments/", "deployments", (Right.VIEW,), False, False),
    ("Models", "/models/", "models", (Right.VIEW,), False, False),
    ("Studies", "/studies/", "studies", (Right.STUDY, Right.VIEW_PAYLOAD), False, False),
    ("Jobs", "/jobs/", "jobs", (Right.VIEW,), False, False),
    ("Audit", "/audit/", "audit", (Right.AUDIT,), True, True),
    ("Keys", "/keys/", "keys", (Right.MANAGE_KEYS,), True, False),
    ("System", "/system/", "system", (Right.AUDIT,), True, False),
)


def frame(request: HttpRequest) -> dict[str, Frame]:
    """Template context `frame`. One query per person and request (memberships, kept on the user)."""
    theme = request.COOKIES.get(THEME_COOKIE, "")
    user = getattr(request, "user", None)
    rail: list[RailEntry] = []
    if isinstance(user, User):
        for label, url, icon, rights, under_more, ruled in ENTRIES:
            if any(map(user.has_right_anywhere, rights)):
                current = request.path == url if url == "/" else request.path.startswith(url)
                rail.append(RailEntry(label, url, icon, current, under_more, ruled))
    return {"frame": Frame(theme if theme in THEMES else "", rail)}
