"""Descriptors of events, and signals."""

from __future__ import annotations

import ctypes as _ctypes
import os as _os
import select as _select
import signal as _signal
import struct as _struct
from collections.abc import Iterator as _Iterator

_Found = _Iterator[dict[str, tuple[object, object]]]
_libc = _ctypes.CDLL(None, use_errno=True)


def _sure(result: int) -> int:
    if result < 0:
        raise OSError(_ctypes.get_errno(), _os.strerror(_ctypes.get_errno()))
    return result


def event_descriptor() -> _Found:
    """eventfd(2): its count."""
    descriptor = _os.eventfd(41)
    while True:
        count = _os.eventfd_read(descriptor)
        _os.eventfd_write(descriptor, 41)
        yield {"count": (count, 41)}


def event_semaphore() -> _Found:
    """eventfd(2) whose reads take one each."""
    descriptor = _os.eventfd(3, _os.EFD_SEMAPHORE)
    while True:
        took = _os.eventfd_read(descriptor)
        _os.eventfd_write(descriptor, 1)
        yield {"took": (took, 1)}


def epoll() -> _Found:
    """What is watched, edge-triggered and by level, one of them readable, one descriptor a duplicate."""
    watching = _select.epoll()
    quiet, loud = _os.pipe(), _os.pipe()
    _os.write(loud[1], b"x")
    copy = _os.dup(quiet[0])
    watching.register(quiet[0], _select.EPOLLIN | _select.EPOLLET)
    watching.register(copy, _select.EPOLLIN)
    watching.register(loud[0], _select.EPOLLIN)
    while True:
        first = watching.poll(0)
        _os.write(quiet[1], b"y")
        second = sorted(watching.poll(0))
        _os.read(quiet[0], 9)
        yield {
            "ready": (first, [(loud[0], _select.EPOLLIN)]),
            "then": (second, sorted((fd, _select.EPOLLIN) for fd in (quiet[0], copy, loud[0]))),
        }


def signal_descriptor() -> _Found:
    """signalfd(2), with a signal that is under way while it moves."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGUSR2, _signal.SIGWINCH])
    mask = _struct.pack("<Q", 1 << (_signal.SIGUSR2 - 1) | 1 << (_signal.SIGWINCH - 1))
    descriptor = _sure(_libc.signalfd(-1, mask, 0))
    _os.kill(_os.getpid(), _signal.SIGUSR2)
    while True:
        number = _struct.unpack("<I", _os.read(descriptor, 128)[:4])[0]
        _os.kill(_os.getpid(), _signal.SIGUSR2)
        yield {"signal": (number, _signal.SIGUSR2)}


def inotify() -> _Found:
    """A watch that goes on to see what happens in a directory of the host where it now is."""
    descriptor = _sure(_libc.inotify_init1(0o4000))
    watch = _sure(_libc.inotify_add_watch(descriptor, b"/srv/subject/watched", 0x100))
    count = 0
    while True:
        count += 1
        path = f"/srv/subject/watched/{_os.uname().nodename}-{count}"
        _os.close(_os.open(path, _os.O_CREAT | _os.O_WRONLY))
        event = _os.read(descriptor, 4096)
        number, _, _, size = _struct.unpack("<iIII", event[:16])
        _os.unlink(path)
        yield {
            "event": ((number, event[16 : 16 + size].rstrip(b"\0").decode()), (watch, _os.path.basename(path))),
        }


def pending_signals() -> _Found:
    """Blocked and waiting: an ordinary one, and three of a real-time one in their order."""
    number = _signal.SIGRTMIN + 3
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGCONT, number])
    _libc.sigqueue.argtypes = [_ctypes.c_int, _ctypes.c_int, _ctypes.c_void_p]

    def send() -> None:
        for value in (5, 6, 7):
            _sure(_libc.sigqueue(_os.getpid(), number, value))
        _os.kill(_os.getpid(), _signal.SIGCONT)

    def taken() -> list[int]:
        info, values = _ctypes.create_string_buffer(128), []
        for _ in range(3):
            _sure(_libc.sigwaitinfo(_struct.pack("<Q", 1 << (number - 1)) + bytes(120), info))
            values.append(_struct.unpack("<q", info.raw[24:32])[0])
        return values

    send()
    while True:
        pending = _signal.sigpending()
        values = taken()
        _signal.sigwait([_signal.SIGCONT])
        send()
        yield {"pending": (pending >= {number, _signal.SIGCONT}, True), "values": (values, [5, 6, 7])}


def signal_handlers() -> _Found:
    """A handler, one that is ignored, and the mask."""
    caught: list[int] = []
    _signal.signal(_signal.SIGURG, lambda number, frame: caught.append(number))
    _signal.signal(_signal.SIGHUP, _signal.SIG_IGN)
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGTTIN])
    while True:
        caught.clear()
        _os.kill(_os.getpid(), _signal.SIGURG)
        _os.kill(_os.getpid(), _signal.SIGHUP)
        yield {
            "caught": (caught, [_signal.SIGURG]),
            "blocked": (_signal.SIGTTIN in _signal.pthread_sigmask(_signal.SIG_BLOCK, []), True),
        }
