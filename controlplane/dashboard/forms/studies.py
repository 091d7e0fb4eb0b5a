"""What a doctor types: a new study, a verdict; and how an admin has studies read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django import forms

from controlplane.deployments.models import Deployment, Purpose
from controlplane.errors import field_error
from controlplane.studies.services.policy import policy_of

CERTAINTIES = (("", "not said"), ("1.0", "certain"), ("0.75", "fairly certain"), ("0.5", "doubtful"))


class StudyForm(forms.Form):
    reference = forms.CharField(
        max_length=200,
        label="Case reference",
        help_text="Your own number of the case, no name. It is stored encrypted, for your team alone.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "placeholder": "2026-1187"}),
    )
    deployment = forms.ChoiceField(label="Ask")

    def __init__(self, *args: Any, deployments: Sequence[Deployment], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        several = len({deployment.team_id for deployment in deployments}) > 1
        choices = [(each.name, _words(each, several)) for each in deployments]
        self.fields["deployment"].choices = choices  # type: ignore[attr-defined]  # of a ChoiceField


def _words(deployment: Deployment, with_team: bool) -> str:
    parts = [deployment.name, Purpose(deployment.purpose).label.lower()]
    return " · ".join([*parts, deployment.team.name] if with_team else parts)


def read_blackouts(text: str) -> list[tuple[int, int, int, int]]:
    """The rectangles that came with a picture: JSON [[x, y, width, height], ...]. Raises DomainError."""
    try:
        rectangles = json.loads(text or "[]")
    except (ValueError, RecursionError):
        rectangles = None
    whole = isinstance(rectangles, list) and all(
        isinstance(each, list) and len(each) == 4 and all(type(part) is int and part >= 0 for part in each)
        for each in rectangles
    )
    if not whole:
        raise field_error(
            "validation_error", "blackouts", "Give areas as [[x, y, width, height], ...] in whole pixels."
        )
    return [(x, y, width, height) for x, y, width, height in rectangles]


@dataclass(frozen=True, slots=True)
class TypedVerdict:
    """The form of an answer as it was sent."""

    answer: str = "correct"
    labels: list[str] = field(default_factory=list)
    ungradable: bool = False
    certainty: str = ""
    comment: str = ""
    expected_number: str = ""

    @classmethod
    def read(cls, sent: Mapping[str, Any], labels: list[str]) -> "TypedVerdict":
        return cls(
            answer=str(sent.get("answer", "")),
            labels=labels,
            ungradable=bool(sent.get("ungradable")),
            certainty=str(sent.get("certainty", "")),
            comment=str(sent.get("comment", "")),
            expected_number=str(sent.get("expected_number", "")),
        )

    def verdict(self) -> dict[str, Any]:
        """What give_verdict takes. Raises DomainError at the field that is wrong."""
        if self.certainty not in dict(CERTAINTIES):
            raise field_error("validation_error", "certainty", "Choose one of the list.")
        number = self.expected_number
        if not (number.isascii() and number.isdigit() and len(number) < 9):
            raise field_error("validation_error", "expected_number", "The form is not whole. Reload the page.")
        if self.answer not in ("agree", "correct"):
            raise field_error("validation_error", "answer", "Agree or correct.")
        agrees = self.answer == "agree"
        return {
            "answer": "agree" if agrees else "ungradable" if self.ungradable else "correct",
            "labels": [] if agrees or self.ungradable else self.labels,
            "certainty": float(self.certainty) if self.certainty and not agrees else None,
            "comment": self.comment,
            "expected_number": int(number),
        }


class PurposeForm(forms.Form):
    purpose = forms.ChoiceField(
        choices=Purpose.choices,
        help_text="Clinical needs an approver, and thresholds and an intended use of every version that answers.",
    )
    approver = forms.CharField(
        required=False, max_length=200, label="Approved by", help_text="Who approved clinical use, by name."
    )

    @classmethod
    def of(cls, deployment: Deployment) -> "PurposeForm":
        return cls(initial={"purpose": deployment.purpose, "approver": deployment.approver})


class PolicyForm(forms.Form):
    read_first = forms.BooleanField(required=False, label="The doctor answers before the suggestion is shown")
    readers = forms.TypedChoiceField(
        choices=[("1", "one"), ("2", "two, and a third where they differ")],
        coerce=int,
        label="Doctors who read each study",
    )
    retention_days = forms.IntegerField(
        min_value=1, max_value=3650, label="Pictures are erased after, days", help_text="Counted from the sending."
    )

    @classmethod
    def of(cls, deployment: Deployment) -> "PolicyForm":
        policy = policy_of(deployment)
        return cls(
            initial={
                "read_first": policy.read_first,
                "readers": policy.readers,
                "retention_days": policy.retention_days,
            }
        )
