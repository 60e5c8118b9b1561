"""What the kernel keeps of a process besides memory and files: priorities, limits, privileges, flags."""

from __future__ import annotations

import ctypes as _ctypes
import os as _os
import resource as _resource
import signal as _signal
import struct as _struct
import threading as _threading
from collections.abc import Iterator as _Iterator

_Found = _Iterator[dict[str, tuple[object, object]]]
_libc = _ctypes.CDLL(None, use_errno=True)


def _sure(result: int) -> int:
    """libc's way of failing, as an exception."""
    if result < 0:
        number = _ctypes.get_errno()
        raise OSError(number, _os.strerror(number))
    return result


def _prctl(option: int, *arguments: int) -> int:
    return _sure(_libc.prctl(option, *(_ctypes.c_ulong(one) for one in (*arguments, 0, 0, 0, 0)[:4])))


def _proc(name: str) -> str:
    with open(f"/proc/self/{name}") as file:
        return file.read().strip()


def niceness() -> _Found:
    _os.setpriority(_os.PRIO_PROCESS, 0, 7)
    while True:
        yield {"nice": (_os.getpriority(_os.PRIO_PROCESS, 0), 7)}


def batch_scheduling() -> _Found:
    _os.sched_setscheduler(0, _os.SCHED_BATCH, _os.sched_param(0))
    while True:
        yield {"policy": (_os.sched_getscheduler(0), _os.SCHED_BATCH)}


def real_time_scheduling() -> _Found:
    _os.sched_setscheduler(0, _os.SCHED_FIFO | _os.SCHED_RESET_ON_FORK, _os.sched_param(3))
    while True:
        yield {
            "policy": (_os.sched_getscheduler(0), _os.SCHED_FIFO | _os.SCHED_RESET_ON_FORK),
            "priority": (_os.sched_getparam(0).sched_priority, 3),
        }


def cpu_affinity() -> _Found:
    """Of the process, and another one of a second thread."""
    highest = max(_os.sched_getaffinity(0))
    tids, ready = [], _threading.Event()

    def other() -> None:
        _os.sched_setaffinity(0, {0})
        tids.append(_threading.get_native_id())
        ready.set()
        _threading.Event().wait()

    _threading.Thread(target=other, daemon=True).start()
    ready.wait()
    _os.sched_setaffinity(0, {highest})
    while True:
        yield {
            "first thread": (_os.sched_getaffinity(0), {highest}),
            "second thread": (_os.sched_getaffinity(tids[0]), {0}),
        }


def io_priority() -> _Found:
    """ioprio_set(2): class 2, best effort, level 6."""
    wanted = 2 << 13 | 6
    _sure(_libc.syscall(251, 1, 0, wanted))
    while True:
        yield {"priority": (_libc.syscall(252, 1, 0), wanted)}


def timer_slack() -> _Found:
    _prctl(29, 7_000_000)
    while True:
        yield {"nanoseconds": (_prctl(30), 7_000_000)}


def oom_score() -> _Found:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("321")
    while True:
        yield {"oom_score_adj": (_proc("oom_score_adj"), "321")}


def core_dump_filter() -> _Found:
    with open("/proc/self/coredump_filter", "w") as file:
        file.write("0x7f")
    while True:
        yield {"coredump_filter": (int(_proc("coredump_filter"), 16), 0x7F)}


def limits() -> _Found:
    wanted = {
        _resource.RLIMIT_NOFILE: (512, 1000),
        _resource.RLIMIT_CORE: (0, 1 << 20),
        _resource.RLIMIT_CPU: (100_000, 200_000),
        _resource.RLIMIT_STACK: (4 << 20, 64 << 20),
        _resource.RLIMIT_SIGPENDING: (99, 100),
    }
    for number, pair in wanted.items():
        _resource.setrlimit(number, pair)
    while True:
        yield {f"limit {number}": (_resource.getrlimit(number), pair) for number, pair in wanted.items()}


def umask() -> _Found:
    _os.umask(0o027)
    while True:
        yield {"mask": (_os.umask(0o027), 0o027)}


