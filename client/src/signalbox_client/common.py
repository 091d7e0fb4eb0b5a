"""What both clients are made with."""

from __future__ import annotations

from importlib import metadata as packages
from ssl import SSLContext
from typing import Any

import httpx

from signalbox_client.calls import Calls
from signalbox_client.endpoint import Endpoint
from signalbox_client.retrying import Retrying

RETRIES = 3
TIMEOUT_S = 30.0
CONNECTIONS = 32
# The server keeps an idle connection for 75 s; who closes first makes no call fail.
_KEEP_S = 60.0


class Common:
    """How both clients are made."""

    def __init__(
        self,
        base_url: str | None,
        key: str | None,
        timeout_s: float,
        deadline_s: float | None,
        retries: int,
        retrying: Retrying | None,
        allow_insecure_http: bool,
    ) -> None:
        if not timeout_s > 0:
            raise ValueError("timeout_s is above 0.")
        endpoint = Endpoint(
            base_url, key, timeout_s=timeout_s, allow_insecure_http=allow_insecure_http, user_agent=_user_agent()
        )
        self._calls = Calls(endpoint, retries=retries, deadline_s=deadline_s, retrying=retrying or Retrying())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._calls.endpoint!r})"

    def _options(self, verify: bool | SSLContext, connections: int) -> dict[str, Any]:
        """What httpx is told. A proxy of the environment is used for https alone: over http it would read the key."""
        limits = httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_KEEP_S
        )
        return {
            "verify": verify,
            "limits": limits,
            "trust_env": self._calls.endpoint.is_secure,
            "follow_redirects": False,
            "timeout": None,
        }


def _user_agent() -> str:
    try:
        return f"signalbox-client/{packages.version('signalbox-client')}"
    except packages.PackageNotFoundError:
        return "signalbox-client"
