import json
from collections.abc import Sequence
from typing import Any

from django import forms

from controlplane.accounts.models import Team, User
from controlplane.catalog.models import RegisteredModel
from controlplane.deployments.models import Deployment
from inference.contracts import Lane

LANES = {
    Lane.AUTO: "by measurement (inline or executor)",
    Lane.INLINE: "inline, on the event loop",
    Lane.EXECUTOR: "executor, batched in threads",
    Lane.JOB: "job, on a Celery worker",
}
LANE_CHOICES = [(lane.value, words) for lane, words in LANES.items()]


class DeploymentForm(forms.Form):
    name = forms.CharField(max_length=60, help_text="Clients call it by this name: a–z, 0–9, - and _")
    model = forms.ModelChoiceField(RegisteredModel.objects.none(), empty_label=None, to_field_name="name")
    lane = forms.ChoiceField(choices=LANE_CHOICES, initial=Lane.AUTO.value, required=False, label="Answers in lane")
    description = forms.CharField(required=False, max_length=2000, widget=forms.Textarea(attrs={"rows": 2}))

    def __init__(self, *args: Any, teams: Sequence[Team], user: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        models = RegisteredModel.objects.for_user(user).filter(team__in=teams, archived_at=None).select_related("team")
        self.fields["model"].queryset = models  # type: ignore[attr-defined]  # of a ModelChoiceField

    def clean_lane(self) -> str:
        return self.cleaned_data["lane"] or Lane.AUTO.value


class SettingsForm(forms.Form):
    description = forms.CharField(required=False, max_length=2000, widget=forms.Textarea(attrs={"rows": 2}))
    lane = forms.ChoiceField(choices=LANE_CHOICES, label="Answers in lane")
    payload_percent = forms.FloatField(
        min_value=0, max_value=100, label="Payloads kept, %", help_text="Figures always count every prediction."
    )
    retention_days = forms.IntegerField(min_value=1, max_value=3650, label="Kept for, days")
    column_policy = forms.CharField(
        required=False,
        label="Columns to hash or drop",
        widget=forms.Textarea(attrs={"rows": 3, "class": "mono"}),
        help_text='JSON, for example {"card_number": "drop", "country": "hash"}',
    )
    max_rows = forms.IntegerField(min_value=1, label="Rows per call, at most")
    max_body_mb = forms.FloatField(min_value=0.001, label="Body, at most MB")
    max_batch_rows = forms.IntegerField(
        min_value=1, label="Rows of a shared run, at most", help_text="In the executor lane. 1: every call runs alone."
    )
    max_wait_ms = forms.FloatField(
        min_value=0, label="Held back to share a run, at most ms", help_text="0: a call shares with what waits already."
    )
    cache_ttl_s = forms.FloatField(
        min_value=0,
        max_value=86_400,
        label="Answers kept for, seconds",
        help_text="0: every call is computed. Else the same input may get the answer that it got before.",
    )
    cache_mb = forms.FloatField(
        min_value=0.0625, max_value=1024, label="Answers kept, at most MB", help_text="In one serving process."
    )
    max_in_flight = forms.IntegerField(
        min_value=1,
        label="Calls in progress, at most",
        help_text="In one serving process, waiting and running. The next is told at once to come back.",
    )

    @classmethod
    def of(cls, deployment: Deployment) -> "SettingsForm":
        return cls(
            initial={
                "description": deployment.description,
                "lane": deployment.lane,
                "payload_percent": deployment.payload_share * 100,
                "retention_days": deployment.retention_days,
                "column_policy": json.dumps(deployment.column_policy, indent=2) if deployment.column_policy else "",
                "max_rows": deployment.max_rows,
                "max_body_mb": deployment.max_body_bytes / 1024 / 1024,
                "max_batch_rows": deployment.max_batch_rows,
                "max_wait_ms": deployment.max_wait_ms,
                "cache_ttl_s": deployment.cache_ttl_s,
                "cache_mb": deployment.cache_bytes / 1024 / 1024,
                "max_in_flight": deployment.max_in_flight,
            }
        )

    def clean_column_policy(self) -> dict[str, str]:
        text = self.cleaned_data["column_policy"].strip()
        if not text:
            return {}
        try:
            policy = json.loads(text)
        except ValueError:
            raise forms.ValidationError("This is not JSON.") from None
        if not isinstance(policy, dict) or not all(value in ("keep", "hash", "drop") for value in policy.values()):
            raise forms.ValidationError("Give an object of column name to keep, hash or drop.")
        return policy

    def settings(self) -> dict[str, Any]:
        """What edit_deployment takes."""
        chosen = self.cleaned_data
        return {
            "description": chosen["description"],
            "lane": chosen["lane"],
            "payload_share": chosen["payload_percent"] / 100,
            "retention_days": chosen["retention_days"],
            "column_policy": chosen["column_policy"],
            "max_rows": chosen["max_rows"],
            "max_body_bytes": int(chosen["max_body_mb"] * 1024 * 1024),
            "max_batch_rows": chosen["max_batch_rows"],
            "max_wait_ms": chosen["max_wait_ms"],
            "cache_ttl_s": chosen["cache_ttl_s"],
            "cache_bytes": int(chosen["cache_mb"] * 1024 * 1024),
            "max_in_flight": chosen["max_in_flight"],
        }
