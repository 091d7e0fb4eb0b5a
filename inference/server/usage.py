"""What keys used of their quotas over all hosts: each tells the database what it let in, and learns what all did."""

from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic

import psycopg

from inference.limits import DAY_S
from inference.server.auth import Caller
from inference.server.limits import Quotas

# A host on which a key rests learns as seldom as this what others let in.
_REST_S = 5.0

_TELL = """
INSERT INTO quota_use (key_id, day, calls)
SELECT key_id, %s, calls FROM unnest(%s::uuid[], %s::bigint[]) AS told (key_id, calls) ORDER BY key_id
ON CONFLICT (key_id, day) DO UPDATE SET calls = quota_use.calls + EXCLUDED.calls
"""
_LEARN = "SELECT key_id::text, calls FROM quota_use WHERE day = %s AND key_id = ANY(%s::uuid[])"


class Usage:
    """Exchanges the counts of `quotas` with the database's."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._learned_at = float("-inf")

    async def exchange(
        self, connection: psycopg.AsyncConnection[tuple[object, ...]], callers: Sequence[Caller]
    ) -> None:
        """Tell and learn, of keys that called here today; no statement where none did. Raises psycopg.Error.

        A process that dies between its count and its statement leaves that second's calls untold.
        """
        if not callers:
            return
        day = self._quotas.today()
        found = {caller: untold for caller in callers if (untold := self._quotas.tell(caller, day)) is not None}
        told = {caller: untold for caller, untold in found.items() if untold}
        if not told and (not found or monotonic() < self._learned_at + _REST_S):
            return
        date = datetime.fromtimestamp(day * DAY_S, UTC).date()
        if told:
            try:
                await connection.execute(_TELL, (date, [caller.id for caller in told], list(told.values())))
            except BaseException:
                for caller, untold in told.items():
                    self._quotas.take_back(caller, day, untold)
                raise
        learned = await connection.execute(_LEARN, (date, [caller.id for caller in found]))
        calls = {str(key_id): int(str(number)) for key_id, number in await learned.fetchall()}
        for caller in found:
            self._quotas.learn(caller, day, calls.get(caller.id, 0))
        self._learned_at = monotonic()
