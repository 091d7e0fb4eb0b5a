"""Fixtures: the whole product, a client and a page of it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests import services
from tests.services import Cluster, Product

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="package")
def product(postgres: Cluster, run_root: Path) -> Iterator[Product]:
    """The whole product, started by `manage.py up` with the demo off; shared by the tests of this folder and
    ended with the last of them.

    Its temporary files have a folder of their own, beside its home.
    """
    home = run_root / f"product-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}" / "home"
    temporary = home.parent / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    running = Product(home, settings={"DATABASE_URL": services.new_database(postgres), "TMPDIR": str(temporary)})
    try:
        running.start()
        yield running
    finally:
        running.remove()


@pytest.fixture
def http(product: Product) -> Iterator[httpx.Client]:
    """A client of the product, without a key."""
    with product.http() as client:
        yield client


@pytest.fixture
def page(product: Product, browser: "Browser") -> Iterator["Page"]:
    """A fresh page of the product (its own cookies); a script error on it fails the test."""
    context = browser.new_context(base_url=product.base_url)
    opened = context.new_page()
    opened.set_default_timeout(15_000)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert errors == []
