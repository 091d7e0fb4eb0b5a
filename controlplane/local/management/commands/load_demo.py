from typing import Any

from django.core.management.base import BaseCommand

from controlplane.local.demo import ensure_demo


class Command(BaseCommand):
    help = "Registers and deploys the card-fraud demo 90/10 and back-fills two days; does nothing where it is there."
    # Checking the URLs would load every page, which takes longer than the rest.
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(ensure_demo())
