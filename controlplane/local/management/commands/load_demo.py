from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.errors import DomainError
from controlplane.local.demo.loading import ensure_demo


class Command(BaseCommand):
    help = "Loads what is missing of the demo: three deployments with two days of history, and a doctor's account."
    # Checking the URLs would load every page, which takes longer than the rest.
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            for line in ensure_demo():
                self.stdout.write(line)
        except DomainError as error:
            raise CommandError(error.message) from None
