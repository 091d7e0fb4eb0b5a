"""Publishes the two documents to the data plane: signed rows, a generation each, and a NOTIFY in one transaction.

*Access* is in force as soon as it is there. *Routes* are prepared first and activated by the data plane; what became
of them is read back in settling.py. An advisory lock orders the publishers of a kind, so that a document holds all
that the ones before it did; it is taken before the rows are read or changed, so no two transactions wait for each
other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import msgspec
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from controlplane.deployments.documents import build_access, build_routes
from controlplane.deployments.models import DataplaneDocument, DocumentKind, RevisionState, SplitRevision
from inference.contracts import Access, Routes
from inference.snapshot import derive_secret, encode, open_routes, sign

CHANNEL = "signalbox_documents"
KEPT_DOCUMENTS = 50
# The first number is this project's, so that another tenant of the database does not meet our locks by chance.
LOCK_SPACE = 0x5167
LOCKS = {DocumentKind.ACCESS: 1, DocumentKind.ROUTES: 2}


@contextmanager
def locked(kind: DocumentKind) -> Iterator[None]:
    """A transaction in which no other publishes documents of this kind."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LOCK_SPACE, LOCKS[kind]])
        yield


def publish_access() -> int | None:
    """Publishes the keys as they are now; returns the generation, or None where nothing has changed since."""
    with locked(DocumentKind.ACCESS):
        published = _of(DocumentKind.ACCESS).first()
        generation = _publish(DocumentKind.ACCESS, build_access(), published, RevisionState.ACTIVE)
        if generation is not None:
            older = _of(DocumentKind.ACCESS).filter(generation__lt=generation, state=RevisionState.ACTIVE)
            older.update(state=RevisionState.SUPERSEDED)
        return generation


def publish_routes() -> int | None:
    """Publishes the deployments as they are now; returns the generation, or None where nothing has changed since.

    A generation that was still preparing gives way: the new one holds all that it did. A failed one does not count
    as published, so what it wanted is compared with what serves.
    """
    with locked(DocumentKind.ROUTES):
        in_force = _of(DocumentKind.ROUTES).filter(state__in=[RevisionState.PREPARING, RevisionState.ACTIVE])
        generation = _publish(DocumentKind.ROUTES, build_routes(), in_force.first(), RevisionState.PREPARING)
        if generation is not None:
            older = _of(DocumentKind.ROUTES).filter(generation__lt=generation, state=RevisionState.PREPARING)
            older.update(state=RevisionState.SUPERSEDED)
            unpublished = SplitRevision.objects.filter(state=RevisionState.PREPARING, generation=None)
            unpublished.update(generation=generation)
        return generation


def active_routes() -> Routes | None:
    """The routes that the data plane serves by; None before the first activation."""
    document = _of(DocumentKind.ROUTES).filter(state=RevisionState.ACTIVE).first()
    return opened(document) if document else None


def opened(document: DataplaneDocument) -> Routes:
    """The content of a routes document. Raises SnapshotRejectedError where the secret key has been changed since."""
    return open_routes(_secret(), document.body.encode(), document.signature)


def _of(kind: DocumentKind) -> QuerySet[DataplaneDocument]:
    return DataplaneDocument.objects.filter(kind=kind).order_by("-generation")


def _publish(
    kind: DocumentKind, content: Access | Routes, published: DataplaneDocument | None, state: RevisionState
) -> int | None:
    """Inserts and announces the content, unless `published` says the same under the same key."""
    if published is not None:
        body = encode(msgspec.structs.replace(content, generation=published.generation))
        if body == published.body.encode() and sign(_secret(), body) == published.signature:
            return None
    newest = _of(kind).values_list("generation", flat=True).first() or 0
    generation = newest + 1
    body = encode(msgspec.structs.replace(content, generation=generation))
    DataplaneDocument.objects.create(
        kind=kind,
        generation=generation,
        body=body.decode(),
        signature=sign(_secret(), body),
        state=state,
        activated_at=timezone.now() if state == RevisionState.ACTIVE else None,
    )
    spent = Q(state=RevisionState.SUPERSEDED) | Q(state=RevisionState.FAILED, settled=True)
    _of(kind).filter(spent, generation__lte=generation - KEPT_DOCUMENTS).delete()
    with connection.cursor() as cursor:
        # Delivered at commit: whoever hears it finds the row.
        cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, f"{kind.value}:{generation}"])
    return generation


@cache
def _secret() -> bytes:
    return derive_secret(settings.SECRET_KEY)
