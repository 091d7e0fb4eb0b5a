"""`manage.py issue_api_key LABEL`: prints a new API key, alone on its line."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.accounts.models import Team
from controlplane.accounts.services import DEFAULT_SCOPES
from controlplane.audit.services import COMMAND
from controlplane.deployments.models import Deployment
from controlplane.deployments.services.keys import issue_key_for
from controlplane.errors import DomainError
from inference.contracts import Scope


class Command(BaseCommand):
    help = "Issues an API key and prints it; it cannot be shown again."
    # Checking the URLs would load every page, which takes longer than the rest.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("label", help="what the key is for")
        parser.add_argument("--scope", action="append", choices=[scope.value for scope in Scope], metavar="SCOPE")
        parser.add_argument("--deployment", action="append", default=[], metavar="NAME", help="default: all")
        parser.add_argument("--test", action="store_true", help="its calls are marked as tests and left out of figures")
        parser.add_argument("--team", default="default")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            self.stdout.write(self._issue(**options))
        except DomainError as error:
            raise CommandError(error.message) from None

    def _issue(
        self, *, label: str, scope: list[str] | None, deployment: list[str], test: bool, team: str, **_: Any
    ) -> str:
        found = Team.objects.filter(name=team).first()
        if found is None:
            raise DomainError("not_found", f"There is no team “{team}”.")
        named = {row.name: row for row in Deployment.objects.current().filter(team=found, name__in=deployment)}
        missing = [name for name in deployment if name not in named]
        if missing:
            raise DomainError("not_found", f"The team {team} has no deployment “{missing[0]}”.")
        return issue_key_for(
            actor=COMMAND,
            team=found,
            label=label,
            scopes=scope or DEFAULT_SCOPES,
            deployments=list(named.values()) or None,
            test=test,
        )[1]
