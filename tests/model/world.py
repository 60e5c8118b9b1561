"""What there is, and what the kernel, criu and the hooks make of it: two hosts, their journals, trees and agents.

A `World` is a value. What may happen in it next is a list of pairs of words and another `World`. The order of the
records is the product's table, and the hooks' answers are those of the product's own script, run on a journal that says
what the world's says.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from agent import hold, journal
from agent.journal import Record

# the tree on a host
NONE, RUNS, TRACED, STOPPED, DEAD, BLOCKED = "none", "runs", "traced", "stopped", "dead", "blocked"
# criu: at work, in its hook, past it (the tree is being let go), ended well, ended otherwise
WORKING, IN_HOOK, PAST, ENDED, FAILED = "working", "in its hook", "past its hook", "ended", "failed"
ALIVE = (WORKING, IN_HOOK, PAST)


class Host(NamedTuple):
    """One of the two: role "source" or "target"."""

    role: str
    records: tuple[Record, ...]
    """The journal, as whoever reads the file sees it."""
    safe: int
    """So many of the records are on the disk, and survive a loss of power."""
    tree: str
    first: str
    """The agent that the journal's first record names; "" when it is dead."""
    owner: str
    """Who holds the lock on the journal."""
    noted: str = ""
    """The agent of the newest `owner` note; "" when it is dead."""
    taker: str = ""
    """Who holds the lock of taking over."""
    torn: bool = False
    """The journal ends with half a record."""
    same_boot: bool = True
    images: bool = True
    criu: str = NONE
    hook: str = ""
    """"": none; waits; else what it has read and is about to do."""
    fifo: str = ""
    """The verdict that lies in the hook's FIFO."""
    holder: str = ""
    """The agent that holds the FIFO's other end."""
    maker: str = ""
    """Target: the agent whose criu has made the tasks that stand there, and that they descend from."""
    stop_queued: bool = False
    log: str = ""
    """What the restore's log says of the tree: passed (let go), finished."""
    asked: bool = False
    """Target: a restore was asked for."""
    listed: bool = False
    """Target: the tree's tasks are those that HELD names."""
    kept: bool = False
    """Target: the images are on the disk."""
    resuming_here: bool = False
    """Target: RESUMING was written since it last booted."""
    ran: bool = False
    """Source: the tree has run since it was dumped. Target: it has run."""

    @property
    def last(self) -> Record:
        return self.records[-1]

    @property
    def criu_lives(self) -> bool:
        return self.criu in ALIVE


class Agent(NamedTuple):
    name: str
    role: str
    client: str
    """Who speaks to it; "" when it hears no more."""
    memory: tuple[Record, ...] = ()
    """The records that it knows of: it reads the file only when it takes over."""
    stopped: bool = False
    over: bool = False
    """It has dealt with the end of its input."""


class Histories:
    """What programs have seen so far, each history with a number of its own: 0 is the empty one. A world that holds the
    number is compared and hashed much faster."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, Any], int] = {}
        self._rows: list[tuple[Any, ...]] = [()]

    def after(self, number: int, seen: Any) -> int:
        """This history, and then that."""
        key = (number, seen)
        if key not in self._numbers:
            self._numbers[key] = len(self._rows)
            self._rows.append((*self._rows[number], seen))
        return self._numbers[key]

    def of(self, number: int) -> tuple[Any, ...]:
        """All of it, oldest first."""
        return self._rows[number]


HISTORIES = Histories()


class Op(NamedTuple):
    """A command on its way to an agent (no history yet), at work, or answered."""

    agent: str
    client: str
    program: str
    arguments: tuple[Any, ...]
    history: int = 0
    answer: Any = None


class Client(NamedTuple):
    """`migrate`, or `migrate recover`."""

    name: str
    program: str
    history: int = 0


class World(NamedTuple):
    source: Host
    target: Host
    agents: tuple[Agent, ...]
    ops: tuple[Op, ...]
    clients: tuple[Client, ...]
    faults: int
    """So many more things may go wrong."""
    durable: bool
    """--durable: the target's images are on its disk before HELD."""
    marks: frozenset[str] = frozenset()
    """What went wrong that is an exception of the design's, by name."""
    broken: str = ""
    """The invariant that does not hold any more."""

    def host(self, role: str) -> Host:
        return self.source if role == "source" else self.target

    def on(self, role: str, **change: Any) -> World:
        """With another state of one host."""
        if role == "source":
            return self._replace(source=self.source._replace(**change))
        return self._replace(target=self.target._replace(**change))

    def agent(self, name: str) -> Agent | None:
        return next((agent for agent in self.agents if agent.name == name), None)

    def with_agent(self, name: str, **change: Any) -> World:
        agents = (agent._replace(**change) if agent.name == name else agent for agent in self.agents)
        return self._replace(agents=tuple(sorted(agents)))

    def without(self, names: set[str]) -> World:
        """These agents die: their locks go, their commands are never answered."""
        world = self._replace(
            agents=tuple(agent for agent in self.agents if agent.name not in names),
            ops=tuple(op for op in self.ops if op.agent not in names),
        )
        for role in ("source", "target"):
            host = world.host(role)
            change = {
                name: ""
                for name in ("first", "owner", "noted", "taker", "holder", "maker")
                if getattr(host, name) in names
            }
            if change:
                world = world.on(role, **change)
        if "T0" in names and world.target.criu == WORKING and not world.target.asked:
            world = world.on("target", criu=FAILED)  # it waited for the name of its images
        return world

    def marked(self, name: str) -> World:
        return self._replace(marks=self.marks | {name})

    def runs(self, role: str) -> World:
        """The tree goes on, here."""
        host = self.host(role)
        if role == "source":
            # held before, so what the target has is out of date from now on
            return self.on(role, tree=RUNS, ran=True, stop_queued=False)
        world = self.on(role, tree=RUNS, ran=True)
        if host.ran:
            return world._replace(broken="the target started it a second time")
        if self.source.ran:
            return world._replace(broken="the target runs what is out of date")
        return world


