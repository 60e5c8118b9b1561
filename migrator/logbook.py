"""The log of what `migrate` did: a line a phase, and one for how it ended; to journald or syslog, and to --log-file.

Owns these lines and the ways out. A line is KEY=VALUE words, with the same keys everywhere: in journald they are fields
(MIGRATE_PHASE=freeze), in syslog the message, in a file they stand behind the time. No line has more in it than where
the process went, how long it took, and what an error said.

It never holds up a migration, nor fails one: datagrams are sent without waiting, a file is written by a thread of its
own, and what can't be written is left out. Only a file that can't be opened is an error, before anything is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import queue
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from migrator import events, words
from migrator.errors import EXIT_LEFTOVERS, EXIT_MIGRATED, MigrateError, UsageError
from migrator.phases import Phase, Report

JOURNAL = "/run/systemd/journal/socket"
SYSLOG = "/dev/log"
NAME = "migrate"
_FACILITY_DAEMON = 3
_ERROR, _WARNING, _INFO = 3, 4, 6
"""Severities of syslog(3), which journald has too."""
PATIENCE = 5.0
"""Seconds that a file gets at the end to take what is not written yet."""

Fields = Mapping[str, "str | int | float"]


class Sink(Protocol):
    """A way out."""

    def write(self, severity: int, fields: Fields) -> None:
        """One line. Never waits, never raises."""

    def close(self) -> None:
        """No more will come."""


def line(fields: Fields) -> str:
    """KEY=VALUE words; a value that is more than one word is quoted as in JSON."""
    return words.escape(" ".join(f"{key}={_quoted(_text(value))}" for key, value in fields.items()))


def _quoted(text: str) -> str:
    return text if re.fullmatch(r'[^\s"=]+', text) else json.dumps(text, ensure_ascii=False)


def _text(value: str | float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


class _Datagrams:
    """A unix socket that takes a datagram a line."""

    def __init__(self, path: str, encode: Callable[[int, Fields], bytes]) -> None:
        self._encode = encode
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with contextlib.suppress(OSError):
            self._socket.connect(path)

    def write(self, severity: int, fields: Fields) -> None:
        """Sent, or left out."""
        with contextlib.suppress(OSError):
            self._socket.send(self._encode(severity, fields))

    def close(self) -> None:
        """The socket's end."""
        self._socket.close()


def for_journald(severity: int, fields: Fields) -> bytes:
    """An entry in journald's native protocol; every field has its length before it, so that any text may be in it."""
    entry = {"MESSAGE": line(fields), "PRIORITY": str(severity), "SYSLOG_IDENTIFIER": NAME}
    entry |= {f"MIGRATE_{key.upper()}": _text(value) for key, value in fields.items()}
    encoded = {key: value.encode(errors="backslashreplace") for key, value in entry.items()}
    return b"".join(
        key.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n" for key, value in encoded.items()
    )


def for_syslog(severity: int, fields: Fields) -> bytes:
    """A line of RFC 3164 without time and host, as syslog(3) sends it: who takes it knows both."""
    return f"<{_FACILITY_DAEMON * 8 + severity}>{NAME}[{os.getpid()}]: {line(fields)}".encode(errors="backslashreplace")


class _File:
    """A file that lines are appended to, by a thread: a disk that hangs must not hang a frozen process."""

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._descriptor = os.open(path, flags, 0o640)
        except (OSError, ValueError) as error:
            raise UsageError(f"--log-file {path}: {getattr(error, 'strerror', None) or error}") from error
        self._clock = clock
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._drain, name="log file", daemon=True)
        self._thread.start()

    def write(self, severity: int, fields: Fields) -> None:
        """Given to the thread."""
        now = datetime.datetime.fromtimestamp(self._clock(), datetime.timezone.utc).astimezone()
        head = f"{now.isoformat(timespec='milliseconds')} {NAME}[{os.getpid()}] "
        self._lines.put((head + line(fields) + "\n").encode(errors="backslashreplace"))

    def close(self) -> None:
        """Wait for the thread, not for ever."""
        self._lines.put(None)
        self._thread.join(PATIENCE)

    def _drain(self) -> None:
        while (data := self._lines.get()) is not None:
            with contextlib.suppress(OSError):  # one write a line: other processes append too
                os.write(self._descriptor, data)
        os.close(self._descriptor)


