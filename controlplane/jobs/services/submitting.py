"""Takes a job on: chooses its version, reads and stores what it carries, and writes its row."""

import hashlib
import hmac
import logging
import secrets
import uuid
from dataclasses import dataclass, field
from datetime import timedelta

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from controlplane.accounts.models import ApiKey, User
from controlplane.deployments.documents import active_route
from controlplane.deployments.models import Deployment
from controlplane.errors import DomainError
from controlplane.jobs import vault
from controlplane.jobs.bodies import read_body
from controlplane.jobs.dispatch import send_later
from controlplane.jobs.models import Job, JobStatus, PayloadKind
from controlplane.jobs.payloads import Payload, pack, without_identifiers
from inference.contracts import DeploymentRoute, Source, VersionRoute
from inference.errors import InferenceError
from inference.routing import bucket, choose

logger = logging.getLogger(__name__)

SAME_JOB_FOR = timedelta(hours=24)
QUEUED_MOST = 10_000
LOCK_SPACE = 0x5B04


@dataclass(frozen=True, slots=True)
class Submission:
    """What was posted. `media_type` in lower case without parameters; `pin` is a version's number."""

    body: bytes
    media_type: str
    sticky_key: str = ""
    idempotency_key: str = ""
    client_id: str = ""
    context: dict[str, str] = field(default_factory=dict)
    pin: int | None = None
    request_id: str = ""

    @property
    def digest(self) -> str:
        """What makes two bodies the same: the bytes, and what they were said to be."""
        return hashlib.sha256(self.media_type.encode() + b"\0" + self.body).hexdigest()


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: a key, or a person."""

    key: ApiKey | None = None
    user: User | None = None

    @property
    def name(self) -> str:
        return f"key:{self.key.pk}" if self.key is not None else f"user:{self.user.pk if self.user else ''}"


def submit_job(*, asker: Asker, deployment: Deployment, submission: Submission) -> tuple[Job, bool]:
    """The job, and whether it is new. Its message is sent once the row is committed.

    Raises DomainError: gone, too_large, idempotency_conflict, overloaded, no_active_version, not_found (pinned
    version), and what is wrong with the body or its pictures.
    """
    if deployment.retired_at is not None:
        raise DomainError("gone", f"The deployment {deployment.name} was retired.")
    if len(submission.body) > deployment.max_body_bytes:
        raise DomainError("too_large", f"The body is larger than {deployment.max_body_bytes} bytes.")
    earlier = _same_job(asker, deployment, submission)
    if earlier is not None:
        return earlier, False
    if Job.objects.filter(deployment=deployment, status=JobStatus.QUEUED).count() >= QUEUED_MOST:
        raise DomainError("overloaded", f"{QUEUED_MOST} jobs of {deployment.name} are waiting already.")
    route = active_route(deployment)
    try:
        version = _choose_version(route, submission)
        asked = read_body(submission.body, submission.media_type, version)
        if asked.rows > deployment.max_rows:
            message = f"The call has {asked.rows} rows; {deployment.max_rows} are accepted."
            raise InferenceError("batch_too_large", message)
        payload, warnings = without_identifiers(asked, _salt(deployment))
    except InferenceError as error:
        raise DomainError.from_inference(error) from error
    return _store(asker, deployment, submission, version, route.revision, payload, asked.rows, warnings)


def enqueue_private(
    *,
    asker: Asker,
    deployment: Deployment,
    version: VersionRoute,
    revision: int,
    sealed: tuple[str, bytes],
    rows: int,
    warnings: list[str],
    request_id: str = "",
) -> Job:
    """A private job for pictures that were read and sealed already: its row, and its message once that is committed.

    `sealed`: what `seal_pictures` returned; the caller removes the file where its transaction fails.
    """
    return _insert(
        asker,
        deployment,
        Submission(b"", "", request_id=request_id),
        version,
        revision,
        PayloadKind.PICTURE if rows == 1 else PayloadKind.PICTURES,
        sealed,
        rows,
        warnings,
        private=True,
    )


def seal_pictures(pictures: list[bytes]) -> tuple[str, bytes]:
    """Stores pictures without identifiers as a job's input; its name and wrapped key. Raises DomainError."""
    return vault.seal(pack(Payload(pictures)))


