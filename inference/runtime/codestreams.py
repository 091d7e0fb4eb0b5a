"""Just enough of PNG, JPEG and JPEG 2000 to know size, end and damage, and to take comments out, without a codec."""

import zlib

Extent = tuple[int, int]

# Start-of-frame markers of ITU-T T.81 table B.1: all of SOF0..SOF15 but DHT, JPG and DAC.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_SCAN = 0xDA
_COMMENT = 0xFE
_ADOBE = 0xEE
_JFIF = 0xE0
# An APP0 of our own: JFIF 1.01, no density, no thumbnail.
_PLAIN_JFIF = bytes.fromhex("ffe000104a46494600010100000100010000")


def png_end(data: bytes) -> int | None:
    """Offset just past the IEND chunk where every chunk up to it is whole and has the right CRC, else None."""
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data) or zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            return None
        if data[at + 4 : at + 8] == b"IEND":
            return end
        at = end
    return None


def png_size(data: bytes) -> Extent | None:
    """(width, height) that a PNG's first chunk states, or None where that is no IHDR."""
    if data[12:16] != b"IHDR" or len(data) < 24:
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def jpeg_size(data: bytes) -> Extent | None:
    """(width, height) of a JPEG that begins and ends as one must, else None."""
    if data[:2] != b"\xff\xd8" or not data.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        return None
    for marker, start, end in _segments(data):
        if marker in _FRAMES and end - start >= 8:
            return int.from_bytes(data[start + 5 : start + 7], "big"), int.from_bytes(
                data[start + 3 : start + 5], "big"
            )
    return None


def jpeg2000_size(data: bytes) -> Extent | None:
    """(width, height) of a bare JPEG 2000 codestream (ITU-T T.800 A.5.1), else None; its codec notices a cut itself."""
    if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 24:
        return None
    right, bottom, left, top = (int.from_bytes(data[at : at + 4], "big") for at in (8, 12, 16, 20))
    if right <= left or bottom <= top:
        return None
    return right - left, bottom - top


def jpeg_end(data: bytes) -> int | None:
    """Offset just past the end marker of the first picture in `data`, or None where it never ends."""
    scan = None
    for marker, start, _ in _segments(data):
        if marker == _SCAN:
            scan = start
    if scan is None:
        return None
    # Inside scans FF is always followed by 00 or a restart marker, so the first FF D9 ends the picture.
    end = data.find(b"\xff\xd9", scan)
    return None if end < 0 else end + 2


def bare_jpeg(data: bytes) -> bytes | None:
    """The same picture bit for bit without comments, EXIF, colour profiles, thumbnails and what follows its end.

    Kept of the application segments: Adobe's, which says how the colours are coded, and a JFIF of our own where there
    was one. None where the segments cannot be walked.
    """
    end = jpeg_end(data)
    if end is None:
        return None
    kept = bytearray(b"\xff\xd8")
    for marker, start, stop in _segments(data):
        if marker == _SCAN:
            kept += data[start - 2 : end]
            return bytes(kept) if _scans_are_clean(data, stop, end) else None
        if marker == _JFIF and data[start + 2 : start + 6] == b"JFIF":
            kept += _PLAIN_JFIF
            continue
        adobe = marker == _ADOBE and data[start + 2 : start + 7] == b"Adobe" and stop - start == 14
        if adobe or (marker != _COMMENT and not 0xE0 <= marker <= 0xEF):
            kept += data[start - 2 : stop]
    return None


def _scans_are_clean(data: bytes, start: int, end: int) -> bool:
    """Whether nothing that could carry text (comments, application segments) stands between the scans."""
    at = data.find(b"\xff", start, end)
    while at >= 0 and at + 1 < end:
        marker = data[at + 1]
        if marker == _COMMENT or 0xE0 <= marker <= 0xEF:
            return False
        at = data.find(b"\xff", at + 1, end)
    return True


def _segments(data: bytes) -> list[tuple[int, int, int]]:
    """(marker, offset of its length field, end) of each segment up to the first scan, as far as they make sense."""
    found = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _STANDALONE:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if length < 2 or end > len(data):
            break
        found.append((marker, at + 2, end))
        if marker == _SCAN:
            break
        at = end
    return found
