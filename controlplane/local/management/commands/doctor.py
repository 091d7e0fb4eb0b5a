"""`manage.py doctor`: says what is wrong with an installation, one line per check."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from controlplane.local.checkup import findings


class Command(BaseCommand):
    help = "Looks at every part of this installation; ends with 1 when something is wrong, and says what to type."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        healthy = True
        for finding in findings():
            healthy = healthy and finding.ok
            self.stdout.write(str(finding))
        if not healthy:
            sys.exit(1)
