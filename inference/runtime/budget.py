"""How much work a throw-away child may put into one picture: two seconds to find out its size, then by its pixels.

A hostile file spends its two seconds in the structure; an honest one of many pixels takes longer only in the decoder.
The kernel counts (RLIMIT_CPU), so that a busy machine or a codec that never returns changes nothing.
"""

import resource
import time

_STRUCTURE_S = 2.0
# Of 18 million pixels the dearest decode measured, JPEG 2000 of 16 bits, took 4.2 s; writing them as PNG 2.8 s.
_S_PER_PIXEL = 0.4e-6

_counting = False


def begin_picture() -> None:
    """Start the count for one picture. Only a child may call it: from here on this process can be ended."""
    global _counting
    _counting = True
    _allow(_STRUCTURE_S)


def allow_pixels(pixels: int) -> None:
    """Grant the time that decoding this many pixels may take; does nothing outside a child."""
    if _counting:
        _allow(_STRUCTURE_S + pixels * _S_PER_PIXEL)


def _allow(seconds: float) -> None:
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(time.process_time() + seconds + 0.999)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
