"""Workers say that they live, so that a page can tell a long queue from one that nobody takes from."""

import logging
import os
import socket
import threading
from typing import Any

from celery.signals import worker_ready, worker_shutting_down
from django.db import DatabaseError, connection
from django.db.models.functions import Now

from controlplane.jobs.dispatch import QUEUE
from controlplane.jobs.models import WORKER_SILENT_S, Worker

logger = logging.getLogger(__name__)

_ended = threading.Event()


@worker_ready.connect  # type: ignore[untyped-decorator]  # Celery carries no types
def begin(sender: Any, **_: Any) -> None:
    """Starts to beat in the worker's main process, where it takes from the heavy queue."""
    if QUEUE in sender.app.amqp.queues.consume_from:
        _ended.clear()
        threading.Thread(target=_beat, name="beat", daemon=True).start()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]  # Celery carries no types
def end(**_: Any) -> None:
    """From now on the worker takes no more jobs."""
    _ended.set()


def beat(name: str) -> None:
    """Notes that the worker lives. One statement."""
    said = [Worker(name=name, seen_at=Now())]
    Worker.objects.bulk_create(said, update_conflicts=True, unique_fields=["name"], update_fields=["seen_at"])


def _beat() -> None:
    name = f"{socket.gethostname()}:{os.getpid()}"[:200]
    while True:
        try:
            beat(name)
        except DatabaseError as error:
            logger.warning("the worker cannot say that it lives: %s", type(error).__name__)
        finally:
            # A child that is forked meanwhile must not hold it.
            connection.close()
        if _ended.wait(WORKER_SILENT_S / 3):
            break
    try:
        Worker.objects.filter(name=name).delete()
    except DatabaseError as error:
        logger.warning("the worker cannot say that it ends: %s", type(error).__name__)
    finally:
        connection.close()


def forget_silent() -> int:
    """Periodic: forgets workers that have been silent for long. Returns how many."""
    return Worker.objects.exclude(pk__in=Worker.objects.alive().values("pk")).delete()[0]
