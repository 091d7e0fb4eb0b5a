"""How long a request lay in its socket before it was read, which the loop itself cannot see: the kernel is asked.

TCP_INFO (Linux, tcp(7)) says when a connection last brought data, in milliseconds. Right after the last bytes of a
request were read that is for how long the request has waited for this process.
"""

import ctypes
import socket

# Asked of the first request of a turn of the event loop; above it, of all of the turn.
LATE_S = 0.02
_TCP_INFO = getattr(socket, "TCP_INFO", 11)
# Of struct tcp_info in linux/tcp.h: eight octets, then 32-bit words, of which tcpi_last_data_recv is the twelfth.
_LAST_DATA_RECV = 8 + 4 * 11
_SIZE = _LAST_DATA_RECV + 4

_info = ctypes.create_string_buffer(_SIZE)
_length = ctypes.c_uint32(_SIZE)
_getsockopt = ctypes.CDLL(None, use_errno=True).getsockopt
_getsockopt.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint32)]


def waited_s(fd: int) -> float:
    """Seconds since the connection last brought data, to some milliseconds; 0 where nobody knows (no TCP, no Linux)."""
    _length.value = _SIZE
    if fd < 0 or _getsockopt(fd, socket.IPPROTO_TCP, _TCP_INFO, _info, ctypes.byref(_length)) or _length.value < _SIZE:
        return 0.0
    return int.from_bytes(_info.raw[_LAST_DATA_RECV:_SIZE], "little") / 1000
