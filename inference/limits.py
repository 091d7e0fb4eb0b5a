"""Rate limits of keys: the arithmetic, and the mark by which the control plane knows what the front door counted.

The generic cell rate algorithm (ITU-T I.371, the virtual scheduling form): per key one number, the time at which its
used-up calls are all paid back. A key with N calls a minute may make N at once, then one each 60/N seconds.
"""

import hashlib
import hmac
from dataclasses import dataclass
from math import ceil

from inference.errors import InferenceError

WINDOW_S = 60.0
# Below it lies what summing N intervals of 60/N seconds may be off by.
SLACK_S = 1e-6
# The header that carries `admitted_mark` from the front door to the control plane.
ADMITTED_HEADER = "x-signalbox-admitted"


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a key has left: calls now, and seconds until the whole limit is free again."""

    limit: int
    remaining: int
    reset_s: int

    @classmethod
    def after(cls, limit: int, busy_s: float) -> "Allowance":
        """Where `busy_s` seconds of paying back are ahead, this call's share of them included."""
        return cls(limit, max(0, int((WINDOW_S - busy_s) * limit / WINDOW_S + 1e-4)), ceil(busy_s))

    @property
    def named(self) -> dict[str, str]:
        """The RateLimit headers (draft-ietf-httpapi-ratelimit-headers-06)."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_s),
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


def admitted_mark(secret_key: str) -> str:
    """What the front door says of a call that it has admitted and counts; nobody without SIGNALBOX_SECRET_KEY can."""
    return hmac.new(secret_key.encode(), b"signalbox-admitted", hashlib.sha256).hexdigest()
