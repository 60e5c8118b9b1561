"""What a target says of itself and of what it was asked, and what becomes of that: a plan, obstacles, a report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable
from typing import cast

from agent import protocol, wire
from migrator import channel, errors, peer, phases, plan, recovery, status, status_words, words
from migrator.forward import pasteable
from migrator.peer import PeerLost
from migrator.report import rounded
from tests.fuzz.lines import sample

_SOURCE = dataclasses.replace(
    sample(protocol.HostFacts), criu_version="4.2.1", kernel="6.18.0", machine="x86_64", page_size=4096, criu_check=""
)
_ODD = {
    "pty": ("3", ""), "ghost": ("/x", "9"), "affinity": ("0-3", ""), "hugetlb": ("/x", "2097152 2097152"),
    "listen": ("0.0.0.0:80", ""), "receive": ("[::]:53", "only-ipv6"), "lsm-label": ("x", "apparmor"),
    "unix-name": ("@x", "stream"), "cgroup-limits": ("/x", "memory.max"), "pidfd": ("x", ""), "io-uring": ("x", ""),
    "watch": ("/srv", "inotify"),
}  # fmt: skip
_FILES = tuple(
    dataclasses.replace(sample(protocol.FileFacts), path=path, kind=kind, uses=uses)
    for path, kind, uses in (
        ("/usr/lib/x.so", "regular", ("map", "exec")), ("/var/log/x", "regular", ("write",)), ("/srv", "directory", ())
    )
)  # fmt: skip
_TREE = dataclasses.replace(
    sample(protocol.TreeFacts),
    peculiarities=tuple(protocol.Peculiarity(kind, 1, *_ODD[kind]) for kind in _ODD),
    accounts=(protocol.Account("user", 0, "root"), protocol.Account("group", 5, "tty")),
    files=_FILES,
    terminals=(),
)


def answers(data: bytes) -> None:
    """A target's HostFacts and its TargetCheck, a line each: whatever it says, there is a plan, and words for it."""
    first, _, second = data.partition(b"\n")
    wishes = plan.Wishes(copy_files=True)
    asked = plan.questions(_TREE, wishes)
    with contextlib.suppress(wire.WireError, PeerLost):
        target = wire.decode(protocol.HostFacts, wire.loads(first))
        found = peer.answering(wire.decode(protocol.TargetCheck, wire.loads(second)), asked, "beta")
        chosen, obstacles = plan.make_plan(_SOURCE, target, _TREE, found, wishes)
        assert {file.path for file in chosen.copy_files} <= {file.path for file in _TREE.files}
        said = words.obstacle_table(obstacles) if obstacles else ""
        assert all(line.isprintable() for line in said.split("\n"))
        assert all(words.escape(note).isprintable() for note in chosen.notes)


def answers_seeds() -> Iterable[bytes]:
    """A target like the source, and one on which nothing is."""
    for kind in ("regular", "missing"):
        asked = plan.questions(_TREE, plan.Wishes(copy_files=True))
        found = protocol.TargetCheck(
            tuple(dataclasses.replace(file, kind=kind) for file in asked.files), (), 1 << 40, 1 << 40,
            asked.accounts, asked.addresses,
        )  # fmt: skip
        yield b"\n".join(json.dumps(dataclasses.asdict(one)).encode() for one in (_SOURCE, found))


def report(data: bytes) -> None:
    """Figures of both hosts, as they get into a round and into the report's last line."""
    with contextlib.suppress(wire.WireError):
        filled = wire.decode(protocol.Filled, wire.loads(data))
        round_ = phases.Round(filled.faults, filled.bytes, filled.bytes, filled.seconds, filled.longest_fault_seconds)
        done = phases.Report(
            id="x", outcome="migrated", pid=1, target_pid=filled.faults, source="a", target="b", rounds=(round_,),
            downtime_seconds=filled.seconds, freeze_seconds=0.0, restore_seconds=filled.seconds,
            total_seconds=filled.seconds, bytes=filled.bytes, wire_bytes=filled.peak_bytes,
        )  # fmt: skip
        assert words.summary(done).count("\n") == 1


def reports() -> Iterable[bytes]:
    """As it should be."""
    yield json.dumps(dataclasses.asdict(protocol.Filled(1 << 30, 1.5, 7, 0.01, 2 << 30))).encode()


def verdict(data: bytes) -> None:
    """Both hosts' journals, as they tell them: whatever the target's says, a source with COMMIT never undoes, and one
    without it goes forward only where it has rebooted in the freeze."""
    first, _, second = data.partition(b"\n")
    with contextlib.suppress(wire.WireError):
        here, there = (wire.decode(protocol.JournalState, wire.loads(line)) for line in (first, second))
        chosen = recovery.course(here, there)
        if chosen is not recovery.Course.BUSY:
            if "COMMIT" in here.records:
                assert chosen is not recovery.Course.UNDO
            else:
                assert chosen is not recovery.Course.CLEAN
                assert chosen is not recovery.Course.FORWARD or not here.same_boot


