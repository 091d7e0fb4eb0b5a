"""Fixtures: PostgreSQL, Redis, the whole product and a browser. Each is real and starts when first asked for."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests import services
from tests.services import Cluster

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext
    from pytest_django.plugin import DjangoDbBlocker

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NO_BROWSER = "No chromium was found: type apt-get install chromium, or skip these tests with BROWSER=0."


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that uses the product starts it, which takes its time on a busy machine."""
    # Files that start the whole product first: one of them alone at the end would keep a single worker busy.
    items.sort(key=lambda item: "/e2e/" not in str(item.path))
    for item in items:
        uses = {"product", "page", "chromium"} & set(getattr(item, "fixturenames", ()))
        if uses and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("browser") and os.environ.get("BROWSER") == "0":
        pytest.skip("BROWSER=0")


def pytest_unconfigure(config: pytest.Config) -> None:
    """The process that began the run ends what the run shared."""
    root = os.environ.get("SIGNALBOX_TEST_ROOT")
    if root and not hasattr(config, "workerinput"):
        services.end_cluster(Path(root))


@pytest.fixture(scope="session")
def run_root() -> Path:
    """The folder that all processes of this test run share."""
    return Path(os.environ["SIGNALBOX_TEST_ROOT"])


@pytest.fixture(scope="session")
def cluster(run_root: Path) -> Cluster:
    """The run's PostgreSQL server, without any database of ours."""
    in_worker = "PYTEST_XDIST_WORKER" in os.environ
    return services.cluster(run_root, os.getppid() if in_worker else os.getpid())


@pytest.fixture(scope="session")
def django_db_setup(
    django_test_environment: None, django_db_blocker: "DjangoDbBlocker", cluster: Cluster, run_root: Path
) -> Iterator[None]:
    """Migrates one template for the run and copies it for this worker; in place of pytest-django's own."""
    from django.core.management import call_command
    from django.db import connection

    own = connection.settings_dict["NAME"]
    with django_db_blocker.unblock():
        with services.locked(run_root / "template-lock"):
            if not (run_root / "template-ready").exists():
                cluster.drop(services.TEMPLATE)
                cluster.create(services.TEMPLATE)
                connection.settings_dict["NAME"] = services.TEMPLATE
                try:
                    call_command("migrate", interactive=False, verbosity=0)
                finally:
                    connection.close()
                    connection.settings_dict["NAME"] = own
                (run_root / "template-ready").touch()
            cluster.create(own, services.TEMPLATE)
        yield
        connection.close()


@pytest.fixture(scope="session")
def postgres(django_db_setup: None, cluster: Cluster) -> Cluster:
    """The run's PostgreSQL server with the migrated template: `services.new_database(postgres)` copies it."""
    return cluster


@pytest.fixture(scope="session", autouse=True)
def static_files_found_once() -> Iterator[None]:
    """Each of Django's test clients has a handler of its own, which would look for every static file anew: 0.1 s."""
    from servestatic.middleware import ServeStaticMiddleware

    found: dict[str, Any] = {}

    def find_once(self: ServeStaticMiddleware) -> None:
        if not found:
            find(self)
            found.update(self.files)
        self.files.update(found)

    with pytest.MonkeyPatch.context() as patched:
        find = ServeStaticMiddleware.add_files_from_finders
        patched.setattr(ServeStaticMiddleware, "add_files_from_finders", find_once)
        yield


@pytest.fixture
def database_url(postgres: Cluster) -> Iterator[str]:
    """The URL of a fresh database with all tables, for this test alone."""
    url = services.new_database(postgres)
    yield url
    postgres.drop(str(conninfo_to_dict(url)["dbname"]))


@pytest.fixture(scope="session")
def redis_url(run_root: Path) -> Iterator[str]:
    """A Redis of this worker, the one that `settings.REDIS_URL` names."""
    folder = run_root / f"redis-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    with services.redis_server(folder) as server:
        yield server.url


@pytest.fixture(scope="session")
def chromium() -> Iterator["Browser"]:
    """Debian's chromium, headless; tests take it through `browser`."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.fail(NO_BROWSER, pytrace=False)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, headless=True, args=CHROMIUM_FLAGS)
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        yield started
        asyncio._set_running_loop(loop)
        started.close()
    asyncio._set_running_loop(None)


@pytest.fixture
def browser(chromium: "Browser") -> Iterator["Browser"]:
    """The browser, for this test. Playwright marks its event loop as the running one of this thread for as long as it
    lives; the mark is set for tests that use it alone, or every asynchronous test and database after them would refuse.
    """
    asyncio._set_running_loop(chromium._loop)
    yield chromium
    asyncio._set_running_loop(None)


@pytest.fixture(scope="module")
def contexts(chromium: "Browser") -> Iterator["dict[str, BrowserContext]"]:
    """What a module's tests share of the browser, by a name of theirs: cookies and caches, so that one sign-in and one
    download of each script serve them all. A test that finds its name missing makes the context.
    """
    made: dict[str, BrowserContext] = {}
    yield made
    asyncio._set_running_loop(chromium._loop)
    for context in made.values():
        context.close()
    asyncio._set_running_loop(None)
