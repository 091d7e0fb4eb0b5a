"""Limits of keys: the arithmetic, and the mark by which the control plane knows what the front door counted.

A quota is so many calls in a day of UTC. A rate is kept by the generic cell rate algorithm (ITU-T I.371, the virtual
scheduling form): per key one number, the time at which its used-up calls are all paid back. A key with N calls a minute
may make N at once, then one each 60/N seconds.
"""

import hashlib
import hmac
from dataclasses import dataclass, replace
from math import ceil

from inference.errors import InferenceError

WINDOW_S = 60.0
DAY_S = 86_400
# Below it lies what summing N intervals of 60/N seconds may be off by.
SLACK_S = 1e-6
# The header that carries `admitted_mark` from the front door to the control plane.
ADMITTED_HEADER = "x-signalbox-admitted"


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a key has left of one limit: calls now, and seconds until the whole limit is free again."""

    limit: int
    remaining: int
    reset_s: int
    # All limits of the key, see `policy_of`.
    policy: str = ""

    @classmethod
    def after(cls, limit: int, busy_s: float) -> "Allowance":
        """Where `busy_s` seconds of paying back are ahead, this call's share of them included."""
        return cls(limit, max(0, int((WINDOW_S - busy_s) * limit / WINDOW_S + 1e-4)), ceil(busy_s))

    @classmethod
    def of_quota(cls, quota: int, used: int, now: float) -> "Allowance":
        """Where `used` calls of the day are used, this one included; `now`: Unix seconds."""
        return cls(quota, max(0, quota - used), until_midnight_s(now))

    @property
    def named(self) -> dict[str, str]:
        """The RateLimit headers (draft-ietf-httpapi-ratelimit-headers-06)."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_s),
            **({"RateLimit-Policy": self.policy} if self.policy else {}),
        }

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(name.lower().encode(), value.encode()) for name, value in self.named.items()]


def spend(limit: int, busy_s: float) -> float:
    """Seconds of paying back ahead after one more call, where `busy_s` were before it. Raises rate_limited."""
    after = max(0.0, busy_s) + WINDOW_S / limit
    if after > WINDOW_S + SLACK_S:
        raise over_limit(limit, after - WINDOW_S)
    return after


def over_limit(limit: int, wait_s: float) -> InferenceError:
    """rate_limited, with Retry-After in whole seconds and the RateLimit headers."""
    wait = max(1, ceil(wait_s))
    return InferenceError(
        "rate_limited",
        f"The key's limit of {limit} calls a minute is reached.",
        headers={"Retry-After": str(wait), **Allowance(limit, 0, wait).named},
    )


def over_quota(quota: int, now: float) -> InferenceError:
    """quota_exceeded, with Retry-After until the quota begins anew and the RateLimit headers; `now`: Unix seconds."""
    told = Allowance.of_quota(quota, quota, now)
    return InferenceError(
        "quota_exceeded",
        f"The key's quota of {quota} calls a day is used up; the next day begins at 00:00 UTC.",
        headers={"Retry-After": str(told.reset_s), **told.named},
    )


def policy_of(rate_per_minute: int | None, quota_per_day: int | None) -> str:
    """The RateLimit-Policy header of a key: each limit with its window in seconds; "" for a key without any."""
    limits = ((rate_per_minute, WINDOW_S), (quota_per_day, DAY_S))
    return ", ".join(f"{limit};w={window:.0f}" for limit, window in limits if limit is not None)


def tighter(rate: Allowance | None, quota: Allowance | None, policy: str) -> Allowance | None:
    """What an answer tells of: of two limits the one with fewer calls left."""
    told = min((each for each in (rate, quota) if each is not None), key=lambda each: each.remaining, default=None)
    return replace(told, policy=policy) if told is not None else None


def day_of(now: float) -> int:
    """The day of UTC, counted from 1970; `now`: Unix seconds."""
    return int(now // DAY_S)


def until_midnight_s(now: float) -> int:
    """Whole seconds until the next day of UTC, at least one."""
    return max(1, ceil(DAY_S - now % DAY_S))


def admitted_mark(secret_key: str) -> str:
    """What the front door says of a call that it has admitted and counts; nobody without SIGNALBOX_SECRET_KEY can."""
    return hmac.new(secret_key.encode(), b"signalbox-admitted", hashlib.sha256).hexdigest()
