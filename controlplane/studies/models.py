"""X-ray studies: the pictures a doctor asked about, what the model suggested, and what the doctors said.

Nothing that identifies a patient is stored in the clear. A study has one AES-256-GCM key, wrapped by the master key
that lies outside the database; pictures, heat maps, the case reference and comments are encrypted with it. Deleting
`wrapped_key` erases them all, wherever copies of the files may lie.
"""

import uuid
from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.db import models

from controlplane.accounts.models import Right, Team, User
from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment
from controlplane.jobs.models import Job
from inference.routing import uuid7


def new_id() -> uuid.UUID:
    return uuid.UUID(uuid7())


class ReadingPolicy(models.Model):
    """How studies of a deployment are read. A deployment without a row has the defaults."""

    deployment = models.OneToOneField(Deployment, on_delete=models.CASCADE, related_name="reading_policy")
    read_first = models.BooleanField(default=False, help_text="the doctor answers before the suggestion is shown")
    readers = models.PositiveSmallIntegerField(default=1, help_text="doctors who read each study, 1 or 2")
    retention_days = models.PositiveIntegerField(default=90, help_text="pictures are erased after so many days")

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(readers__in=[1, 2]), name="reading_readers"),
            models.CheckConstraint(condition=models.Q(retention_days__gte=1), name="reading_retention"),
        ]

    def __str__(self) -> str:
        return f"reading of {self.deployment}"


class StudyQuerySet(models.QuerySet["Study"]):
    def for_user(self, user: User) -> "StudyQuerySet":
        """Studies of the teams in which this person may read studies or see payloads. No one else sees any of them,
        a site admin neither."""
        allowed = {Right.STUDY, Right.VIEW_PAYLOAD}
        return self.filter(team_id__in=[m.team_id for m in user._memberships() if allowed & m.rights])


class StudyState(models.TextChoices):
    """`sent` is waiting, ready or failed, as its pictures' jobs are; `read` has the verdict that counts."""

    DRAFT = "draft", "Draft"
    SENT = "sent", "Sent"
    READ = "read", "Read"
    ERASED = "erased", "Erased"


class Study(models.Model):
    """One case: a reference the doctor typed, one or several pictures, one deployment and one version for all of them.

    `reference` is encrypted; `reference_digest` (HMAC under a key derived from the master key, with the team) finds an
    exact reference again without knowing it. The policy's and the deployment's say are copied when it is sent, so that
    a later change does not rewrite how it was read.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="studies")
    deployment = models.ForeignKey(Deployment, on_delete=models.PROTECT, related_name="studies")
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, null=True, related_name="+")
    wrapped_key = models.BinaryField(null=True, help_text="None once erased")
    reference = models.BinaryField(default=bytes)
    reference_digest = models.CharField(max_length=64, blank=True)
    state = models.CharField(max_length=8, choices=StudyState, default=StudyState.DRAFT)
    purpose = models.CharField(max_length=8, default="research", help_text="the deployment's when it was sent")
    approver = models.CharField(max_length=200, blank=True, help_text="likewise; who had approved clinical use")
    read_first = models.BooleanField(default=False)
    readers = models.PositiveSmallIntegerField(default=1)
    created_by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)
    erase_at = models.DateTimeField(null=True)

    objects = StudyQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "studies"
        constraints = [
            models.CheckConstraint(condition=models.Q(state__in=StudyState.values), name="study_state_known"),
            models.CheckConstraint(
                condition=models.Q(state__in=["draft", "erased"])
                | models.Q(sent_at__isnull=False, version__isnull=False),
                name="study_sent_is_whole",
            ),
            models.CheckConstraint(
                condition=~models.Q(state="erased") | models.Q(wrapped_key=None), name="study_erased_has_no_key"
            ),
        ]
        indexes = [
            models.Index(fields=["team", "-id"], name="study_team"),
            models.Index(fields=["team", "reference_digest"], name="study_reference"),
            models.Index(fields=["erase_at"], condition=~models.Q(state="erased"), name="study_erase"),
        ]

    def __str__(self) -> str:
        return f"study {self.id}"


class StudyPicture(models.Model):
    """One picture of a study, identifiers removed. `name` is an encrypted file; the name it was sent with is not kept.

    `tags`: modality, body_part, view, sex, age as they remain after de-identification. `mismatches`: sentences in which
    the picture does not fit the version's intended use. `heat_map` names an encrypted file once it was computed.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="pictures")
    position = models.PositiveSmallIntegerField()
    name = models.CharField(max_length=64, blank=True)
    media_type = models.CharField(max_length=40)
    digest = models.CharField(max_length=64, help_text="HMAC of the stored bytes: finds the same picture again")
    size_bytes = models.PositiveIntegerField()
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    tags = models.JSONField(default=dict)
    warnings = models.JSONField(default=list)
    mismatches = models.JSONField(default=list)
    heat_map = models.CharField(max_length=64, blank=True)
    job = models.OneToOneField(Job, on_delete=models.PROTECT, null=True, related_name="study_picture")
    added_at = models.DateTimeField()

    class Meta:
        ordering = ["study", "position"]
        constraints = [
            models.UniqueConstraint(fields=["study", "position"], name="picture_position"),
            models.UniqueConstraint(fields=["study", "digest"], name="picture_once"),
        ]

    def __str__(self) -> str:
        return f"picture {self.position} of {self.study_id}"


