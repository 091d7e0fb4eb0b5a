"""`manage.py deploy NAME MODEL`: makes the deployment where it is missing and moves its traffic."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.accounts.models import Team
from controlplane.audit.services import COMMAND
from controlplane.catalog.models import ModelVersion, RegisteredModel, VersionState
from controlplane.deployments.models import Deployment, RevisionState, SplitRevision
from controlplane.deployments.services.deployments import create_deployment, edit_deployment
from controlplane.deployments.services.splits import apply_split, newest_split
from controlplane.deployments.settling import data_plane_is_up, wait_until_settled
from controlplane.deployments.shares import Percentage, live_shares, shadow_shares
from controlplane.errors import DomainError
from inference.contracts import Lane

Shares = dict[str | int, Percentage]


def split_argument(text: str) -> Shares:
    """`1=90,2=10` as version number -> per cent. Raises DomainError `validation_error`."""
    shares: Shares = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        number, equals, share = part.partition("=")
        if not equals:
            raise DomainError("validation_error", f"“{part}” is not VERSION=PERCENT, for example 1=90,2=10.")
        if number.strip() in shares:
            raise DomainError("unknown_version", f"Version {number.strip()} is named twice.")
        shares[number.strip()] = share.strip()
    return shares


class Command(BaseCommand):
    help = "Deploys a model: makes the deployment where it is missing, and moves its traffic."
    # Checking the URLs would load every page, which takes longer than the rest.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="the deployment's name, which clients call")
        parser.add_argument("model", help="the registered model")
        parser.add_argument("--split", help="per cent by version, as 1=90,2=10 (default: the newest ready version)")
        parser.add_argument("--shadow", default="", help="per cent of calls to copy to versions, as 3=20")
        parser.add_argument("--lane", choices=[lane.value for lane in Lane])
        parser.add_argument("--team", default="default")
        parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for it to serve")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            revision = self._deploy(**options)
        except DomainError as error:
            raise CommandError(error.message) from None
        revision = wait_until_settled(revision, options["timeout"])
        if revision.state == RevisionState.FAILED:
            raise CommandError(f"{options['name']} serves what it did before. {revision.failure}")
        self.stdout.write(_line(revision))

    def _deploy(
        self, *, name: str, model: str, split: str | None, shadow: str, lane: str | None, team: str, **_: Any
    ) -> SplitRevision:
        """The revision that carries the wanted split: a new one, or the newest where it says the same already."""
        found = Team.objects.filter(name=team).first()
        if found is None:
            raise DomainError("not_found", f"There is no team “{team}”.")
        registered = RegisteredModel.objects.filter(name=model, team=found).first()
        if registered is None:
            raise DomainError("not_found", f"The team {team} has no model “{model}”.")
        shares: Shares = split_argument(split) if split is not None else {self._newest_ready(registered): "100"}
        shadows = split_argument(shadow)
        live = live_shares(shares)
        wanted = live, shadow_shares(shadows, live)
        settings: dict[str, Any] = {"lane": lane} if lane else {}
        deployment = Deployment.objects.filter(name=name).first()
        if deployment is None:
            deployment = create_deployment(actor=COMMAND, team=found, name=name, model=registered, **settings)
        elif deployment.team_id != found.pk:
            raise DomainError("conflict", f"The deployment {name} belongs to another team.")
        elif deployment.model_id != registered.pk:
            raise DomainError("conflict", f"The deployment {name} serves another model than {model}.")
        elif settings:
            edit_deployment(actor=COMMAND, deployment=deployment, **settings)
        newest = newest_split(deployment)
        if newest is not None and wanted == (_numbered(newest.shares), _numbered(newest.shadow)):
            return newest
        return apply_split(actor=COMMAND, deployment=deployment, shares=shares, shadow=shadows, reason="deploy command")

    @staticmethod
    def _newest_ready(model: RegisteredModel) -> int:
        number = (
            ModelVersion.objects.filter(model=model, state=VersionState.READY)
            .order_by("-number")
            .values_list("number", flat=True)
            .first()
        )
        if number is None:
            raise DomainError("not_ready", f"{model.name} has no version that is ready.")
        return number


def _numbered(points: dict[str, int]) -> dict[int, int]:
    return {int(number): share for number, share in points.items()}


def _line(revision: SplitRevision) -> str:
    told = revision.as_json()
    split = ", ".join(f"version {number} {share} %" for number, share in told["shares"].items())
    shadow = ", ".join(f"version {number} {share} %" for number, share in told["shadow"].items())
    line = f"{revision.deployment.name} revision {revision.number}: {split}" + (f"; shadow {shadow}" if shadow else "")
    if revision.state == RevisionState.ACTIVE:
        return f"{line}; serving"
    if revision.state == RevisionState.SUPERSEDED:
        return f"{line}; another change has replaced it"
    if not data_plane_is_up():
        return f"{line}; recorded: it will serve when a data plane comes up"
    return f"{line}; still preparing"
