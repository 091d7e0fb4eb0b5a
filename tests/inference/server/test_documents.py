"""Documents from a real PostgreSQL: access at once, routes in two phases, and serving on when it is away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from inference.contracts import Routes
from inference.registry import Failure
from inference.server.app import App
from tests.inference import toys
from tests.inference.server.house import KEYS, House, deployment, linear, open_house, version, with_fields
from tests.inference.server.publishing import SECRET, Publisher
from tests.services import Cluster


async def until(done: Callable[[], Any], within_s: float = 20.0) -> None:
    """Wait for what another task or process brings about."""
    async with asyncio.timeout(within_s):
        while not done():  # noqa: ASYNC110  # another process brings it about, no event tells
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(home: Path, url: str) -> AsyncIterator[House]:
    """A process that follows the documents."""
    async with open_house(home, database_url=url, secret_key=SECRET) as house, house.app.running():
        yield house


def generation(app: App) -> int:
    return app.holder.routes.generation


async def test_an_empty_installation_is_ready_and_reports_itself(tmp_path: Path, database_url: str) -> None:
    publisher = Publisher(database_url)
    async with running(tmp_path, database_url) as house:
        await until(lambda: house.app.holder.ready)
        await until(publisher.processes)
        [report] = publisher.processes()
        assert (report["access_generation"], report["active_generation"], report["failures"]) == (0, 0, {})
    assert publisher.processes() == []


async def test_routes_are_prepared_activated_and_served(tmp_path: Path, database_url: str) -> None:
    publisher = Publisher(database_url)
    publisher.access()
    async with running(tmp_path, database_url) as house:
        publisher.routes(1, deployment(linear(tmp_path)))
        await until(lambda: generation(house.app) == 1)
        assert (await house.post()).status_code == 200
        publisher.routes(2, deployment(linear(tmp_path), linear(tmp_path, 2), live={2: 10_000}))
        await until(lambda: generation(house.app) == 2)
        assert (await house.post()).headers["x-model-version"] == "2"
        assert (publisher.state(1)[0], publisher.state(2)[0]) == ("superseded", "active")
        await until(lambda: publisher.processes()[0]["active_generation"] == 2)
        assert set(publisher.processes()[0]["loaded"]) == {"v1", "v2"}


async def test_a_revocation_is_in_force_within_a_moment(tmp_path: Path, database_url: str) -> None:
    publisher = Publisher(database_url)
    publisher.access()
    publisher.routes(1, deployment(linear(tmp_path)))
    async with running(tmp_path, database_url) as house:
        await until(lambda: generation(house.app) == 1)
        assert (await house.post()).status_code == 200
        publisher.access(2, [with_fields(key, revoked=True) for key in KEYS])
        await until(lambda: house.app.holder.access.generation == 2, within_s=5)
        assert (await house.post()).status_code == 401


async def test_a_version_that_does_not_load_moves_no_traffic(tmp_path: Path, database_url: str) -> None:
    publisher = Publisher(database_url)
    publisher.access()
    publisher.routes(1, deployment(linear(tmp_path)))
    broken = version(tmp_path, 2, toys.classifier())
    (tmp_path / "artifacts" / broken.artifact_sha256[:2] / broken.artifact_sha256).unlink()
    async with running(tmp_path, database_url) as house:
        await until(lambda: generation(house.app) == 1)
        publisher.routes(2, deployment(linear(tmp_path), broken, live={2: 10_000}))
        await until(lambda: publisher.state(2)[0] == "failed")
        assert "artifact store" in publisher.state(2)[1]
        [report] = publisher.processes()
        assert report["failed_generation"] == 2
        assert report["failures"]["v2"]["code"] == "load_failed"
        assert (await house.post()).headers["x-model-version"] == "1"
        publisher.routes(3, deployment(linear(tmp_path), live={1: 10_000}))
        await until(lambda: generation(house.app) == 3)
        assert publisher.state(1)[0] == "superseded"
        assert publisher.processes()[0]["failed_generation"] is None


async def test_no_process_serves_what_another_has_not_prepared(tmp_path: Path, database_url: str) -> None:
    publisher = Publisher(database_url)
    publisher.access()
    publisher.routes(1, deployment(linear(tmp_path)))
    async with running(tmp_path, database_url) as house:
        await until(lambda: generation(house.app) == 1)
        publisher.execute(
            "INSERT INTO dataplane_process (id, host, pid, started_at, heartbeat_at, prepared_generation) "
            "VALUES ('01a20280-0720-72bd-a07f-ded2b42612bf', 'elsewhere', 1, now(), now() + interval '1 hour', 1)"
        )
        publisher.routes(2, deployment(linear(tmp_path), linear(tmp_path, 2), live={2: 10_000}))
        await until(lambda: any(report["prepared_generation"] == 2 for report in publisher.processes()))
        assert (await house.post()).headers["x-model-version"] == "1"
        assert publisher.state(2)[0] == "preparing"
        publisher.execute("UPDATE dataplane_process SET prepared_generation = 2 WHERE host = 'elsewhere'")
        await until(lambda: generation(house.app) == 2)


async def test_a_document_signed_with_another_secret_is_refused(tmp_path: Path, database_url: str) -> None:
    publisher = Publisher(database_url)
    publisher.access()
    publisher.routes(1, deployment(linear(tmp_path)))
    publisher.execute("UPDATE dataplane_document SET signature = repeat('0', 64)")
    async with running(tmp_path, database_url) as house:
        await until(lambda: publisher.state(1)[0] == "failed")
        assert (house.app.holder.access.generation, generation(house.app)) == (0, 0)


async def test_without_postgresql_it_serves_what_it_holds_and_finds_back(
    tmp_path: Path, database_url: str, postgres: Cluster
) -> None:
    publisher = Publisher(database_url)
    publisher.access()
    publisher.routes(1, deployment(linear(tmp_path)))
    name = conninfo_to_dict(database_url)["dbname"]
    async with running(tmp_path, database_url) as house:
        await until(lambda: generation(house.app) == 1)
        with psycopg.connect(postgres.url("postgres", "postgres"), autocommit=True) as admin:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            async with running(tmp_path, database_url) as started_meanwhile:
                await until(lambda: started_meanwhile.app.holder.ready)
                assert (await started_meanwhile.post()).status_code == 200
            assert (await house.post()).status_code == 200
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())
        publisher.routes(2, deployment(linear(tmp_path), linear(tmp_path, 2), live={2: 10_000}))
        await until(lambda: generation(house.app) == 2)


async def test_an_activation_waits_for_no_process_that_still_loads_what_is_served(
    tmp_path: Path, database_url: str
) -> None:
    publisher = Publisher(database_url)
    publisher.access()
    publisher.routes(1, deployment(linear(tmp_path)))
    async with running(tmp_path, database_url) as house:
        await until(lambda: generation(house.app) == 1)
        async with open_house(tmp_path, database_url=database_url, secret_key=SECRET) as late:
            loaded, prepare = asyncio.Event(), late.app.registry.prepare

            async def slow(routes: Routes, beside: Routes | None = None) -> dict[str, Failure]:
                await loaded.wait()
                return await prepare(routes, beside)

            late.app.registry.prepare = slow  # type: ignore[method-assign]
            async with late.app.running():
                publisher.routes(2, deployment(linear(tmp_path), linear(tmp_path, 2), live={2: 10_000}))
                await until(lambda: generation(house.app) == 2)
                assert not late.app.holder.ready
                assert len(publisher.processes()) == 1
                loaded.set()
                await until(lambda: late.app.holder.ready)
                assert generation(late.app) == 2
                await until(lambda: len(publisher.processes()) == 2)
                publisher.routes(3, deployment(linear(tmp_path), live={1: 10_000}))
                await until(lambda: generation(house.app) == generation(late.app) == 3)
