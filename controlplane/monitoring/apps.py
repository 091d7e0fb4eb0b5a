from django.apps import AppConfig


class MonitoringConfig(AppConfig):
    name = "controlplane.monitoring"
    label = "monitoring"

    def ready(self) -> None:
        from controlplane.deployments.periodic import register
        from controlplane.monitoring import drift_state

        register("monitoring.refresh_drift_state", 5, drift_state.refresh_one)
