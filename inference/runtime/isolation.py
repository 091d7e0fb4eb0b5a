"""What a throw-away child takes away from itself before it touches anything that a stranger made.

Linux only. Each layer stands alone, so that one which the host forbids (a container without user namespaces, an old
kernel) leaves the others: resource limits, a network namespace without interfaces, an unprivileged user, Landlock
(no file outside the interpreter and the system's libraries), seccomp (no socket, no process, no exec).
"""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from pathlib import Path

NOBODY = 65534

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_CLONE_THREAD = 0x00010000
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` (a pid) ends; exits at once where it already has.

    The kernel forgets the wish when the user id changes, so it is asked after that too.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def confine(*, memory_bytes: int, cpu_s: float, file_bytes: int, readable: list[Path]) -> bool:
    """Apply every layer to this single-threaded process for good; returns whether the network is out of reach.

    `memory_bytes` is what it may take on top of what the warm parent handed down. `readable` are folders whose files
    may still be opened (lazy imports); where Landlock is missing, the user id alone guards the rest.
    """
    parent = os.getppid()
    _limit_resources(memory_bytes, cpu_s, file_bytes)
    no_network: bool = _libc.unshare(_CLONE_NEWNET) == 0
    rules = _landlock_rules(readable)
    _drop_privileges(keep_reading=rules is not None)
    # Who is not root gets a network namespace inside a user namespace. After the drop: in there ids read as nobody's.
    no_network = no_network or _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0
    die_with_parent(parent)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel knows no PR_SET_NO_NEW_PRIVS")
    _landlock(rules)
    return _seccomp() or no_network


def _limit_resources(memory_bytes: int, cpu_s: float, file_bytes: int) -> None:
    pages = Path("/proc/self/statm").read_text().split()
    page = resource.getpagesize()
    cpu = max(1, int(cpu_s + 0.999))
    for which, soft, hard in (
        (resource.RLIMIT_AS, int(pages[0]) * page + memory_bytes, int(pages[0]) * page + memory_bytes),
        (resource.RLIMIT_DATA, int(pages[5]) * page + memory_bytes, int(pages[5]) * page + memory_bytes),
        # The soft limit ends the process by SIGXCPU, which tells it from an out-of-memory kill.
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, file_bytes, file_bytes),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, 64, 64),
    ):
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)


def _drop_privileges(*, keep_reading: bool) -> None:
    """Become nobody. `keep_reading` (Landlock will say what) leaves the one capability to read files of any owner:
    an interpreter installed below root's home could otherwise import nothing more."""
    if os.geteuid() != 0:
        return
    if keep_reading:
        _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    with contextlib.suppress(PermissionError):  # a root that lost these capabilities, as in a locked container
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    kept = 1 << _CAP_DAC_READ_SEARCH if keep_reading else 0
    head = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
    _libc.capset(head, ctypes.create_string_buffer(struct.pack("=6I", kept, kept, 0, 0, 0, 0), 24))


# Landlock: https://docs.kernel.org/userspace-api/landlock.html. The three calls have one number on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_ALL = (1 << 13) - 1  # every right of the first ABI: execute, write, read, list, remove, make
_LANDLOCK_READ = (1 << 2) | (1 << 3)  # read a file, list a folder
_LANDLOCK_READ_FILE = 1 << 2


def _landlock_rules(readable: list[Path]) -> int | None:
    """Allow reading of `readable` and of what the C library and ONNX Runtime look at; None without support."""
    # Assigned and never used: the structures must outlive the calls.
    attributes = ctypes.create_string_buffer(struct.pack("=Q", _LANDLOCK_ALL), 8)
    ruleset: int = _libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return None
    system = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/usr/local/lib", "/proc/self", "/sys")
    single = ("/dev/null", "/dev/urandom", "/etc/ld.so.cache", "/etc/localtime", "/proc/cpuinfo", "/proc/meminfo")
    for path in (*readable, *map(Path, system), *map(Path, single)):
        try:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # a path that this host lacks
        rights = _LANDLOCK_READ if path.is_dir() else _LANDLOCK_READ_FILE
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, folder), 12)
        _libc.syscall(_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0)
        os.close(folder)
    return ruleset


def _landlock(ruleset: int | None) -> None:
    """Put the rules in force; a child that keeps a capability for their sake ends rather than run without them."""
    if ruleset is None:
        return
    if _libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
        raise OSError(ctypes.get_errno(), "Landlock refused its rules")
    os.close(ruleset)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


# The calls that a child which only computes never needs, by their numbers on x86-64 and on 64-bit Arm.
_FORBIDDEN = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kill": (62, 129),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "execve": (59, 221),
    "execveat": (322, 281),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "fork": (57, None),
    "vfork": (58, None),
}
# Machine: its column above, its audit number, clone, clone3.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E, 56, 435), "aarch64": (1, 0xC00000B7, 220, 435)}

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38


def _seccomp() -> bool:
    """Install a filter that refuses sockets, processes and exec; False where the machine has none."""
    known = _ARCHITECTURES.get(platform.machine())
    if known is None or sys.maxsize < 2**32:
        return False
    column, audit, clone, clone3 = known
    code = [(_LOAD, 0, 0, 4), (_IF_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    # x86-64 has a second numbering (x32) above this bit.
    code += [(_IF_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _REFUSE | _EPERM)]
    for numbers in _FORBIDDEN.values():
        if (number := numbers[column]) is not None:
            code += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE | _EPERM)]
    # Threads are fine, processes are not. clone3 hides its flags in memory; without it the C library falls back.
    code += [(_IF_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _REFUSE | _ENOSYS)]
    code += [(_IF_EQUAL, 0, 3, clone), (_LOAD, 0, 0, 16), (_IF_SET, 1, 0, _CLONE_THREAD)]
    code += [(_RETURN, 0, 0, _REFUSE | _EPERM), (_RETURN, 0, 0, _ALLOW)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    program = _Program(len(code), ctypes.cast(packed, ctypes.c_void_p))
    return bool(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)
