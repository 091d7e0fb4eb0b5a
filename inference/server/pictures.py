"""Pictures on the synchronous lanes: read in bounded threads, each in a child that can be killed."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from inference.contracts import VersionRoute
from inference.errors import InferenceError
from inference.server.admission import Shares

if TYPE_CHECKING:
    from inference.runtime.pictures import DecodedPictures

THREADS = 2
MAX_WAITING = 32


@dataclass(frozen=True, slots=True)
class PreparedPictures:
    """`tensor` is what the model takes, [n, channels, height, width]; `stats` has an entry a picture, for the log."""

    tensor: npt.NDArray[Any]
    stats: list[dict[str, Any]]
    warnings: list[str]


class PictureRoom:
    """Threads that wait for the picture child. Used from the event loop. Versions share the places in the queue."""

    def __init__(self, *, threads: int = THREADS, max_waiting: int = MAX_WAITING) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
        self._places = Shares(max_waiting)

    async def decode(self, pictures: list[bytes], version: VersionRoute, deadline: float) -> PreparedPictures:
        """The pictures as the version wants them. Raises a picture code, overloaded or deadline_exceeded."""
        if not self._places.take(version.id):
            raise InferenceError("overloaded", headers={"Retry-After": "1"})
        # The thread goes on after a deadline or a hang-up, bounded by the child's own limits: it counts until it ends.
        work = asyncio.get_running_loop().run_in_executor(self._pool, _decode, pictures, version)
        work.add_done_callback(partial(self._done, version.id))
        try:
            async with asyncio.timeout_at(deadline):
                decoded = await asyncio.shield(work)
        except TimeoutError:
            raise InferenceError("deadline_exceeded") from None
        return _prepared(decoded)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _done(self, version: str, work: "asyncio.Future[DecodedPictures]") -> None:
        self._places.give_back(version)
        if not work.cancelled():
            # Asked for, so that a refusal nobody waits for any more is not reported as lost.
            work.exception()


def _decode(pictures: list[bytes], version: VersionRoute) -> "DecodedPictures":
    """In a thread. Pillow and pydicom are imported by the first picture: a process that sees none saves 30 MB."""
    from inference.runtime.pictures import decode_pictures

    return decode_pictures(pictures, version)


def _prepared(decoded: "DecodedPictures") -> PreparedPictures:
    warnings = sorted({warning for of_one in decoded.warnings for warning in of_one})
    return PreparedPictures(decoded.tensor, [dict(stats) for stats in decoded.stats], warnings)
