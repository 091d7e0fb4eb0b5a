"""A database of a test's own, for what needs commits: other processes and threads look at it."""

from collections.abc import Iterator

import pytest
from django.db import connection
from psycopg.conninfo import conninfo_to_dict
from pytest_django.plugin import DjangoDbBlocker


@pytest.fixture
def own_database(database_url: str, django_db_blocker: DjangoDbBlocker) -> Iterator[str]:
    """The URL of a fresh database that Django also uses, in every thread, until the test ends.

    A transactional test would have to empty the worker's database instead, which the audit log refuses.
    """
    usual = connection.settings_dict["NAME"]
    with django_db_blocker.unblock():
        connection.close()
        connection.settings_dict["NAME"] = str(conninfo_to_dict(database_url)["dbname"])
        try:
            yield database_url
        finally:
            connection.close()
            connection.settings_dict["NAME"] = usual