def lost_personality() -> _Found:
    """ADDR_NO_RANDOMIZE and UNAME26, which do not come along."""
    _sure(_libc.personality(0x0040000 | 0x0020000))
    yield {"release": (_os.uname().release[:2], "2.")}
    while True:
        yield {"persona": (_libc.personality(0xFFFFFFFF), 0)}


def deadline_scheduling() -> _Found:
    """sched_setattr(2): SCHED_DEADLINE, 1 ms in 100 ms."""
    attributes = _struct.pack("<IIQiIQQQ", 48, 6, 0, 0, 0, 1_000_000, 100_000_000, 100_000_000)
    _sure(_libc.syscall(314, 0, attributes, 0))
    while True:
        yield {"policy": (_os.sched_getscheduler(0), 6)}


def subreaper() -> _Found:
    """An orphaned grandchild comes to it."""
    _prctl(36, 1)
    while True:
        flag = _ctypes.c_int()
        _sure(_libc.prctl(37, _ctypes.byref(flag), 0, 0, 0))
        reading, writing = _os.pipe()
        child = _os.fork()
        if child == 0:
            if (grandchild := _os.fork()) == 0:
                _signal.pause()
            _os.write(writing, str(grandchild).encode())
            _os._exit(0)
        _os.waitpid(child, 0)
        grandchild = int(_os.read(reading, 99))
        _os.close(reading)
        _os.close(writing)
        with open(f"/proc/{grandchild}/status") as file:
            parents = [line.split()[1] for line in file if line.startswith("PPid:")]
        _os.kill(grandchild, 9)
        yield {"flag": (flag.value, 1), "parent of an orphan": (parents, [str(_os.getpid())])}
        _os.waitpid(grandchild, 0)


def parent_death_signal() -> _Found:
    """Of a child, which its parent's end would end."""
    reading, writing = _os.pipe()
    child = _os.fork()
    if child == 0:
        _os.close(reading)
        _prctl(1, int(_signal.SIGTERM))
        flag = _ctypes.c_int()
        while True:
            _sure(_libc.prctl(2, _ctypes.byref(flag), 0, 0, 0))
            _os.write(writing, bytes([flag.value]))
            _signal.sigwait([_signal.SIGUSR1])
    _os.close(writing)
    while True:
        yield {"signal": (_os.read(reading, 1), bytes([_signal.SIGTERM]))}
        _os.kill(child, _signal.SIGUSR1)


def not_dumpable() -> _Found:
    _prctl(4, 0)
    while True:
        yield {"dumpable": (_prctl(3), 0)}


def no_new_privileges() -> _Found:
    _prctl(38, 1)
    while True:
        yield {"flag": (_prctl(39), 1)}