def sinks(path: str, *, system: bool, clock: Callable[[], float] = time.time) -> list[Sink]:
    """The ways out that there are: the system's log, where it is asked for, and a file, if named. Raises UsageError."""
    found: list[Sink] = [_File(path, clock)] if path else []
    if system and os.path.exists(JOURNAL):
        found.append(_Datagrams(JOURNAL, for_journald))
    elif system and os.path.exists(SYSLOG):
        found.append(_Datagrams(SYSLOG, for_syslog))
    return found


class Logbook:
    """What one command does, told to all sinks. `about` stands in every line."""

    def __init__(self, ways: list[Sink], about: Fields, clock: Callable[[], float] = time.monotonic) -> None:
        self._sinks = ways
        self._about = dict(about)
        self._clock = clock
        self._began = self._phase_began = clock()
        self._phase: Phase | None = None
        self._rounds: list[events.RoundDone] = []
        self._report: Report | None = None
        self._parts: dict[str, Logbook] = {}

    def part(self, name: str, about: Fields) -> Logbook:
        """A book of its own for one migration of several. One of the same name is over: another target is tried."""
        if before := self._parts.pop(name, None):
            before._end_phase()
        self._parts[name] = Logbook(self._sinks, {**self._about, **about}, self._clock)
        return self._parts[name]

    def part_ended(self, name: str, about: Fields, status: int, error: MigrateError | None) -> None:
        """The last line of a part; of one that was never begun, too."""
        part = self._parts[name] if name in self._parts else self.part(name, about)
        del self._parts[name]
        part.ended(status, error)

    def line(self, event: str, fields: Fields, *, warns: bool = False) -> None:
        """A line that belongs to no phase."""
        self._write(_WARNING if warns else _INFO, {"event": event, **fields})

    def happened(self, event: events.Event) -> None:
        """A listener for `events`."""
        if isinstance(event, events.Started):
            self._about["id"] = event.id
        elif isinstance(event, events.PhaseBegun):
            self._end_phase()
            self._phase, self._phase_began = event.phase, self._clock()
        elif isinstance(event, events.RoundDone):
            self._rounds.append(event)
        elif isinstance(event, events.Ended):
            self._end_phase()  # a session in its new terminal may follow
            self._report = event.report

    def _end_phase(self) -> None:
        if self._phase is None:
            return
        fields = {"event": "phase", "phase": self._phase.value, "seconds": self._clock() - self._phase_began}
        if self._rounds:
            fields |= {"rounds": len(self._rounds), "bytes": sum(done.result.bytes for done in self._rounds)}
            fields["wire_bytes"] = sum(done.result.wire_bytes for done in self._rounds)
        self._write(_INFO, fields)
        self._phase = None
        self._rounds.clear()

    def ended(self, status: int, error: MigrateError | None) -> None:
        """The last line: the exit status, where the process is, and what went wrong. Open parts end before it."""
        for part in self._parts.values():  # cut off by a signal
            part.ended(status, None)
        self._parts.clear()
        self._end_phase()
        fields: dict[str, str | int | float] = {"event": "ended", "exit": status}
        seconds = self._clock() - self._began
        if self._report is not None:
            told, seconds = dataclasses.asdict(self._report), self._report.total_seconds
            names = ("outcome", "name", "source", "target_pid", "downtime_seconds", "bytes", "wire_bytes")
            fields |= {name: told[name] for name in names if told[name] != ""}
        fields["seconds"] = seconds
        if error is not None:
            fields |= {"error": type(error).__name__, "message": error.message, "where": error.where}
        severity = {EXIT_MIGRATED: _INFO, EXIT_LEFTOVERS: _WARNING}.get(status, _ERROR)
        self._write(severity, fields)

    def close(self) -> None:
        """No more will come."""
        for sink in self._sinks:
            sink.close()

    def _write(self, severity: int, fields: Fields) -> None:
        event = {"event": fields["event"]}  # first, so that lines are told apart at a glance
        for sink in self._sinks:
            sink.write(severity, {**event, **self._about, **fields})
