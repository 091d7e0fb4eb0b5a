"""`manage.py prepare`: brings database and site admin to where this version expects them."""

import secrets
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from controlplane import environment
from controlplane.accounts.services import ensure_site_admin
from controlplane.local.home import Home


class Command(BaseCommand):
    help = "Migrates the database where anything is left to migrate, and makes the site admin `admin` the first time."
    # Checks import every page; `make check` runs them, a start has no time for it.
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        home = Home(settings.SIGNALBOX_HOME)
        home.create()
        executor = MigrationExecutor(connection)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            call_command("migrate", interactive=False, verbosity=options["verbosity"])
        self._ensure_admin(home)

    def _ensure_admin(self, home: Home) -> None:
        """The password is kept before the account exists: one that nobody knows would lock everybody out."""
        given = environment.text("SIGNALBOX_ADMIN_PASSWORD")
        kept = home.admin_password_file
        password = given or (kept.read_text().strip() if kept.exists() else "")
        generated = not password
        if generated:
            password = secrets.token_urlsafe(12)
            home.write_private(kept, password + "\n")
        if ensure_site_admin(password=password):
            self.stdout.write("Made the site admin `admin`.")
        elif generated:
            kept.unlink()
