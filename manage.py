#!/usr/bin/env python
"""Signalbox's commands: `python manage.py help` lists them."""

import os
import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 12):
    # Before any import, for they need a Python that Signalbox knows.
    sys.exit(
        f"Signalbox needs Python 3.11 or 3.12 and this is {sys.version_info[0]}.{sys.version_info[1]}: "
        "install python3.12, remove the folder .venv and type make run."
    )


try:
    import django  # noqa: F401
except ModuleNotFoundError:
    sys.exit("Signalbox's packages are not installed in this Python: type make run, or use .venv/bin/python manage.py.")


def main() -> int:
    """Runs the command named by the arguments; returns the exit status."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    if sys.argv[1:2] == ["up"]:
        # Without Django: the runner forks, so it stays small and has one thread.
        from controlplane.local.runner import main as up

        return up(sys.argv[2:])
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        import controlplane.settings  # noqa: F401 - a bad value has to end in its sentence, not in a stack trace
    except ImproperlyConfigured as error:
        sys.stderr.write(f"{error}\n")
        return 1
    execute_from_command_line(sys.argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
