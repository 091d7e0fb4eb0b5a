"""Who calls, and what they may: the access document as a table of key digests."""

from dataclasses import dataclass
from hashlib import sha256

from inference.contracts import Access, AccessKey, DeploymentRoute, Scope, Source
from inference.errors import InferenceError
from inference.limits import policy_of

_BEARER = b"bearer "
# Ours are 50 characters; whatever is longer is no key and is not worth a hash.
_MAX_KEY_BYTES = 256
_MAX_SEEN = 1024
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="signalbox"'}


@dataclass(frozen=True, slots=True)
class Caller:
    """An API key, laid out for the hot path. `deployments` None: every deployment of the team."""

    id: str
    team_id: str
    deployments: frozenset[str] | None
    may_predict: bool
    may_pin: bool
    may_read: bool
    revoked: bool
    expires_at: float
    rate_per_minute: int | None
    quota_per_day: int | None
    # What is told of its limits, "" without any: see `inference.limits.policy_of`.
    policy: str
    digest: bytes
    source: Source

    @classmethod
    def of(cls, key: AccessKey) -> "Caller":
        scopes = set(key.scopes)
        return cls(
            id=key.id,
            team_id=key.team_id,
            deployments=None if key.deployments is None else frozenset(key.deployments),
            may_predict=Scope.PREDICT in scopes,
            may_pin=Scope.PIN in scopes,
            # A key that may ask may see what it asks: a deployment's signature and its state.
            may_read=Scope.READ in scopes or Scope.PREDICT in scopes,
            revoked=key.revoked,
            expires_at=float("inf") if key.expires_at is None else key.expires_at,
            rate_per_minute=key.rate_per_minute,
            quota_per_day=key.quota_per_day,
            policy=policy_of(key.rate_per_minute, key.quota_per_day),
            digest=bytes.fromhex(key.digest),
            source=Source.TEST if key.test else Source.LIVE,
        )

    def require_valid(self, now: float) -> None:
        """Raise not_authenticated for a key that was revoked or has expired; `now` is Unix seconds."""
        if self.revoked:
            raise InferenceError("not_authenticated", "The key was revoked.", headers=_CHALLENGE)
        if now >= self.expires_at:
            raise InferenceError("not_authenticated", "The key has expired.", headers=_CHALLENGE)

    def reaches(self, deployment: DeploymentRoute) -> bool:
        """Whether the deployment exists for this key at all; what does not answers as if it were not there."""
        if self.team_id != deployment.team_id:
            return False
        return self.deployments is None or deployment.id in self.deployments


class AccessTable:
    """The access document of one generation, immutable."""

    def __init__(self, access: Access) -> None:
        self.generation = access.generation
        self._callers = {bytes.fromhex(key.digest): Caller.of(key) for key in access.keys}
        self.with_quota = tuple(caller for caller in self._callers.values() if caller.quota_per_day is not None)
        # Metrics need a key with the scope `read` itself.
        self._readers = {bytes.fromhex(key.digest) for key in access.keys if Scope.READ in key.scopes}
        # Headers whose key was found, for as long as this document is in force: a look-up instead of a hash.
        self._seen: dict[bytes | None, Caller] = {}

    def find(self, authorization: bytes | None) -> Caller:
        """The caller of an Authorization header. Raises not_authenticated; the key may be revoked or expired still."""
        if (seen := self._seen.get(authorization)) is not None:
            return seen
        if authorization is None:
            raise InferenceError(
                "not_authenticated", "Send the key as: Authorization: Bearer sb_...", headers=_CHALLENGE
            )
        if authorization[:7].lower() != _BEARER or len(authorization) > _MAX_KEY_BYTES:
            raise InferenceError("not_authenticated", "The Authorization header is not a key.", headers=_CHALLENGE)
        caller = self._callers.get(sha256(authorization[7:].strip()).digest())
        if caller is None:
            raise InferenceError("not_authenticated", "The key is unknown.", headers=_CHALLENGE)
        if len(self._seen) >= _MAX_SEEN:
            self._seen.clear()
        self._seen[authorization] = caller
        return caller

    def may_read_metrics(self, caller: Caller) -> bool:
        return caller.digest in self._readers
