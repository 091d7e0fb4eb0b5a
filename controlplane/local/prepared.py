"""Whether a database was prepared by these very files, so that a later start need not boot Django to find that out."""

from hashlib import sha256
from pathlib import Path

import psycopg

from controlplane.local.home import Home

ROOT = Path(__file__).resolve().parents[2]


def _of_files() -> str:
    """Changes with any migration of ours, and with the lock, which brings those of other packages."""
    digest = sha256()
    for file in sorted(ROOT.glob("controlplane/*/migrations/*.py")):
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    digest.update((ROOT / "requirements.lock").read_bytes())
    return digest.hexdigest()


def _of_rows(url: str) -> str:
    """Changes with what is applied; "" for a database without any migration. One SELECT."""
    rows = "SELECT md5(string_agg(app || '.' || name, ' ' ORDER BY id)) FROM django_migrations"
    try:
        with psycopg.connect(url, connect_timeout=10) as connection:
            found = connection.execute(rows).fetchone()
    except psycopg.errors.UndefinedTable:
        return ""
    return str(found[0] or "") if found else ""


def _now(url: str) -> str:
    return f"{_of_files()} {_of_rows(url)}\n"


def is_prepared(home: Home, url: str) -> bool:
    """True where `remember` was called for this database and nothing changed since."""
    mark = home.run / "prepared"
    return mark.exists() and mark.read_text() == _now(url)


def remember(home: Home, url: str) -> None:
    """Called after `manage.py prepare` went well."""
    home.write_private(home.run / "prepared", _now(url))
