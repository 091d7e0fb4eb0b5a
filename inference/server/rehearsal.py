"""X-Test-Outcome: a test key rehearses how its app takes a refusal, or an answer that is slow to come.

With a live key the header means nothing: no live call fails by it.
"""

from inference.errors import InferenceError
from inference.limits import over_limit
from inference.server.asking import Ask

HEADER = b"x-test-outcome"
SLOW = "slow"
# What `slow` adds, as far as the deadline lets it.
SLOW_S = 2.0
# The rate that the refusal of a key without one speaks of.
_RATE = 60


def rehearse(ask: Ask, value: bytes) -> None:
    """Raise the refusal that the header asks for, made as the real one is; `slow` is noted in `ask.rehearsal`.

    Raises rate_limited, overloaded or deadline_exceeded; bad_header for another value.
    """
    outcome = value.decode("latin-1").strip().lower()
    if outcome not in ("429", "503", "504", SLOW):
        raise InferenceError("bad_header", "X-Test-Outcome is 429, 503, 504 or slow.")
    ask.rehearsal = outcome
    if outcome == "429":
        rate = ask.caller.rate_per_minute if ask.caller is not None else None
        refusal = over_limit(rate or _RATE, 60 / (rate or _RATE))
        if ask.allowance is not None and ask.allowance.policy:
            refusal.headers["RateLimit-Policy"] = ask.allowance.policy
        raise refusal
    if outcome == "503":
        raise InferenceError("overloaded", headers={"Retry-After": "1"})
    if outcome == "504":
        raise InferenceError("deadline_exceeded")
