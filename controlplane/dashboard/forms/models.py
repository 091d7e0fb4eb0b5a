from collections.abc import Sequence
from typing import Any

from django import forms

from controlplane.accounts.models import Team
from inference.contracts import Activation, Task


class ModelForm(forms.Form):
    name = forms.CharField(max_length=60, help_text="a–z, 0–9, - and _; unique in this installation")
    team = forms.ModelChoiceField(Team.objects.none(), empty_label=None)
    description = forms.CharField(required=False, max_length=2000, widget=forms.Textarea(attrs={"rows": 2}))

    def __init__(self, *args: Any, teams: Sequence[Team], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["team"]
        assert isinstance(field, forms.ModelChoiceField)
        field.queryset = Team.objects.filter(pk__in=[team.pk for team in teams])
        field.initial = teams[0].pk if teams else None
        if len(teams) == 1:
            field.widget = forms.HiddenInput()


class UploadForm(forms.Form):
    """All that can be said of a version; the catalog reads and checks the values themselves."""

    file = forms.FileField(required=False, label="Model file", help_text="ONNX, or an MLflow folder as zip")
    task = forms.ChoiceField(
        required=False, choices=[("", "found by validation"), *[(task.value, task.value) for task in Task]]
    )
    activation = forms.ChoiceField(
        required=False,
        choices=[("", "found by validation"), *[(each.value, each.value) for each in Activation]],
        label="Activation still to apply",
    )
    labels = forms.CharField(required=False, help_text="In the output's order: legitimate, fraud")
    columns = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text="Names of the features in the input's order; or upload a reference set whose header has them.",
    )
    thresholds = forms.CharField(required=False, help_text='JSON by label: {"fraud": 0.3}')
    preprocessor = forms.FileField(required=False, label="preprocessor_config.json", help_text="for pictures")
    golden = forms.FileField(
        required=False, label="Golden inputs", help_text="zip of test_data_set_* folders, or npz; must reproduce"
    )
    reference = forms.FileField(
        required=False,
        label="Reference set",
        help_text="CSV, Parquet or npz as in training: what drift is measured from",
    )
    accepts_non_finite = forms.BooleanField(required=False, label="The model accepts NaN and infinities")
    source_commit = forms.CharField(required=False, label="Commit")
    source_run_url = forms.CharField(required=False, label="Training run", help_text="https://…")
    source_data_sha256 = forms.CharField(required=False, label="sha256 of the training data")
    intended_use = forms.CharField(
        required=False, label="Intended use", help_text='JSON: {"modality": "CR", "body_part": "chest", "view": "PA"}'
    )
    notes = forms.CharField(required=False, max_length=4000, widget=forms.Textarea(attrs={"rows": 2}))

    BASIC = ("task", "labels", "columns", "preprocessor", "reference", "golden")

    def basic(self) -> list[forms.BoundField]:
        return [self[name] for name in self.BASIC]

    def advanced(self) -> list[forms.BoundField]:
        return [self[name] for name in self.fields if name not in (*self.BASIC, "file")]
