"""Who may ask what, and which version answers: the decisions of a call before anything of its body is read."""

from inference.errors import InferenceError
from inference.server.addresses import Address
from inference.server.asking import Ask
from inference.server.auth import Caller
from inference.server.held import HeldDeployment, HeldRoutes, HeldVersion


def find_deployment(routes: HeldRoutes, caller: Caller, ask: Ask) -> HeldDeployment:
    """The deployment of the address. Raises not_found for what the key cannot reach, gone for a retired one."""
    if not ask.address.deployment:
        return _invoked(routes, caller, ask)
    deployment = routes.deployments.get(ask.address.deployment)
    if deployment is None or not caller.reaches(deployment.route):
        raise InferenceError("not_found", "There is no such deployment.")
    if deployment.route.retired:
        raise InferenceError("gone", f"The deployment {deployment.route.name} was retired.")
    return deployment


def _invoked(routes: HeldRoutes, caller: Caller, ask: Ask) -> HeldDeployment:
    """SageMaker's address names no deployment: it is in a header, or the only one that the key reaches."""
    target = ask.headers.get(b"x-amzn-sagemaker-target-model")
    reached = [d for d in routes.deployments.values() if caller.reaches(d.route)]
    if target is not None:
        name = target.decode("utf-8", "replace")
        reached = [deployment for deployment in reached if deployment.route.name == name]
    else:
        reached = [deployment for deployment in reached if not deployment.route.retired]
    if not reached:
        raise InferenceError("not_found", "There is no such deployment.")
    if len(reached) > 1:
        raise InferenceError(
            "bad_request", "The key reaches several deployments: name one in X-Amzn-SageMaker-Target-Model."
        )
    if reached[0].route.retired:
        raise InferenceError("gone", f"The deployment {reached[0].route.name} was retired.")
    return reached[0]


def require_rights(caller: Caller, ask: Ask) -> None:
    """Raise forbidden where the key may not predict, or not choose the version itself."""
    if not caller.may_predict:
        raise InferenceError("forbidden", "The key does not have the scope predict.")
    if ask.pinned and not caller.may_pin:
        raise InferenceError("forbidden", "A version in the address needs a key with the scope pin.")


def choose_version(deployment: HeldDeployment, address: Address, key: str) -> HeldVersion:
    """The pinned version, or the one that the split gives this key.

    Raises InferenceError not_found, no_active_version or version_not_ready.
    """
    if address.number is not None:
        return deployment.pinned(address.number)
    if address.label is not None:
        return deployment.pinned(deployment.labelled(address.label))
    split = deployment.split
    number = split.choose(split.bucket(key)) if len(split.numbers) != 1 else split.numbers[0]
    return deployment.version(number)
