from django.apps import AppConfig


class JobsConfig(AppConfig):
    name = "controlplane.jobs"
    label = "jobs"

    def ready(self) -> None:
        from controlplane.deployments.periodic import register
        from controlplane.jobs import beating
        from controlplane.jobs.services import claiming

        register("jobs.sweep", 5, claiming.sweep)
        register("jobs.clean", 300, claiming.clean)
        register("jobs.forget_silent_workers", 300, beating.forget_silent)
