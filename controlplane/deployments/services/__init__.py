"""Changes to deployments: each checks its meaning, writes its audit event, and publishes, in one transaction."""

from controlplane.deployments.services.deployments import create_deployment, edit_deployment, retire_deployment
from controlplane.deployments.services.keys import issue_key_for
from controlplane.deployments.services.labels import set_label, set_labels
from controlplane.deployments.services.splits import apply_split, promote, roll_back
from controlplane.deployments.settling import wait_until_settled

__all__ = [
    "apply_split",
    "create_deployment",
    "edit_deployment",
    "issue_key_for",
    "promote",
    "retire_deployment",
    "roll_back",
    "set_label",
    "set_labels",
    "wait_until_settled",
]
