"""The files of docs/deploy and docker-compose.yml describe the parts that there are."""

import configparser
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.services import REPOSITORY

pytestmark = pytest.mark.unit

UNITS = sorted((REPOSITORY / "docs" / "deploy" / "systemd").glob("*.service"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    read = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    assert isinstance(read, dict)
    return read


def known_command(words: list[str]) -> bool:
    """Whether a command line of ours leads to something that exists."""
    line = " ".join(words)
    if "manage.py" in words:
        name = words[words.index("manage.py") + 1]
        return any(REPOSITORY.glob(f"controlplane/*/management/commands/{name}.py"))
    if "inference.server" in words:
        return (REPOSITORY / "inference" / "server" / "__main__.py").exists()
    if "controlplane.asgi:application" in words:
        return (REPOSITORY / "controlplane" / "asgi.py").exists()
    return "controlplane.celery" in line and (REPOSITORY / "controlplane" / "celery.py").exists()


def test_compose_has_every_part(compose: dict[str, Any]) -> None:
    parts = {"postgres", "redis", "prepare", "web", "inference", "ingester", "worker", "scheduler", "proxy"}
    assert set(compose["services"]) == parts


def test_compose_runs_commands_that_exist(compose: dict[str, Any]) -> None:
    ours = {name: service for name, service in compose["services"].items() if "build" in service}
    assert len(ours) == 6
    assert [name for name, service in ours.items() if not known_command(service["command"])] == []


def test_compose_names_volumes_networks_and_secrets_that_it_declares(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        volumes = {volume.split(":")[0] for volume in service.get("volumes", []) if not volume.startswith((".", "/"))}
        assert volumes <= set(compose["volumes"]), name
        assert set(service["networks"]) <= set(compose["networks"]), name
        assert set(service.get("secrets", [])) <= set(compose["secrets"]), name
        assert set(service.get("depends_on", {})) <= set(compose["services"]), name


def test_compose_gives_the_front_door_and_its_ingester_one_spool(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["inference"]["volumes"] == services["ingester"]["volumes"]
    assert "spool:/var/lib/signalbox/spool" in services["inference"]["volumes"]


def test_compose_opens_the_proxy_alone_to_the_network(compose: dict[str, Any]) -> None:
    assert [name for name, service in compose["services"].items() if "ports" in service] == ["proxy"]
    assert (REPOSITORY / "docs" / "deploy" / "Caddyfile").exists()


def test_the_image_holds_all_that_is_imported() -> None:
    copied = {line.split()[1] for line in (REPOSITORY / "Dockerfile").read_text().splitlines() if line[:4] == "COPY"}
    assert {"requirements.lock", "manage.py", "inference", "controlplane", "templates", "static"} <= copied
    kept = (REPOSITORY / ".dockerignore").read_text().split()
    assert all(f"!{name}" in kept for name in copied)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.stem))
def test_a_unit_starts_a_command_that_exists(unit: Path) -> None:
    read = configparser.RawConfigParser(strict=False)
    read.optionxform = str  # type: ignore[assignment, method-assign]  # systemd's names have capitals
    read.read(unit)
    assert known_command(shlex.split(read["Service"]["ExecStart"]))
    assert read["Service"]["User"] == "signalbox"


def test_the_target_wants_every_part() -> None:
    target = (REPOSITORY / "docs" / "deploy" / "systemd" / "signalbox.target").read_text()
    parts = [unit.name for unit in UNITS if unit.stem not in ("signalbox-one", "signalbox-prepare")]
    assert len(parts) == 5
    assert [name for name in parts if name not in target] == []


def test_compose_tells_the_pages_where_the_front_door_is(compose: dict[str, Any]) -> None:
    """The try-it page calls it, from a container in which nothing else listens."""
    environment = compose["services"]["web"]["environment"]
    assert environment["SIGNALBOX_HOST"] == "inference"
    assert (
        environment.get("SIGNALBOX_PORT", "8000") == compose["services"]["inference"]["environment"]["SIGNALBOX_PORT"]
    )
