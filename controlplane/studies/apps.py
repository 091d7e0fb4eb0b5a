from django.apps import AppConfig


class StudiesConfig(AppConfig):
    name = "controlplane.studies"

    def ready(self) -> None:
        from controlplane.deployments.periodic import register
        from controlplane.jobs.services import claiming
        from controlplane.studies import explaining
        from controlplane.studies.services import erasing, verdicts

        claiming.keepers.append(erasing.held_jobs)
        claiming.followers.append(explaining.follow)
        register("studies.give_late_feedback", 10, verdicts.give_late_feedback)
        register("studies.purge", 60, erasing.purge)
        register("studies.sweep_files", 3600, erasing.sweep_files)
        register("studies.resend_explain", 60, explaining.resend)
