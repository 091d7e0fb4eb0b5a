"""Refused calls in the spool: each kind of refusal at once, floods of one kind as a count a second."""

import logging

import msgspec

from inference.contracts import SpoolRecord
from inference.errors import InferenceError
from inference.routing import uuid7
from inference.spool import SpoolWriter

_log = logging.getLogger(__name__)

# Kinds (deployment, key, code, place) told apart in one second; past that only deployment and code are.
_MOST_KINDS = 64
_LOC_CHARACTERS = 64

_Kind = tuple[str, str, str, str]


class Refusals:
    """Writes refusals to the spool, at most 2 x 64 records a second whatever comes in.

    The first of a kind in a second is written at once. The others of that second are one further record, written by
    `flush`, whose `rows` is how many calls it stands for. `rows` of a refusal counts calls, never rows of a batch.
    """

    def __init__(self, spool: SpoolWriter) -> None:
        self._spool = spool
        self._more: dict[_Kind, tuple[SpoolRecord, int]] = {}

    def note(self, record: SpoolRecord) -> None:
        """Log one refused call. A full disk is logged, not raised: the caller is being refused anyway."""
        record.loc = record.loc[:_LOC_CHARACTERS]
        record.rows = 1
        kind = (record.deployment_id, record.key_id, record.code, record.loc)
        if kind not in self._more and len(self._more) >= _MOST_KINDS:
            kind = ("", "", record.code, "")
            record = _anonymous(record)
        if kind in self._more:
            first, count = self._more[kind]
            self._more[kind] = (first, count + 1)
            return
        self._more[kind] = (record, 0)
        self._write(record)

    def flush(self) -> None:
        """Write the counts of the second that ends, and begin another."""
        ended, self._more = self._more, {}
        for record, count in ended.values():
            if count:
                self._write(msgspec.structs.replace(record, id=uuid7(), rows=count, client_id="", context={}))

    def _write(self, record: SpoolRecord) -> None:
        try:
            self._spool.append(record)
        except InferenceError:
            _log.error("a refusal was not logged: the spool's disk is full (code %s)", record.code)


def _anonymous(record: SpoolRecord) -> SpoolRecord:
    return msgspec.structs.replace(record, deployment_id="", key_id="", loc="", client_id="", context={})
