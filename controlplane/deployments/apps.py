from typing import Any

from django.apps import AppConfig


class DeploymentsConfig(AppConfig):
    name = "controlplane.deployments"
    label = "deployments"

    def ready(self) -> None:
        from controlplane.accounts import limits
        from controlplane.accounts.signals import keys_changed
        from controlplane.catalog.services import (
            in_use_checks,
            intended_use_checks,
            sweep_artifacts,
            sweep_validations,
        )
        from controlplane.deployments import periodic, settling
        from controlplane.deployments.queries import what_holds, what_is_clinical
        from controlplane.deployments.watching import Watch

        in_use_checks.append(what_holds)
        intended_use_checks.append(what_is_clinical)
        keys_changed.connect(_publish_keys, dispatch_uid="deployments.publish_keys")
        periodic.register("settle", 0.5, settling.settle)
        periodic.register("reconcile", 2.0, Watch().look)
        # Catalog and accounts are lower rooms, so they cannot register here themselves.
        periodic.register("validations", 5.0, sweep_validations)
        periodic.register("artifacts", 3600.0, sweep_artifacts)
        periodic.register("quotas", 3600.0, limits.forget_past_days)


def _publish_keys(**_: Any) -> None:
    from controlplane.deployments.publishing import publish_access

    publish_access()
