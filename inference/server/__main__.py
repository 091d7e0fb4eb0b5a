"""`python -m inference.server`: listens, and keeps the serving processes alive.

The parent binds one socket and hands it to its children, so that a restart of one resets no queued connection.
"""

import errno
import signal
import socket
import sys

from inference.server.scaling import Rules
from inference.server.settings import BadSettingError, Settings, read

_BACKLOG = 2048
_RULES = Rules()


def main(arguments: list[str], rules: Rules = _RULES) -> int:
    """The process's exit code. `rules`: when processes are added and taken away, between the least and the most."""
    try:
        settings = read()
        if arguments[:1] == ["--serve"]:
            # The parent's are blocked, and children inherit that: while it imports, these end it without further ado.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
            # Imported by the children alone: the parent stays small, and no runtime is there before a child is.
            from inference.server.process import serve

            return serve(settings, *map(int, arguments[1:4]))
        from inference.server.parent import Parent

        listener = _bind(settings)
    except BadSettingError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return Parent(listener, settings, rules).run()


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except (OSError, OverflowError) as error:
        listener.close()
        where = f"{settings.host}:{settings.port}"
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        reason = "another program listens there" if taken else getattr(error, "strerror", str(error))
        raise BadSettingError(
            f"Signalbox cannot listen on {where} ({reason}): choose another SIGNALBOX_PORT or SIGNALBOX_HOST."
        ) from error
    listener.listen(_BACKLOG)
    return listener


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
