"""Registers, edits and archives models: the names under which versions are uploaded."""

from django.db import IntegrityError, transaction
from django.utils import timezone

from controlplane.accounts.models import Team
from controlplane.audit.services import Actor, record_change
from controlplane.catalog.descriptions import check_model_name, read_text
from controlplane.catalog.models import ModelVersion, RegisteredModel, VersionState
from controlplane.catalog.services.usage import refuse_where_used
from controlplane.errors import DomainError, field_error


def register_model(*, actor: Actor, team: Team, name: str, description: str = "") -> RegisteredModel:
    """Makes a model. Raises DomainError `bad_name`, or `conflict` where any team has the name."""
    check_model_name(name)
    text = read_text(description, "description", 2000)
    try:
        with transaction.atomic():
            model = RegisteredModel.objects.create(team=team, name=name, description=text, created_by_id=actor.user_id)
            record_change(actor=actor, action="model.register", of=model, after={"name": name, "description": text})
    except IntegrityError:
        raise field_error(
            "conflict", "name", f"The name “{name}” is taken: names are unique in the installation."
        ) from None
    return model


def edit_model(*, actor: Actor, model: RegisteredModel, description: str) -> RegisteredModel:
    """Changes the description. Raises DomainError `validation_error` or `bad_text`."""
    text = read_text(description, "description", 2000)
    with transaction.atomic():
        locked = RegisteredModel.objects.select_for_update().get(pk=model.pk)
        before, locked.description = locked.description, text
        if before != text:
            locked.save(update_fields=["description"])
            record_change(
                actor=actor, action="model.edit", of=locked, before={"description": before}, after={"description": text}
            )
    return locked


def archive_model(*, actor: Actor, model: RegisteredModel, reason: str = "") -> RegisteredModel:
    """Archives a model with all its versions; its name stays taken. Archiving twice changes nothing.

    Raises DomainError `conflict` where one of its versions is in use.
    """
    now = timezone.now()
    with transaction.atomic():
        locked = RegisteredModel.objects.select_for_update().get(pk=model.pk)
        if locked.archived_at is not None:
            return locked
        live = ModelVersion.objects.select_for_update(of=("self",)).select_related("model")
        for version in live.filter(model=locked).exclude(state=VersionState.ARCHIVED):
            refuse_where_used(version)
        locked.archived_at = now
        locked.save(update_fields=["archived_at"])
        archived = (
            ModelVersion.objects.filter(model=locked)
            .exclude(state=VersionState.ARCHIVED)
            .update(state=VersionState.ARCHIVED, archived_at=now)
        )
        record_change(actor=actor, action="model.archive", of=locked, after={"versions": archived}, reason=reason)
    return locked


def refuse_where_archived(model: RegisteredModel) -> None:
    """Raises DomainError `gone`."""
    if model.archived_at is not None:
        raise DomainError("gone", f"The model “{model.name}” was archived.")
