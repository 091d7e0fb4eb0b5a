from typing import Any

from django.apps import AppConfig


class DeploymentsConfig(AppConfig):
    name = "controlplane.deployments"
    label = "deployments"

    def ready(self) -> None:
        from controlplane.accounts.signals import keys_changed
        from controlplane.deployments import periodic, settling

        keys_changed.connect(_publish_keys, dispatch_uid="deployments.publish_keys")
        periodic.register("settle", 0.5, settling.settle)
        periodic.register("reconcile", 2.0, settling.reconcile)


def _publish_keys(**_: Any) -> None:
    from controlplane.deployments.publishing import publish_access

    publish_access()