def check(world: World) -> str:
    """What does not hold in this world; "" when all does."""
    if world.broken:
        return world.broken
    if world.target.tree == RUNS and world.source.tree not in (DEAD, NONE):
        return "two copies can run"
    return "" if all(map(in_order, (world.source, world.target))) else "a journal is out of order"


def in_order(host: Host) -> bool:
    """Whether the product's table lets each record follow the one before; the hook's ABORT may come a second time."""
    last: Record | None = None
    for number, record in enumerate(host.records):
        if record is Record.ABORT and Record.ABORT in host.records[:number]:
            continue
        if record not in journal.MAY_FOLLOW[host.role][last]:
            return False
        last = record
    return True


# --- criu and the hooks ----------------------------------------------------------------------------------------------

_HOOK = {"source": ("post-dump", Record.COMMIT), "target": ("post-restore", Record.RESUMING)}


@functools.cache
def script_says(role: str, records: tuple[Record, ...], torn: bool, text: str) -> tuple[str, bool, bool]:
    """(go or veto, whether it appends ABORT, whether it syncs the journal after that): the product's script, its agent
    dead, on such a journal."""
    action, _ = _HOOK[role]
    lines = "".join(
        json.dumps({"record": record.value, "time": 1.5}, separators=(",", ":")) + "\n" for record in records
    )
    lines += '{"record":"COM' if torn else ""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for fifo in ("held", "verdict"):
            os.mkfifo(directory / fifo)
        (directory / "journal").write_text(lines)
        script = directory / "hold"
        script.write_text(text.replace("DIRECTORY", name))
        sync = directory / "sync"
        sync.write_text('#!/bin/sh\n[ "$1" = journal ] && cat journal >synced\n')
        sync.chmod(0o700)
        path = f"{name}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "CRTOOLS_SCRIPT_ACTION": action}
        status = subprocess.run(["sh", str(script)], env=environment, timeout=60).returncode
        after = (directory / "journal").read_text()
        synced = (directory / "synced").exists() and (directory / "synced").read_text() == after
    return ("go" if status == 0 else "veto"), '"ABORT"' in after[len(lines) :], synced


def hook_steps(world: World, role: str) -> Iterator[tuple[str, World]]:
    """What the script does next."""
    host = world.host(role)
    if host.hook == "waits":
        if host.fifo:
            yield f"{role}'s hook hears {host.fifo}", world.on(role, hook=host.fifo, fifo="")
        elif not host.holder:
            action, release = _HOOK[role]
            text = hold.script_text(Path("DIRECTORY"), action, release.value)
            answer, aborts, syncs = script_says(role, host.records, host.torn, text)
            found = ("abort, " if aborts else "") + ("sync, " if syncs else "") + answer
            yield f"{role}'s hook reads its journal: {found}", world.on(role, hook=found)
    elif host.hook.startswith("abort, "):
        rest = host.hook.removeprefix("abort, ")
        yield (
            f"{role}'s hook writes ABORT",
            world.on(role, hook=rest, records=(*host.records, Record.ABORT), torn=False),
        )
    elif host.hook.startswith("sync, "):
        rest = host.hook.removeprefix("sync, ")
        yield f"{role}'s hook syncs", world.on(role, hook=rest, safe=len(host.records))
    elif host.hook in ("go", "veto"):
        yield f"{role}'s hook ends: {host.hook}", _hook_ends(world, role, host.hook)


def _hook_ends(world: World, role: str, answer: str) -> World:
    host = world.host(role)
    held = host.criu == IN_HOOK
    world = world.on(role, hook="")
    if role == "source":
        if answer == "go":
            world = world.on(role, criu=ENDED if held else host.criu)
            return world.on(role, tree=DEAD) if host.tree in (TRACED, STOPPED) else world
        world = world.on(role, stop_queued=False, criu=FAILED if held else host.criu)
        return world.runs(role) if host.tree in (TRACED, STOPPED) else world
    if not held:
        return world
    if answer == "go":
        return world.on(role, criu=PAST, log="passed")
    return world.on(role, criu=FAILED, tree=NONE)


def criu_steps(world: World, role: str) -> Iterator[tuple[str, World]]:
    """What criu does next by itself."""
    host = world.host(role)
    if host.criu == WORKING and role == "source":
        yield "the dump is held", world.on(role, criu=IN_HOOK, hook="waits", tree=TRACED)
        if Record.ABORT in host.records or not world.agent("S0"):
            yield "the dump finds its socket closed", world.on(role, criu=FAILED)
    elif host.criu == WORKING and host.asked:
        if host.tree == BLOCKED:
            yield "the restore finds its PIDs taken", world.on(role, criu=FAILED)
        elif host.images:
            yield "the restore is held", world.on(role, criu=IN_HOOK, hook="waits", tree=TRACED, maker=host.holder)
    elif host.criu == PAST:
        yield "the restore lets the tree go", world.on(role, criu=ENDED, log="finished").runs(role)


def allowed(role: str, memory: tuple[Record, ...], record: Record) -> bool:
    """Whether the product's table lets this record follow."""
    return record in journal.MAY_FOLLOW[role][memory[-1]]