def seccomp_filter() -> _Found:
    """A filter under which sysinfo(2) fails with EPERM."""
    _prctl(38, 1)
    code = b"".join(
        _struct.pack("<HBBI", *one)
        for one in ((0x20, 0, 0, 0), (0x15, 0, 1, 99), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000))
    )
    program = _ctypes.create_string_buffer(code)
    header = _struct.pack("<HxxxxxxQ", len(code) // 8, _ctypes.addressof(program))
    _sure(_libc.prctl(22, 2, header, 0, 0))
    buffer = _ctypes.create_string_buffer(256)
    while True:
        failed = _libc.syscall(99, buffer)
        yield {
            "sysinfo": ((failed, _ctypes.get_errno()), (-1, 1)),
            "mode": (_prctl(21), 2),
        }


def capabilities() -> _Found:
    """Without CAP_NET_RAW (13), also in the bounding set."""
    header = _struct.pack("<Ii", 0x20080522, 0)
    data = _ctypes.create_string_buffer(24)
    _sure(_libc.capget(header, data))
    words = list(_struct.unpack("<6I", data.raw))
    for index in range(3):
        words[index] &= ~(1 << 13)
    _prctl(24, 13)
    _sure(_libc.capset(header, _struct.pack("<6I", *words)))
    while True:
        _sure(_libc.capget(header, data))
        yield {"sets": (list(_struct.unpack("<6I", data.raw)), words), "bounding": (_prctl(23, 13), 0)}


def securebits() -> _Found:
    """SECBIT_NO_SETUID_FIXUP."""
    _prctl(28, 4)
    while True:
        yield {"bits": (_prctl(27), 4)}


def dropped_root() -> _Found:
    """A program that started as root and gave it up."""
    _os.setgroups([34, 100])
    _os.setresgid(33, 33, 33)
    _os.setresuid(33, 33, 33)
    while True:
        try:
            _os.setuid(0)
            back = True
        except PermissionError:
            back = False
        yield {
            "uids": (_os.getresuid(), (33, 33, 33)),
            "gids": (_os.getresgid(), (33, 33, 33)),
            "groups": (sorted(_os.getgroups()), [34, 100]),
            "root again": (back, False),
        }


def huge_pages_disabled() -> _Found:
    _prctl(41, 1)
    while True:
        yield {"flag": (_prctl(42), 1)}


def names_of_threads() -> _Found:
    tids, ready, go = [], _threading.Event(), _threading.Event()

    def other() -> None:
        _prctl(15, _ctypes.addressof(_NAME))
        tids.append(_threading.get_native_id())
        ready.set()
        go.wait()

    _threading.Thread(target=other, daemon=True).start()
    ready.wait()
    while True:
        yield {"name": (_proc(f"task/{tids[0]}/comm"), "second one")}


_NAME = _ctypes.create_string_buffer(b"second one")


def huge_environment() -> _Found:
    """Started with it: see what_moves.py."""
    wanted = {f"VARIABLE_{number}": "x" * 1000 for number in range(1000)}
    while True:
        there = {name: value for name, value in _os.environ.items() if name.startswith("VARIABLE_")}
        with open("/proc/self/environ", "rb") as file:
            shown = sum(part.startswith(b"VARIABLE_") for part in file.read().split(b"\0"))
        yield {"environment": (there == wanted, True), "/proc": (shown, 1000)}


def name_of_the_host() -> _Found:
    """sethostname(2): started in a UTS namespace of its own, see what_moves.py."""
    _sure(_libc.sethostname(b"subject", 7))
    while True:
        yield {"name": (_os.uname().nodename, "subject")}


def another_user() -> _Found:
    """Its effective user and group are others than the real ones, to which it can go back."""
    _os.setgroups([34, 100])
    _os.setresgid(0, 33, 0)
    _os.setresuid(0, 33, 0)
    while True:
        users = (_os.getresuid(), _os.getresgid(), sorted(_os.getgroups()))
        _os.seteuid(0)
        yield {"users": (users, ((0, 33, 0), (0, 33, 0), [34, 100])), "root again": (_os.geteuid(), 0)}
        _os.seteuid(33)


def lost_sandbox() -> _Found:
    """Landlock: no symbolic link may be made (landlock(7)). It does not come along."""
    rules = _sure(_libc.syscall(444, _struct.pack("<Q", 1 << 12), 8, 0))
    _prctl(38, 1)
    _sure(_libc.syscall(446, rules, 0))
    _os.close(rules)
    expected = "refused"
    while True:
        try:
            _os.symlink("nowhere", "/srv/subject/symbolic")
            _os.unlink("/srv/subject/symbolic")
            found = "allowed"
        except PermissionError:
            found = "refused"
        yield {"a symbolic link": (found, expected)}
        expected = "allowed"


def lost_keyring() -> _Found:
    """keyctl(2): a session keyring of its own, with a key. It does not come along."""
    _sure(_libc.syscall(250, 1, b"subject", 0, 0, 0))
    key = _sure(_libc.syscall(248, b"user", b"subject", b"secret", 6, -3))
    expected = key
    while True:
        yield {"key": (_libc.syscall(250, 10, -3, b"user", b"subject", 0), expected)}
        expected = -1
