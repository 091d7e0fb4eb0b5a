"""A stand-in for a data-plane process: does with the documents what inference.registry does, by plain SQL.

It loads nothing, so a test decides which versions do not load, and when anything happens at all.
"""

import json
from uuid import uuid4

from django.db import connection

from controlplane.deployments.models import DataplaneDocument, DocumentKind, RevisionState
from controlplane.deployments.publishing import opened
from inference.contracts import DeploymentRoute


class StandIn:
    """One process that is alive. `broken`: version ids that do not load, with the reason; `code` of all of them."""

    def __init__(self) -> None:
        self.id = uuid4()
        self.broken: dict[str, str] = {}
        self.code = "load_failed"
        self._run(
            "INSERT INTO dataplane_process (id, host, pid, started_at, heartbeat_at) "
            "VALUES (%s, 'host', 1, clock_timestamp(), clock_timestamp())",
            [self.id],
        )

    def die(self) -> None:
        """Stops beating without a word."""
        self._run("UPDATE dataplane_process SET heartbeat_at = now() - interval '6 seconds' WHERE id = %s", [self.id])

    def prepare(self) -> bool:
        """Prepares the newest generation; True where this process could load all of it."""
        document = (
            DataplaneDocument.objects.filter(kind=DocumentKind.ROUTES, state=RevisionState.PREPARING)
            .order_by("-generation")
            .first()
        )
        if document is None:
            return False
        routes = opened(document)
        wanted = {version.id for deployment in routes.deployments for version in deployment.versions.values()}
        failures = {
            id_: {"code": self.code, "reason": self.broken[id_]} for id_ in sorted(wanted) if id_ in self.broken
        }
        if failures:
            self._run(
                "UPDATE dataplane_process SET failed_generation = %s, failures = %s WHERE id = %s",
                [document.generation, json.dumps(failures), self.id],
            )
            self._run(
                "UPDATE dataplane_document SET state = 'failed', failure = %s "
                "WHERE kind = 'routes' AND generation = %s AND state = 'preparing'",
                ["host could not load it", document.generation],
            )
            return False
        self._run(
            "UPDATE dataplane_process SET prepared_generation = %s, failed_generation = NULL, failures = '{}' "
            "WHERE id = %s",
            [document.generation, self.id],
        )
        return True

    def activate(self) -> bool:
        """Activates what every live process has prepared; True where it did."""
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE dataplane_document SET state = 'active', activated_at = clock_timestamp() "
                "WHERE kind = 'routes' AND state = 'preparing' AND generation = (SELECT prepared_generation FROM "
                "dataplane_process WHERE id = %s) AND NOT EXISTS (SELECT 1 FROM dataplane_process WHERE "
                "heartbeat_at > now() - interval '5 seconds' AND prepared_generation < generation) "
                "RETURNING generation",
                [self.id],
            )
            row = cursor.fetchone()
            if row is None:
                return False
            cursor.execute(
                "UPDATE dataplane_document SET state = 'superseded' "
                "WHERE kind = 'routes' AND state = 'active' AND generation < %s",
                row,
            )
        return True

    def step(self) -> bool:
        """Prepares, and activates where it can."""
        return self.prepare() and self.activate()

    @staticmethod
    def _run(statement: str, parameters: list[object]) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)


def newest_route(name: str) -> DeploymentRoute:
    """What was last published of a deployment, whatever became of it."""
    return _route(DataplaneDocument.objects.filter(kind=DocumentKind.ROUTES).latest("generation"), name)


def serving_route(name: str) -> DeploymentRoute:
    """What the data plane serves a deployment by."""
    return _route(DataplaneDocument.objects.get(kind=DocumentKind.ROUTES, state=RevisionState.ACTIVE), name)


def _route(document: DataplaneDocument, name: str) -> DeploymentRoute:
    return next(deployment for deployment in opened(document).deployments if deployment.name == name)
