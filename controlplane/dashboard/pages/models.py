"""What the pages of models, versions and validation reports show."""

from dataclasses import dataclass

from django.db.models import Count, Max, Q

from controlplane.accounts.models import User
from controlplane.catalog.checks import Check, checks_of
from controlplane.catalog.models import ModelVersion, RegisteredModel, VersionState
from controlplane.deployments.models import Deployment, RevisionState, SplitRevision
from inference.contracts import Signature, Task, ValidationReport

TONES = {
    VersionState.UPLOADED: "busy",
    VersionState.VALIDATING: "busy",
    VersionState.READY: "good",
    VersionState.REJECTED: "bad",
    VersionState.ARCHIVED: "",
}
MOST = 500


@dataclass(frozen=True, slots=True)
class ModelRow:
    model: RegisteredModel
    versions: int
    latest_ready: int | None


@dataclass(frozen=True, slots=True)
class VersionRow:
    version: ModelVersion
    tone: str
    # Where it has traffic now: "card-fraud 90 %".
    serving: list[str]

    @property
    def sha(self) -> str:
        return self.version.uploaded_artifact_id


@dataclass(frozen=True, slots=True)
class ModelPage:
    model: RegisteredModel
    versions: list[VersionRow]
    deployments: list[Deployment]


@dataclass(frozen=True, slots=True)
class ReportPage:
    version: ModelVersion
    tone: str
    busy: bool
    report: ValidationReport | None
    checks: list[Check]
    signature: Signature | None
    operators: list[tuple[str, int]]
    # What would make the version more useful: (what, why).
    missing: list[tuple[str, str]]
    deployments: list[Deployment]


def models_page(user: User) -> list[ModelRow]:
    """Every model that the person may see. Two queries."""
    mine = RegisteredModel.objects.for_user(user).filter(archived_at=None).select_related("team").order_by("name")
    found = list(mine[:MOST])
    ready = Q(state=VersionState.READY)
    counted = (
        ModelVersion.objects.filter(model__in=[model.pk for model in found])
        .order_by()
        .values_list("model_id")
        .annotate(count=Count("pk"), latest=Max("number", filter=ready))
    )
    versions = {model_id: (count, latest) for model_id, count, latest in counted}
    return [ModelRow(model, *versions.get(model.pk, (0, None))) for model in found]


def model_page(model: RegisteredModel) -> ModelPage:
    """A model's versions with the traffic each has. Three queries."""
    deployments = list(Deployment.objects.filter(model=model).current())
    serving: dict[int, list[str]] = {}
    active = SplitRevision.objects.filter(deployment__in=deployments, state=RevisionState.ACTIVE)
    for revision in active.select_related("deployment"):
        for number, share in revision.percentages().items():
            if share:
                serving.setdefault(int(number), []).append(f"{revision.deployment.name} {share:g} %")
        for number in revision.shadow:
            serving.setdefault(int(number), []).append(f"{revision.deployment.name} shadow")
    versions = ModelVersion.objects.filter(model=model).select_related("created_by").order_by("-number")[:MOST]
    rows = [VersionRow(v, TONES[VersionState(v.state)], serving.get(v.number, [])) for v in versions]
    return ModelPage(model, rows, deployments)


def report_page(version: ModelVersion) -> ReportPage:
    """A version and what validation found. One query for the deployments of its model."""
    report = version.typed_report
    busy = version.state in (VersionState.UPLOADED, VersionState.VALIDATING)
    operators = sorted(report.operators.items(), key=lambda item: (-item[1], item[0])) if report else []
    return ReportPage(
        version=version,
        tone=TONES[VersionState(version.state)],
        busy=busy,
        report=report,
        checks=checks_of(version),
        signature=report.signature if report else None,
        operators=operators,
        missing=[] if busy or version.state != VersionState.READY else _missing(version),
        deployments=list(Deployment.objects.filter(model_id=version.model_id).current()),
    )


def _missing(version: ModelVersion) -> list[tuple[str, str]]:
    found = []
    task = Task(version.task) if version.task else Task.TENSOR
    if not version.labels and task not in (Task.TENSOR, Task.TABULAR_REGRESSION, Task.RANKING):
        found.append(("labels", "so that answers and accuracy name classes instead of numbers"))
    if not version.columns and task.value.startswith("tabular"):
        found.append(("column names", "so that apps may send named features, and drift names what moved"))
    if version.reference_artifact_id is None:
        found.append(("a reference set", "so that drift can be measured from what the model was trained on"))
    if version.golden_artifact_id is None:
        found.append(("golden inputs", "so that every host proves that it computes what you computed"))
    return found
