"""The files of docs/deploy and docker-compose.yml describe the parts that there are."""

import configparser
import re
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


@pytest.fixture(scope="module")
def host() -> dict[str, Any]:
    """One host of several."""
    read = yaml.safe_load((REPOSITORY / "docker-compose.host.yml").read_text())
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


def test_a_host_of_several_has_the_parts_that_serve_as_the_single_one_runs_them(
    compose: dict[str, Any], host: dict[str, Any]
) -> None:
    services = host["services"]
    assert set(services) == set(compose["services"]) - {"postgres", "redis", "proxy"}
    for name, service in services.items():
        assert service["command"] == compose["services"][name]["command"], name
        assert service["image"] == compose["services"][name]["image"], name
        assert service.get("healthcheck") == compose["services"][name].get("healthcheck"), name


def test_a_host_of_several_names_only_what_it_declares(host: dict[str, Any]) -> None:
    for name, service in host["services"].items():
        assert {volume.split(":")[0] for volume in service["volumes"]} <= set(host["volumes"]), name
        assert set(service["secrets"]) == set(host["secrets"]), name
        assert set(service["depends_on"]) <= set(host["services"]), name
        given = {key for key in service["environment"] if key.endswith("_FILE")}
        assert {service["environment"][key].rpartition("/")[2] for key in given} == set(host["secrets"]), name


def test_hosts_share_models_and_pictures_and_nothing_else(host: dict[str, Any]) -> None:
    shared = {name for name, volume in host["volumes"].items() if volume}
    assert shared == {"artifacts", "pictures"}
    for name, service in host["services"].items():
        assert {f"{each}:/var/lib/signalbox/{each}" for each in shared} <= set(service["volumes"]), name
    spooling = [name for name, service in host["services"].items() if any("spool:" in v for v in service["volumes"])]
    assert spooling == ["inference", "ingester"]


def test_a_host_of_several_has_time_to_drain_and_stops_its_front_door_first(host: dict[str, Any]) -> None:
    door = host["services"]["inference"]
    drain_s = int(re.fullmatch(r"\$\{SIGNALBOX_DRAIN_S:-(\d+)\}", door["environment"]["SIGNALBOX_DRAIN_S"])[1])  # type: ignore[index]  # None is a failure
    # Calls in progress have 10 s, the goodbye 4.
    assert int(door["stop_grace_period"].removesuffix("s")) > drain_s + 14
    assert {"web", "ingester"} <= set(door["depends_on"])
    haproxy = (REPOSITORY / "docs" / "deploy" / "haproxy.cfg").read_text()
    noticed = re.search(r"inter (\d+)s fall (\d+)", haproxy)
    assert noticed is not None
    assert drain_s >= 2 * int(noticed[1]) * int(noticed[2])
    caddy = re.search(r"health_interval (\d+)s", (REPOSITORY / "docs" / "deploy" / "Caddyfile").read_text())
    assert caddy is not None
    assert drain_s >= 2 * int(caddy[1])


@pytest.mark.parametrize("file", ["Caddyfile", "haproxy.cfg"])
def test_proxies_ask_the_ready_address_and_believe_no_client(file: str) -> None:
    text = (REPOSITORY / "docs" / "deploy" / file).read_text()
    assert "/v2/health/ready" in text
    assert all(name in text for name in ("X-Forwarded-For", "X-Forwarded-Proto", "Forwarded\n"))


def test_the_front_door_s_unit_leaves_its_children_to_their_parent() -> None:
    """Told by systemd itself they would end before any proxy saw that they do."""
    unit = (REPOSITORY / "docs" / "deploy" / "systemd" / "signalbox-inference.service").read_text()
    assert "KillMode=mixed" in unit
