from typing import Any

from django.core.management.base import BaseCommand

from controlplane.local.demo import ensure_demo


class Command(BaseCommand):
    help = "Registers and deploys the card-fraud demo 90/10 and back-fills two days; does nothing where it is there."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(ensure_demo())
