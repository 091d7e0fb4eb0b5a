"""`manage.py up`: runs all of Signalbox on this machine in the foreground."""

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from controlplane.local import runner


class Command(BaseCommand):
    help = "Starts all of Signalbox on this machine and keeps it running until Ctrl-C or SIGTERM."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        runner.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        sys.exit(runner.run(reload=options["reload"]))
