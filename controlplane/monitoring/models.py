"""The last verdict on each deployment's drift."""

from django.db import models

from controlplane.deployments.models import Deployment


class DriftVerdict(models.Model):
    """What drift of the last day came to, so that a list of deployments need not work it out. Written over in place.

    `compared` columns had enough rows; `moved` of them drifted, `most` the most. `prediction` says whether the answers
    did. `since`: of the columns that moved.
    """

    deployment = models.OneToOneField(
        Deployment, on_delete=models.CASCADE, primary_key=True, related_name="drift_verdict"
    )
    checked_at = models.DateTimeField()
    compared = models.IntegerField()
    moved = models.IntegerField()
    most = models.TextField(blank=True)
    prediction = models.BooleanField(null=True, help_text="None where there is nothing to compare its answers with")
    since = models.DateTimeField(null=True)
    baseline = models.CharField(max_length=10, blank=True)

    class Meta:
        db_table = "drift_verdict"
        indexes = [models.Index(fields=["checked_at"], name="drift_verdict_checked")]

    def __str__(self) -> str:
        return f"{self.moved} of {self.compared} columns of {self.deployment_id} moved"
