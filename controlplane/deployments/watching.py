"""Looks at whether documents have to be published again without making them: most looks find nothing new."""

import time
from collections.abc import Callable

from django.db import connection

from controlplane.deployments.settling import reconcile

# What changes by mere time (what ended long ago is left out, what failed is tried again) need not be found sooner.
AT_LEAST_EVERY_S = 10.0
# What the documents are made from, and what became of them.
TABLES = (
    "accounts_apikey",
    "deployments_keygrant",
    "deployments_deployment",
    "deployments_splitrevision",
    "deployments_versionlabel",
    "catalog_registeredmodel",
    "catalog_modelversion",
    "dataplane_document",
)
# Each write gives a row another transaction or another place.
_MARK = "(SELECT sum(hashtextextended(xmin::text || ctid::text, 0)) FROM {})"
_MARKS = "SELECT " + ", ".join(_MARK.format(table) for table in TABLES)


class Watch:
    """`look()` is run now and then: it reconciles where a row was written since a look that found nothing to do."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._settled: tuple[object, ...] | None = None
        self._looked_at = clock()

    def look(self) -> bool:
        """As `reconcile`; one query where nothing was written."""
        with connection.cursor() as cursor:
            cursor.execute(_MARKS)
            # Taken before it is looked at, so what is written meanwhile is found by the next look.
            marks = cursor.fetchone()
        if marks == self._settled and self._clock() - self._looked_at < AT_LEAST_EVERY_S:
            return False
        self._settled, self._looked_at = None, self._clock()
        published = reconcile()
        if not published:
            self._settled = marks
        return published
