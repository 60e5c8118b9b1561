"""Time as a process sees it, and timers that are under way."""

from __future__ import annotations

import ctypes as _ctypes
import os as _os
import select as _select
import signal as _signal
import struct as _struct
import time as _time
from collections.abc import Iterator as _Iterator

_Found = _Iterator[dict[str, tuple[object, object]]]
_libc = _ctypes.CDLL(None, use_errno=True)
_SECONDS = 4.0
"""Longer than it takes to move where that is fast; else they are due on arrival, and must still come once."""


def clocks() -> _Found:
    """They never go back, and do not jump by what the hosts' clocks are apart."""
    last = {name: _time.clock_gettime(number) for name, number in _CLOCKS.items()}
    while True:
        now = {name: _time.clock_gettime(number) for name, number in _CLOCKS.items()}
        yield {name: ((now[name] >= last[name], now[name] - last[name] < 50_000), (True, True)) for name in _CLOCKS}
        last = now


_CLOCKS = {
    "monotonic": _time.CLOCK_MONOTONIC,
    "raw": _time.CLOCK_MONOTONIC_RAW,
    "boottime": _time.CLOCK_BOOTTIME,
    "realtime": _time.CLOCK_REALTIME,
}


def _waited(number: int, due: float) -> dict[str, tuple[object, object]]:
    """The signal comes, not before its time, and only once."""
    came = _signal.sigtimedwait([number], 600)
    early = _time.monotonic() < due
    again = _signal.sigtimedwait([number], 0.3)
    return {"fires": (came is not None, True), "too early": (early, False), "fires again": (again is not None, False)}


def interval_timer() -> _Found:
    """setitimer(2), to fire once; armed before the move, waited for behind it."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGALRM])
    found: dict[str, tuple[object, object]] = {}
    while True:
        due = _time.monotonic() + _SECONDS
        _signal.setitimer(_signal.ITIMER_REAL, _SECONDS)
        yield found
        found = _waited(_signal.SIGALRM, due)


def cpu_timers() -> _Found:
    """Timers of processor time, which stand still meanwhile, and repeat."""
    for which in (_signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF):
        _signal.setitimer(which, 5000.0, 7000.0)
    while True:
        yield {
            str(which): ([4000 < (left := _signal.getitimer(which))[0] < 5001, left[1]], [True, 7000.0])
            for which in (_signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)
        }


def posix_timer() -> _Found:
    """timer_create(2) with a signal and a value, first once, then repeated every 1000 s."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGRTMIN])
    event = _ctypes.create_string_buffer(_struct.pack("<QiiQQ", 4711, _signal.SIGRTMIN, 0, 0, 0), 64)
    timer = _ctypes.c_void_p()
    if _libc.timer_create(_time.CLOCK_MONOTONIC, event, _ctypes.byref(timer)):
        raise OSError(_ctypes.get_errno(), "timer_create")
    found: dict[str, tuple[object, object]] = {}
    while True:
        due = _time.monotonic() + _SECONDS
        _libc.timer_settime(timer, 0, _struct.pack("<qqqq", 1000, 0, int(_SECONDS), 0), None)
        yield found
        found = _waited(_signal.SIGRTMIN, due)
        left = _ctypes.create_string_buffer(32)
        _libc.timer_gettime(timer, left)
        interval, _, seconds, _ = _struct.unpack("<qqqq", left.raw)
        found |= {"then": ((interval, 500 < seconds <= 1000), (1000, True))}


def timer_descriptor() -> _Found:
    """timerfd_create(2), relative and absolute, both by the monotonic clock."""
    relative, absolute = (_libc.timerfd_create(_time.CLOCK_MONOTONIC, 0) for _ in range(2))
    found: dict[str, tuple[object, object]] = {}
    while True:
        due = _time.monotonic() + _SECONDS
        _libc.timerfd_settime(relative, 0, _struct.pack("<qqqq", 0, 0, int(_SECONDS), 0), None)
        whole, part = divmod(int(due * 1e9), 10**9)
        _libc.timerfd_settime(absolute, 1, _struct.pack("<qqqq", 0, 0, whole, part), None)
        yield found
        found = {}
        for name, descriptor in (("relative", relative), ("absolute", absolute)):
            count = _struct.unpack("<Q", _os.read(descriptor, 8))[0]
            early = _time.monotonic() < due - 1e-6
            again = _select.select([descriptor], [], [], 0.1)[0]
            found[name] = ((count, early, again), (1, False, []))


def sleeping() -> _Found:
    """A child in the middle of a sleep, which does not end before its time."""
    found: dict[str, tuple[object, object]] = {}
    while True:
        reading, writing = _os.pipe()
        due = _time.monotonic() + _SECONDS
        child = _os.fork()
        if child == 0:
            _os.close(reading)
            _time.sleep(_SECONDS)
            _os.write(writing, b"." if _time.monotonic() >= due else b"early")
            _os._exit(0)
        _os.close(writing)
        yield found
        found = {"slept": (_os.read(reading, 99), b".")}
        _os.close(reading)
        _os.waitpid(child, 0)
