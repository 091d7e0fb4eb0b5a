"""Models and deployments of a running product, made through the control API as an app would make them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.services import Product, wait_for

# On a machine that runs other things too, a burst of validations takes its time.
SETTLES_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Control:
    """The control API, asked with one key that may do all that an app may."""

    client: httpx.Client
    key: str

    def upload(self, model: str, content: bytes, **fields: str | bytes) -> dict[str, Any]:
        """Registers the model where it is missing and uploads a version; texts are fields, bytes are files."""
        registered = self.client.post("/api/models/", json={"name": model})
        assert registered.status_code in (201, 409), registered.text
        files: dict[str, Any] = {"file": ("model.onnx", content)}
        files |= {name: (name, value) for name, value in fields.items() if isinstance(value, bytes)}
        texts = {name: value for name, value in fields.items() if isinstance(value, str)}
        answer = self.client.post(f"/api/models/{model}/versions/", files=files, data=texts)
        assert answer.status_code in (200, 201), answer.text
        version: dict[str, Any] = answer.json()
        return version

    def validated(self, model: str, number: int = 1) -> dict[str, Any]:
        """The version once its validation has ended."""
        version: dict[str, Any] = {}

        def ended() -> bool:
            version.update(self.got(f"/api/models/{model}/versions/{number}/"))
            return version["state"] in ("ready", "rejected")

        wait_for(ended, SETTLES_WITHIN_S, f"the validation of {model}", every_s=0.2)
        return version

    def deploy(self, *names: str, model: str = "", shares: dict[str, float] | None = None, **settings: Any) -> None:
        """Makes deployments where they are missing and splits them, all at once; returns when they serve.

        Each serves the model of its own name, or `model`.
        """
        deployments = list(names)
        for name in deployments:
            made = self.client.post("/api/deployments/", json={"name": name, "model": model or name, **settings})
            assert made.status_code in (201, 409), made.text
            split = self.client.post(f"/api/deployments/{name}/splits/", json={"shares": shares or {"1": 100}})
            assert split.status_code == 201, split.text
        for name in deployments:
            wait_for(lambda name=name: self._serves(name), SETTLES_WITHIN_S, f"{name} serving", every_s=0.2)  # type: ignore[misc]  # mypy infers no lambda with a default

    def issued(self, **fields: Any) -> str:
        """A new key, once the front door knows it."""
        answer = self.client.post("/api/keys/", json={"label": "tests", **fields})
        assert answer.status_code == 201, answer.text
        key = str(answer.json()["key"])
        headers = {"Authorization": f"Bearer {key}"}
        wait_for(lambda: self.client.get("/v2", headers=headers).status_code != 401, 10, "the key at the front door")
        return key

    def prediction(self, identity: str) -> dict[str, Any]:
        """The prediction as the log has it, once it is there."""
        address = f"/api/predictions/{identity}/"
        wait_for(lambda: self.client.get(address).status_code != 404, 30, "the prediction in the log", every_s=0.1)
        return self.got(address)

    def _serves(self, name: str) -> bool:
        """Whether the newest split is active and the front door answers for it."""
        split = self.got(f"/api/deployments/{name}/splits/")["results"][0]
        assert split["state"] in ("preparing", "active"), split
        if split["state"] != "active":
            return False
        # A deployment of the job lane is held by the workers alone.
        return self.client.get(f"/v1/models/{name}").status_code == 200

    def got(self, path: str, **parameters: Any) -> dict[str, Any]:
        answer = self.client.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document


@contextmanager
def control_of(product: Product) -> Iterator[Control]:
    """With a key of every scope."""
    scopes = ("predict", "pin", "feedback", "read", "upload", "deploy", "admin")
    key = product.issue_key("control", *(part for scope in scopes for part in ("--scope", scope)))
    with product.http(key) as client:
        wait_for(lambda: client.get("/v2").status_code == 200, 10, "the key at the front door")
        yield Control(client, key)
