"""Runs the registered periodic functions, in one process of the installation at a time."""

import logging
import time
from collections.abc import Callable, Iterable

from django.db import DatabaseError, InterfaceError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from controlplane.deployments.periodic import Periodic
from controlplane.deployments.publishing import LOCK_SPACE

logger = logging.getLogger(__name__)

LOCK = 3


class OneOfUs:
    """A session's advisory lock on a connection of its own: the database gives it up when the holder dies."""

    def __init__(self) -> None:
        self._connection: BaseDatabaseWrapper | None = None

    def held(self) -> bool:
        """Whether this process is the one, after trying to become it. False also while PostgreSQL is away."""
        try:
            if self._connection is None:
                self._connection = connections.create_connection("default")
                return self._ask("SELECT pg_try_advisory_lock(%s, %s)")
            # A lock is lost with its session alone, so one that answers still holds what it held.
            return self._ask(
                "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() "
                "AND classid = %s AND objid = %s) OR pg_try_advisory_lock(%s, %s)"
            )
        except (DatabaseError, InterfaceError):
            logger.warning("PostgreSQL does not answer; the scheduler waits for it")
            self.release()
            return False

    def release(self) -> None:
        """Ends the session, and the lock with it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, question: str) -> bool:
        assert self._connection is not None
        with self._connection.cursor() as cursor:
            cursor.execute(question, [LOCK_SPACE, LOCK] * (question.count("%s") // 2))
            (answer,) = cursor.fetchone()
        return bool(answer)


class Scheduler:
    """Periodic functions and when each is due next. A failure is logged and the function runs again when it is due."""

    def __init__(self, functions: Iterable[Periodic], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due_at = {function: clock() for function in functions}

    def do_one(self) -> bool:
        """Runs the function that has been due the longest; False where none is due yet."""
        now = self._clock()
        due = [(at, function.name, function) for function, at in self._due_at.items() if at <= now]
        if not due:
            return False
        _, _, function = min(due, key=lambda entry: entry[:2])
        # A late function is not made up for: what it does once is enough.
        self._due_at[function] = now + function.every_s
        try:
            _keep_connections()
            function.function()
        except Exception:
            logger.exception("periodic function %s failed", function.name)
        return True

    def pause_s(self) -> float:
        """Seconds until the next function is due."""
        return max(0.0, min(self._due_at.values(), default=1.0) - self._clock())


def _keep_connections() -> None:
    """Connections that still stand are used on: making one takes longer than most functions do."""
    for found in connections.all(initialized_only=True):
        found.close_at = None
        if found.connection is not None and not found.is_usable():
            found.close()