def verdicts() -> Iterable[bytes]:
    """Before and after COMMIT."""
    for records in (("BEGIN", "FROZEN"), ("BEGIN", "FROZEN", "COMMIT")):
        here = protocol.JournalState("m", "source", records, "b", 4, False, False, False, 0, True)
        there = dataclasses.replace(here, role="target", records=("PREPARED", "HELD"))
        yield b"\n".join(json.dumps(dataclasses.asdict(one)).encode() for one in (here, there))


def _shown(text: str) -> None:
    """It drives no terminal."""
    assert all(line.isprintable() for line in text.split("\n"))


def _is_json(events: status_words.Events) -> None:
    for name, fields in events:
        json.dumps(rounded({"event": name, **fields}), allow_nan=False)


def status_of(data: bytes) -> None:
    """The other host's list of migrations, its story of one, its leftovers, and what lines of its journal say, a line
    each: whatever they are, `migrate status` shows them, and `--json` is JSON."""
    _lines_of_a_journal(data.split(b"\n")[3:])
    kinds = (protocol.Migrations, protocol.Story, protocol.Remains)
    for kind, line in zip(kinds, data.split(b"\n"), strict=False):
        with contextlib.suppress(wire.WireError):
            said: object = wire.decode(kind, wire.loads(line))
            if isinstance(said, protocol.Migrations):
                listings = status.Listings((status._listing("beta", said.items, 5),), None)
                _shown(status_words.list_text(listings))
                _is_json(status_words.list_events(listings))
            elif isinstance(said, protocol.Story):
                told = status.Told("m", "alpha", (("beta", said),), said.state.peer, errors.Refused(said.images))
                _shown(status_words.story_text(told))
                _is_json(status_words.story_events(told))
            elif isinstance(said, protocol.Remains):
                remains = status.HostRemains("beta", said.items)
                _shown(status_words.remains_text(remains))
                _is_json(status_words.remains_events(remains))


def statuses() -> Iterable[bytes]:
    """As it is answered."""
    facts = json.dumps({"what": "dump", "pid": 7, "tasks": [[7, 8]], "lease": 60.5, "scope": {"name": "x"}})
    story = dataclasses.replace(sample(protocol.Story), lines=(protocol.Line("BEGIN", 1.5, facts),))
    remain = protocol.Remain("mount", "/run/migrate/x", "tmpfs", "x", False, "umount /run/migrate/x", 4096)
    told = (sample(protocol.Migrations), story, protocol.Remains((remain,)))
    yield b"\n".join(
        [
            *(json.dumps(dataclasses.asdict(one)).encode() for one in told),
            facts.encode(),
            b'{"lease": NaN, "pid": [1e99]}',
        ]
    )


def _lines_of_a_journal(lines: list[bytes]) -> None:
    said = tuple(protocol.Line("BEGIN", 1.5, line.decode(errors="surrogateescape")) for line in lines)
    story = dataclasses.replace(sample(protocol.Story), lines=said)
    told = status.Told("m", "alpha", (("beta", story),), "alpha", None)
    _shown(status_words.story_text(told))
    _is_json(status_words.story_events(told))


class _ByHand:
    """The one thing of `recovery.Hosts` that words are made with."""

    def by_hand(self, peer: str, command: str) -> str:
        """As `reaching.RealHosts`."""
        return channel.Target(peer).by_hand(command, sudo=False)


def outcome(data: bytes) -> None:
    """What `recover` and `abort` say by the journal that another host told and by what it made of a verdict. A command
    that is to be pasted has only words for that host in it."""
    first, _, second = data.partition(b"\n")
    with contextlib.suppress(wire.WireError):
        there = wire.decode(protocol.JournalState, wire.loads(first))
        settled = wire.decode(protocol.Settled, wire.loads(second))
        text = f"the process runs on {there.peer}: {' '.join(settled.records)}; {'; '.join(settled.leftovers)}"
        for peer in ("beta", ""):
            done = recovery.Outcome(recovery.Course.FORWARD, text, there.peer, settled.pid)
            said = done.shown(there, peer, cast(recovery.Hosts, _ByHand()))
            _shown(words.recovered(said))
            assert said.terminal == "" or pasteable(said.terminal)


def outcomes() -> Iterable[bytes]:
    """With a terminal there."""
    there = dataclasses.replace(sample(protocol.JournalState), peer="alpha", terminal="python3 -IS /x terminal /run/y")
    settled = protocol.Settled(("PREPARED", "HELD"), 7, ("mount /x",), False)
    yield b"\n".join(json.dumps(dataclasses.asdict(one)).encode() for one in (there, settled))