class Answer(models.TextChoices):
    AGREE = "agree", "Agrees with the suggestion"
    CORRECT = "correct", "Corrects it"
    UNGRADABLE = "ungradable", "Cannot be graded"


class VerdictPart(models.TextChoices):
    READER = "reader", "Reader"
    ADJUDICATOR = "adjudicator", "Adjudicator"


class Verdict(models.Model):
    """What one doctor said of a study. A change is a new row with the next `number`; `latest` is what holds.

    `labels` are what the doctor says is there, [] for nothing; empty too where the study is ungradable. `blinded`:
    given before the suggestion was shown. `comment` is encrypted with the study's key.
    """

    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="verdicts")
    reader = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    part = models.CharField(max_length=12, choices=VerdictPart, default=VerdictPart.READER)
    number = models.PositiveIntegerField(default=1)
    latest = models.BooleanField(default=True)
    answer = models.CharField(max_length=10, choices=Answer)
    labels = ArrayField(models.CharField(max_length=200), default=list)
    certainty = models.FloatField(null=True, help_text="0 to 1; None where it was not said")
    blinded = models.BooleanField()
    comment = models.BinaryField(default=bytes)
    opened_at = models.DateTimeField(help_text="when this reader first opened the study")
    given_at = models.DateTimeField()

    class Meta:
        ordering = ["study", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["study", "reader"], condition=models.Q(latest=True), name="verdict_one_latest"
            ),
            models.UniqueConstraint(fields=["study", "reader", "number"], name="verdict_number"),
            models.CheckConstraint(condition=models.Q(answer__in=Answer.values), name="verdict_answer_known"),
        ]

    def __str__(self) -> str:
        return f"{self.answer} by {self.reader_id} on {self.study_id}"

    def as_json(self) -> dict[str, Any]:
        """What audit events say of it, which people read who may not read studies: nothing of what was said."""
        return {"part": self.part, "number": self.number, "blinded": self.blinded}


class Reading(models.Model):
    """That a person opened a study, and whether the suggestion was shown: what `blinded` is decided by."""

    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="readings")
    reader = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    opened_at = models.DateTimeField()
    shown_at = models.DateTimeField(null=True, help_text="when the suggestion was first shown to this reader")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["study", "reader"], name="reading_once")]

    def __str__(self) -> str:
        return f"{self.reader_id} opened {self.study_id}"
