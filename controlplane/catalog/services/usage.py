"""What may hold a version: rooms above say so through a registry, because catalog knows no deployment."""

from collections.abc import Callable

from controlplane.catalog.models import ModelVersion
from controlplane.errors import DomainError, field_error

# Each returns a sentence that names what holds the version ("It has 90 % of “fraud”."), or None. Filled in
# AppConfig.ready; called inside the archiving transaction, which holds the version's row locked.
in_use_checks: list[Callable[[ModelVersion], str | None]] = []
# Likewise of what needs the version to state its intended use.
intended_use_checks: list[Callable[[ModelVersion], str | None]] = []


def refuse_where_used(version: ModelVersion) -> None:
    """Raises DomainError `conflict` where something holds the version."""
    for check in in_use_checks:
        held = check(version)
        if held:
            raise DomainError("conflict", f"{version} cannot be archived. {held}")


def refuse_where_intended_use_is_needed(version: ModelVersion) -> None:
    """Raises DomainError `conflict` where something needs the version to state its intended use."""
    for check in intended_use_checks:
        needed = check(version)
        if needed:
            raise field_error("conflict", "intended_use", f"{version} must state its intended use. {needed}")
