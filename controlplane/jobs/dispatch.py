"""Sends a job's message. The row is the truth: a message that is lost, or a broker that is down, costs seconds."""

import logging
import time
import uuid

from django.db import transaction
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from controlplane.celery import app

logger = logging.getLogger(__name__)

TASK, QUEUE = "jobs.run_heavy", "heavy"
# After a failure no request tries the broker for so long: the sweeper does.
BROKER_PAUSE_S = 5.0

_broker_down_until = 0.0


def send_later(job_id: uuid.UUID) -> None:
    """Sends the job's message once the transaction is committed; a broker that is down fails nothing."""
    transaction.on_commit(lambda: send_now(job_id))


def send_now(job_id: uuid.UUID) -> bool:
    """Whether the broker took the job's message."""
    return send(TASK, QUEUE, job_id)


def send(task: str, queue: str, row_id: uuid.UUID) -> bool:
    """Whether the broker took a message that a task has to look at a row."""
    global _broker_down_until
    if time.monotonic() < _broker_down_until:
        return False
    try:
        app.send_task(task, args=[str(row_id)], queue=queue)
    except (OperationalError, RedisError, OSError) as error:
        _broker_down_until = time.monotonic() + BROKER_PAUSE_S
        logger.warning("the broker took no message (%s); the sweeper sends it again", type(error).__name__)
        return False
    return True
