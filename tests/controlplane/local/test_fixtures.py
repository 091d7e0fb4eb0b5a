"""The ground that other tests stand on."""

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.services import Cluster


@pytest.mark.django_db
def test_django_is_on_the_runs_own_postgresql_18_and_is_no_superuser() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version_num')::int, current_setting('is_superuser')")
        version, superuser = cursor.fetchone()
    assert version >= 180000
    assert superuser == "off"


def test_a_fresh_database_has_all_tables_and_no_rows(database_url: str, postgres: Cluster) -> None:
    with psycopg.connect(database_url) as connection:
        found = connection.execute("SELECT count(*) FROM django_migrations").fetchone()
        keys = connection.execute("SELECT count(*) FROM accounts_apikey").fetchone()
    assert found is not None
    assert found[0] > 0
    assert keys == (0,)
    assert postgres.exists(str(conninfo_to_dict(database_url)["dbname"]))


def test_redis_answers_where_the_settings_say(redis_url: str) -> None:
    from django.conf import settings

    from controlplane.local.preflight import check_redis

    assert redis_url == settings.REDIS_URL
    check_redis(redis_url)
