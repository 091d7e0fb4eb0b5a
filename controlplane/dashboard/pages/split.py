"""What the split editor and its history show."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controlplane.catalog.models import ModelVersion, VersionState
from controlplane.deployments.models import Deployment, RevisionState, SplitRevision
from controlplane.deployments.services.labels import labels_of
from controlplane.deployments.services.splits import newest_split
from inference.contracts import BASIS_POINTS

# Ready versions offered beside those that have a share or a label: the newest.
OFFERED = 8
HISTORY = 20
TONES = {
    RevisionState.PREPARING: "busy",
    RevisionState.ACTIVE: "good",
    RevisionState.FAILED: "bad",
    RevisionState.SUPERSEDED: "",
}


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One version in the editor; shares in basis points."""

    version: ModelVersion
    points: int
    shadow_points: int
    labels: list[str]
    # What a person typed and the service refused: shown again, to be mended.
    typed_share: str | None = None
    typed_shadow: str | None = None

    @property
    def number(self) -> int:
        return self.version.number

    @property
    def percentage(self) -> str:
        return f"{self.points / 100:.2f}"

    @property
    def share_text(self) -> str:
        return self.percentage if self.typed_share is None else self.typed_share

    @property
    def shadow_text(self) -> str:
        if self.typed_shadow is not None:
            return self.typed_shadow
        return f"{self.shadow_points / 100:g}" if self.shadow_points else ""


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of a split bar, in version order."""

    number: int
    points: int

    @property
    def width(self) -> str:
        return f"{self.points / 100:.2f}%"


@dataclass(frozen=True, slots=True)
class Past:
    """One revision in the history."""

    revision: SplitRevision
    segments: list[Segment]
    current: bool
    can_return: bool
    tone: str

    @property
    def shares(self) -> str:
        return " / ".join(f"{segment.points / 100:g}" for segment in self.segments)

    @property
    def versions(self) -> str:
        numbers = [str(segment.number) for segment in self.segments]
        return ("version " if len(numbers) == 1 else "versions ") + ", ".join(numbers)


@dataclass(frozen=True, slots=True)
class SplitEditor:
    rows: list[SplitRow]
    # What the editor was made from, and what serves meanwhile.
    revision: SplitRevision | None
    serving: SplitRevision | None
    history: list[Past]

    @property
    def expected(self) -> int:
        return self.revision.number if self.revision else 0

    @property
    def serving_segments(self) -> list[Segment]:
        return segments(self.serving.shares) if self.serving else []

    @property
    def preparing(self) -> bool:
        return self.revision is not None and self.revision.state == RevisionState.PREPARING


def segments(shares: dict[str, int]) -> list[Segment]:
    """Shares above nothing, by version number."""
    return [
        Segment(int(number), points) for number, points in sorted(shares.items(), key=lambda s: int(s[0])) if points
    ]


def split_editor(deployment: Deployment, typed: Mapping[str, str] | None = None) -> SplitEditor:
    """The editor's rows from the newest revision (and what was typed into it), and the history. Four queries."""
    fields = typed or {}
    revisions = list(SplitRevision.objects.filter(deployment=deployment).order_by("-number")[:HISTORY])
    serving = next((r for r in revisions if r.state == RevisionState.ACTIVE), None)
    newest = newest_split(deployment)
    labels: dict[int, list[str]] = {}
    for label, number in labels_of(deployment).items():
        labels.setdefault(number, []).append(label)
    shares = {int(n): points for n, points in (newest.shares if newest else {}).items()}
    shadow = {int(n): points for n, points in (newest.shadow if newest else {}).items()}
    named = set(shares) | set(shadow) | set(labels)
    ready = ModelVersion.objects.filter(model_id=deployment.model_id, state=VersionState.READY).order_by("-number")
    offered = [v for index, v in enumerate(ready[:200]) if index < OFFERED or v.number in named]
    rows = [
        SplitRow(
            v,
            shares.get(v.number, 0),
            shadow.get(v.number, 0),
            sorted(labels.get(v.number, [])),
            fields.get(f"share_{v.number}"),
            fields.get(f"shadow_{v.number}"),
        )
        for v in sorted(offered, key=lambda v: v.number)
    ]
    if newest is None and rows:
        # The first split: everything to the newest version, which the person may change before it is applied.
        rows[-1] = replace(rows[-1], points=BASIS_POINTS)
    history = [
        Past(
            revision=revision,
            segments=segments(revision.shares),
            current=revision.state == RevisionState.ACTIVE,
            can_return=revision.activated_at is not None and revision.state == RevisionState.SUPERSEDED,
            tone=TONES[RevisionState(revision.state)],
        )
        for revision in revisions
    ]
    return SplitEditor(rows, newest, serving, history)