def version_for(deployment: Deployment, sticky_key: str) -> tuple[VersionRoute, int]:
    """The version that the split gives a sticky key now, and the split's revision.

    Raises DomainError `gone` and `no_active_version`.
    """
    if deployment.retired_at is not None:
        raise DomainError("gone", f"The deployment {deployment.name} was retired.")
    route = active_route(deployment)
    try:
        return _choose_version(route, Submission(b"", "", sticky_key=sticky_key)), route.revision
    except InferenceError as error:
        raise DomainError.from_inference(error) from error


def _choose_version(route: DeploymentRoute, submission: Submission) -> VersionRoute:
    """By the split, with the same keys in the same order as the front door; or the version that was named."""
    if submission.pin is not None:
        pinned = route.versions.get(submission.pin)
        if pinned is None:
            raise InferenceError("not_found", f"{route.name} does not serve version {submission.pin}.")
        return pinned
    key = submission.sticky_key or submission.idempotency_key or secrets.token_hex(16)
    return route.versions[choose(route, bucket(route.salt, key))]


def _salt(deployment: Deployment) -> bytes:
    """Makes the hashes of one patient's UIDs alike within a deployment, and of no use outside it."""
    label = b"uid:" + deployment.hash_salt.encode()
    return hmac.new(settings.SIGNALBOX_MASTER_KEY.encode(), label, hashlib.sha256).digest()


def _same_job(asker: Asker, deployment: Deployment, submission: Submission) -> Job | None:
    """The job of the same Idempotency-Key and body; None where there is none. Raises idempotency_conflict."""
    if not submission.idempotency_key:
        return None
    found = (
        Job.objects.select_related("deployment")
        .filter(
            asker=asker.name,
            deployment=deployment,
            idempotency_key=submission.idempotency_key,
            created_at__gt=timezone.now() - SAME_JOB_FOR,
        )
        .first()
    )
    if found is not None and found.body_sha256 != submission.digest:
        raise DomainError("idempotency_conflict", extra={"job": str(found.pk)})
    return found


def _store(
    asker: Asker,
    deployment: Deployment,
    submission: Submission,
    version: VersionRoute,
    revision: int,
    payload: Payload,
    rows: int,
    warnings: list[str],
) -> tuple[Job, bool]:
    name, key = vault.seal(pack(payload))
    stored = False
    try:
        with transaction.atomic():
            if submission.idempotency_key:
                with connection.cursor() as cursor:
                    cursor.execute(
                        "SELECT pg_advisory_xact_lock(%s, hashtext(%s))",
                        [LOCK_SPACE, f"{asker.name} {deployment.pk} {submission.idempotency_key}"],
                    )
                earlier = _same_job(asker, deployment, submission)
                if earlier is not None:
                    return earlier, False
            job = _insert(asker, deployment, submission, version, revision, payload.kind, (name, key), rows, warnings)
            stored = True
        return job, True
    finally:
        if not stored:
            vault.remove(name)


def _insert(
    asker: Asker,
    deployment: Deployment,
    submission: Submission,
    version: VersionRoute,
    revision: int,
    kind: PayloadKind,
    sealed: tuple[str, bytes],
    rows: int,
    warnings: list[str],
    private: bool = False,
) -> Job:
    now = timezone.now()
    job = Job.objects.create(
        deployment=deployment,
        version_id=uuid.UUID(version.id),
        number=version.number,
        revision=revision,
        pinned=submission.pin is not None,
        source=Source.TEST if asker.key is not None and asker.key.test else Source.LIVE,
        private=private,
        key=asker.key,
        user=asker.user,
        client_id=submission.client_id,
        context=submission.context,
        request_id=submission.request_id,
        asker=asker.name,
        idempotency_key=submission.idempotency_key,
        # A hash would tell whether a picture is the same as one at hand.
        body_sha256="" if private else submission.digest,
        payload_kind=kind,
        payload=sealed[0],
        payload_key=sealed[1],
        rows=rows,
        warnings=warnings,
        created_at=now,
        dispatched_at=now,
    )
    send_later(job.pk)
    return job
