from collections.abc import Sequence
from typing import Any

from django import forms

from controlplane.accounts.models import ApiKey, Team
from controlplane.deployments.models import Deployment
from inference.contracts import Scope

SCOPE_WORDS = {
    Scope.PREDICT: "predict",
    Scope.PIN: "pin a version",
    Scope.FEEDBACK: "give feedback",
    Scope.READ: "read figures",
    Scope.UPLOAD: "upload models",
    Scope.DEPLOY: "deploy and split",
    Scope.ADMIN: "admin of the team (does not predict)",
}


class KeyForm(forms.Form):
    label = forms.CharField(max_length=100, help_text="What will use it, for example checkout-service")
    team = forms.ModelChoiceField(Team.objects.none(), empty_label=None)
    scopes = forms.MultipleChoiceField(
        choices=[(scope.value, words) for scope, words in SCOPE_WORDS.items()],
        widget=forms.CheckboxSelectMultiple,
        initial=[Scope.PREDICT.value, Scope.PIN.value, Scope.FEEDBACK.value],
        label="May",
    )
    deployments = forms.ModelMultipleChoiceField(
        Deployment.objects.none(),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="None chosen means every deployment of the team, also later ones.",
    )
    expires_at = forms.DateTimeField(
        required=False, label="Expires", widget=forms.DateTimeInput(attrs={"type": "datetime-local"}), help_text="UTC"
    )
    rate_per_minute = forms.IntegerField(
        required=False, min_value=1, label="Calls per minute", help_text="Empty: no limit"
    )
    quota_per_day = forms.IntegerField(
        required=False, min_value=1, label="Calls per day", help_text="Of UTC. Empty: no quota"
    )
    test = forms.BooleanField(
        required=False, label="Test key", help_text="Its calls are answered and logged, and left out of every figure."
    )

    def __init__(self, *args: Any, teams: Sequence[Team], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        team_ids = [team.pk for team in teams]
        self.fields["team"].queryset = Team.objects.filter(pk__in=team_ids).order_by("name")  # type: ignore[attr-defined]  # of a ModelChoiceField
        self.fields["team"].initial = teams[0].pk if teams else None
        self.fields["deployments"].queryset = Deployment.objects.current().filter(team_id__in=team_ids)  # type: ignore[attr-defined]  # of a ModelChoiceField


class LimitsForm(forms.Form):
    """Limits of a key that exists."""

    rate_per_minute = forms.IntegerField(
        required=False, min_value=1, label="Calls per minute", help_text="Empty: no limit"
    )
    quota_per_day = forms.IntegerField(
        required=False, min_value=1, label="Calls per day", help_text="Of UTC. Empty: no quota"
    )

    @classmethod
    def of(cls, key: ApiKey) -> "LimitsForm":
        return cls(initial={"rate_per_minute": key.rate_per_minute, "quota_per_day": key.quota_per_day})
