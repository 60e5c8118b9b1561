"""What a host keeps of migrations: journals as they are told and obeyed, and the words that lie beside one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

from agent import (
    floating,
    freezer,
    guard,
    hold,
    iptables,
    leftovers,
    lodging,
    namespace,
    ours,
    process,
    protocol,
    rules,
    settle,
    standing,
    story,
    strays,
    suspension,
    throttle,
    wire,
)
from agent.journal import FIRST, Journal, JournalError, Record
from agent.lock import TaskLocked
from agent.protocol import Verdict, Word
from agent.settings import Settings
from tests.fuzz.rooms import room

ID = "20260704-031500-a1b2c3"
_BESIDE = ("stopped", namespace.WORD, lodging.WORD, freezer.WORD, throttle.WORD, "ledger", "restore.log")
_NOBODY = 2**22 + 7
"""No PID of Linux is as large."""


class _NobodyElse(ours.Descriptors):
    """The host's other processes are no bytes of a journal."""

    def __init__(self) -> None:
        self._open = {}


def _host(name: str, data: bytes) -> Settings:
    """A host with this journal, and what lies beside it: pieces with a NUL between them."""
    place = room(name)
    settings = Settings(state=place / "state", run=place / "run")
    directory = settings.state / ID
    directory.mkdir(parents=True)
    for file, content in zip(("journal", *_BESIDE), data.split(b"\0"), strict=False):
        (directory / file).write_bytes(content)
    return settings


def told(data: bytes) -> None:
    """All that a host tells of its migrations: whatever it has kept, it is an answer that can be sent, or a refusal."""
    settings = _host("told", data)
    with (
        mock.patch.object(ours, "Descriptors", _NobodyElse),
        mock.patch.object(ours, "processes", return_value=[]),
        mock.patch.object(leftovers, "CGROUPS", settings.run),
        mock.patch.object(guard, "tables", return_value=(f"{guard.LOCK_PREFIX}0", f"{guard.PREFIX}{ID}")),
        mock.patch.object(iptables, "left", return_value=()),
        mock.patch.object(suspension, "left", return_value=()),
    ):
        wire.encode_result(1, story.migrations(settings))
        wire.encode_result(1, leftovers.find(settings))
        for request in (ID, ""):
            with contextlib.suppress(JournalError):
                wire.encode_result(1, settle.read_journal(settings, request))
                wire.encode_result(1, story.tell(settings, protocol.ReadJournal(request)))
        with contextlib.suppress(TaskLocked):
            standing.refuse_held(settings, [(_NOBODY, 1)])


def beside(data: bytes) -> None:
    """The words beside a good journal, as recovery reads them."""
    settings = _host("beside", next(iter(_journals(("target", ("HELD",))))) + b"\0" + data)
    directory = settings.state / ID
    assert all(len(task) == 2 for task in hold.stopped(directory))
    namespace.init_of(directory)
    namespace.restored(directory, directory / "stopped")
    # what is written where such a word says: a room of ours is asked, and none of the host's cgroups
    with mock.patch.object(lodging, "_write"), mock.patch.object(Path, "write_text"):
        lodging.hold(directory)
        freezer.thaw(directory)
    with mock.patch.object(throttle, "_start"):
        assert all("\n" not in line for line in asyncio.run(throttle.put_back(directory)))
    journal = Journal.load(settings.state, ID)
    assert strays.found(journal) == []
    journal.close()


def words() -> Iterable[bytes]:
    """As they are written."""
    yield b"\0".join(
        (
            b"4194311 7 4194311\n4194312 8 4194312\n", b"4194311 7\n", b"/sys/fs/cgroup/x\ncpu.max 1 2\n",
            b"/sys/fs/cgroup/x\n", b"4194311 /sys/fs/cgroup/migrating-x\n", b"",
            b"(00.01)      7: Forking task with 4194311 pid (flags 0x0)\n",
        )
    )  # fmt: skip


def obeyed(data: bytes) -> None:
    """What each verdict makes of a journal, by the rules: a record that it may have next, none, or a refusal; and
    whatever is in there, none of those that would make two of one process, or none."""
    settings = _host("obeyed", data)
    for images in (settings.images(ID), settings.images_on_disk(ID)):
        images.mkdir(parents=True)
    with contextlib.suppress(JournalError):
        journal = Journal.load(settings.state, ID)
        try:
            for word in Word:
                _judge(settle._known(settings, journal, word))
        finally:
            journal.close()


def _judge(known: rules.Known) -> None:
    assert rules.why_not(known) or known.has(Record.HELD)
    for verdict in Verdict:
        with contextlib.suppress(JournalError):
            record = rules.to_write(verdict, known)
            if record is Record.ABORT:
                assert not {Record.COMMIT, Record.RESUMING, Record.DEPOSED}.intersection(known.records)
            elif record is Record.COMMIT:
                assert known.records[-1] is Record.FROZEN
            elif record is Record.DEPOSED:
                assert known.has(Record.ABORT) and known.has(Record.FROZEN)
            elif record is Record.RESUMING:
                assert known.has(Record.HELD)
                assert not known.has(Record.ABORT)
                assert known.images
                assert known.same_boot or known.durable or known.word is Word.RESTORE_ANYWAY
            else:
                assert record is None


def journals() -> Iterable[bytes]:
    """Of both hosts, in every standing that a journal can have."""
    yield from _journals(
        ("source", ("FROZEN", "COMMIT", "KILLED", "DONE")), ("source", ("FROZEN", "ABORT", "DEPOSED", "KILLED")),
        ("source", ("ABORT", "DONE")), ("target", ("HELD", "RESUMING", "RESUMED", "DONE")),
        ("target", ("HELD", "HELD", "ABORT")), ("target", ("HELD", "RESUMING")),
    )  # fmt: skip


def _journals(*wanted: tuple[str, tuple[str, ...]]) -> Iterable[bytes]:
    boot = process.boot_id()
    for role, records in wanted:
        first: dict[str, object] = {
            "record": FIRST[role], "time": 1.5, "role": role, "id": ID, "peer": "beta", "root": _NOBODY, "boot": boot,
            "tasks": [[_NOBODY, 7]], "on_disk": role == "target", "directory": "", "agent": [_NOBODY, 5],
            "migrate": [_NOBODY, 6], "durable": True, "shared": "", "scope": {"name": "", "title": "", "limits": []},
            "logged": [[7, "x"]], "terminal": "", "ptys": [], "lease": 60.0, "images": "/run/migrate/x", "address": "",
            "floating": [["192.0.2.7", 24, "none0"]],
        }  # fmt: skip
        lines = [first, {"record": "criu", "what": "dump", "pid": _NOBODY, "start": 9}]
        lines += [{"record": floating.LOCK, "table": f"{guard.LOCK_PREFIX}0"}, {"record": "guard"}]
        lines += [
            {"record": name, "time": 2.5, "tasks": [[_NOBODY, 7]], "pid": _NOBODY, "root": _NOBODY, "boot": boot,
             "word": "source-is-dead", "disk_seconds": 0.5, "reason": "settled"}
            for name in records
        ]  # fmt: skip
        yield b"".join(json.dumps(line).encode() + b"\n" for line in lines)
