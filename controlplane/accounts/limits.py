"""Limits of keys at the control API, for all processes and hosts: rates are counted in Redis, quotas in PostgreSQL.

The front door counts by itself, on each host, and marks what it passes on; quotas it compares with the same table. With
Redis away each process counts alone: a limit that is held too loosely for a while is better than a call that fails.
"""

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from urllib.parse import parse_qs, urlencode, urlsplit

from django.conf import settings
from django.db import connection
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from controlplane.accounts.models import ApiKey, QuotaUse
from inference.errors import InferenceError
from inference.limits import WINDOW_S, Allowance, over_limit, over_quota, policy_of, spend, tighter

logger = logging.getLogger(__name__)

ANSWERS_WITHIN_S = 0.25
# After a failure no request asks Redis for so long.
PAUSE_S = 5.0
# Keys that one process remembers while Redis is away.
MOST_KEYS = 4096
# Days of quotas that are kept beside today's.
KEEP_DAYS = timedelta(days=7)

# In microseconds: the interval of a call, and the window. Returns {1, busy after the call}, or {0, busy had it been
# taken}. Redis's own clock is the one that all hosts share. What a limit that was larger left beyond a window is cut;
# half an interval more is allowed, for what rounding to microseconds adds up to.
_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local paid_back_at = tonumber(redis.call('GET', KEYS[1]) or '0')
local busy = math.min(math.max(paid_back_at - now, 0), tonumber(ARGV[2])) + tonumber(ARGV[1])
if busy > tonumber(ARGV[2]) + tonumber(ARGV[1]) / 2 then
  return {0, math.ceil(busy)}
end
redis.call('SET', KEYS[1], string.format('%.0f', now + busy), 'PX', math.ceil(busy / 1000) + 1)
return {1, math.ceil(busy)}
"""

_lock = threading.Lock()
_away_until = 0.0
_paid_back_at: dict[str, float] = {}


# Returns no row where the quota is used up.
_TAKE_QUOTA = """
INSERT INTO quota_use (key_id, day, calls) VALUES (%s, %s, 1)
ON CONFLICT (key_id, day) DO UPDATE SET calls = quota_use.calls + 1 WHERE quota_use.calls < %s
RETURNING calls
"""


def take(key: ApiKey) -> Allowance | None:
    """Uses one call of the key's limits; None where it has none.

    Raises InferenceError rate_limited or quota_exceeded with Retry-After.
    """
    policy = policy_of(key.rate_per_minute, key.quota_per_day)
    if not policy:
        return None
    try:
        return tighter(_take_rate(key), _take_quota(key), policy)
    except InferenceError as error:
        error.headers["RateLimit-Policy"] = policy
        raise


def calls_of_day(key: ApiKey, now: datetime) -> int:
    """Calls that count against the key's quota, of the day of UTC; those at front doors within a second. One query."""
    found = QuotaUse.objects.filter(key_id=key.pk, day=now.astimezone(UTC).date())
    return found.values_list("calls", flat=True).first() or 0


def forget_past_days() -> int:
    """Deletes the counts of days that nobody asks for any more; how many. For the scheduler."""
    # Some days more than none: the clock of a host may be behind.
    first = datetime.now(UTC).date() - KEEP_DAYS
    return QuotaUse.objects.filter(day__lt=first).delete()[0]


def _take_quota(key: ApiKey) -> Allowance | None:
    quota = key.quota_per_day
    if quota is None:
        return None
    now = time.time()
    with connection.cursor() as cursor:
        cursor.execute(_TAKE_QUOTA, [key.pk, datetime.fromtimestamp(now, UTC).date(), quota])
        row = cursor.fetchone()
    if row is None:
        raise over_quota(quota, now)
    return Allowance.of_quota(quota, row[0], now)


def _take_rate(key: ApiKey) -> Allowance | None:
    limit = key.rate_per_minute
    if limit is None:
        return None
    if limit <= 0:
        raise over_limit(0, WINDOW_S)
    counted = _shared(f"signalbox:rate:{key.pk}", limit)
    if counted is None:
        return Allowance.after(limit, _alone(str(key.pk), limit))
    taken, busy_s = counted
    if not taken:
        raise over_limit(limit, busy_s - WINDOW_S)
    return Allowance.after(limit, busy_s)


def _shared(name: str, limit: int) -> tuple[bool, float] | None:
    """(whether the call is within the limit, seconds of paying back ahead); None where Redis does not answer."""
    global _away_until
    if not settings.REDIS_URL or time.monotonic() < _away_until:
        return None
    try:
        script = _client(settings.REDIS_URL).register_script(_SCRIPT)
        taken, busy_us = script([name], [WINDOW_S * 1e6 / limit, int(WINDOW_S * 1e6)])
    except (RedisError, OSError, ValueError) as error:
        _away_until = time.monotonic() + PAUSE_S
        logger.warning("Redis counts no calls (%s); rate limits hold per process meanwhile", type(error).__name__)
        return None
    return taken == 1, busy_us / 1e6


def _alone(key_id: str, limit: int) -> float:
    """The same in this process's memory. Raises rate_limited."""
    with _lock:
        now = time.monotonic()
        busy_s = spend(limit, min(_paid_back_at.get(key_id, now) - now, WINDOW_S))
        if key_id not in _paid_back_at and len(_paid_back_at) >= MOST_KEYS:
            del _paid_back_at[min(_paid_back_at, key=_paid_back_at.__getitem__)]
        _paid_back_at[key_id] = now + busy_s
        return busy_s


@lru_cache(maxsize=1)
def _client(url: str) -> Redis:
    """`url` as Celery's transport reads it: redis:// and rediss:// as they are, a socket as redis+socket://."""
    parts = urlsplit(url)
    if parts.scheme == "redis+socket":
        asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        asked["db"] = asked.pop("virtual_host", "0")
        url = f"unix://{parts.netloc}{parts.path}?{urlencode(asked)}"
    return Redis.from_url(
        url,
        socket_connect_timeout=ANSWERS_WITHIN_S,
        socket_timeout=ANSWERS_WITHIN_S,
        retry=Retry(NoBackoff(), 0),
    )
