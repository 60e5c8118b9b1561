"""The command line with a scripted engine in place of the real one, as a program of its own.

    python fake_engine.py SCENARIO [arguments of migrate]

For what only a real process can show: signals, exit statuses, terminals, readers that go away. Each scenario prints
nothing itself; what it does to the "process" is written to the file that FAKE_ENGINE_JOURNAL names, one word a line.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from agent import protocol
from migrator import cli, config, errors, hosts, logbook, migration, plan, recovery
from migrator.obstacle import Obstacle
from migrator.phases import Observer, Phase, Report, Round

MIB = 1024 * 1024
ROUNDS = (
    Round(267_387, 1044 * MIB, 1045 * MIB, 2.53, 0.021),
    Round(9_728, 38 * MIB, 38 * MIB, 0.12, 0.008),
    Round(282, 282 * 4096, 290 * 4096, 0.05, 0.05),
)
PACE = float(os.environ.get("FAKE_ENGINE_PACE", "0.003"))
"""Seconds between two steps."""
WAIT = 0.5
"""Seconds in the phase that a scenario `wait-PHASE` names: time for a signal to come."""


def obstacles() -> tuple[Obstacle, ...]:
    """Two that stop, one that does not, and a path with bytes that are no text."""
    return (
        Obstacle("pid-taken", "db2", "4711", "in use by sshd", "stop it there, or wait", True),
        Obstacle("file-missing", "db2", "/srv/a\udcff\x1b[31m\nb", "not there", "--copy-files brings it", True),
        Obstacle("criu-older", "db2", "6.1", "older than the source's 6.12", "try it, but test first", False),
    )


def journal(word: str) -> None:
    """Note what was done, for the test to read."""
    path = os.environ.get("FAKE_ENGINE_JOURNAL")
    if path:
        with Path(path).open("a") as file:
            file.write(word + "\n")


def report_of(pid: int, rounds: tuple[Round, ...], leftovers: tuple[str, ...] = ()) -> Report:
    """The report of a migration that arrived."""
    return Report(
        id="20260704-031500-a1b2c3",
        outcome="migrated",
        pid=pid,
        target_pid=pid,
        source="db1",
        target="db2",
        rounds=rounds,
        downtime_seconds=0.1123,
        freeze_seconds=0.05,
        restore_seconds=0.031,
        total_seconds=3.4,
        bytes=sum(done.bytes for done in rounds),
        wire_bytes=sum(done.wire_bytes for done in rounds) // 3,
        leftovers=leftovers,
    )


class Engine:
    """One scripted migration."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario

    async def migrate(self, order: hosts.Order, observer: Observer) -> Report:
        """All phases in their order; what the scenario names goes wrong on the way."""
        try:
            await self._forth(order, observer)
        except asyncio.CancelledError:
            journal("undo")
            for _ in range(20):
                await asyncio.sleep(PACE)
            journal("undone")
            raise
        leftovers = ("db1: /run/migrate/x could not be removed",) if self.scenario == "leftovers" else ()
        report = report_of(order.pid, ROUNDS, leftovers)
        observer.report(report)
        return report

    async def _forth(self, order: hosts.Order, observer: Observer) -> None:
        observer.started("20260704-031500-a1b2c3")
        await self._phase(Phase.CONNECT, observer)
        if self.scenario == "host-key":
            raise errors.HostKeyError("db2: unknown host key", hint="ssh-keyscan db2 >> ~/.ssh/known_hosts")
        await self._phase(Phase.PREFLIGHT, observer)
        observer.note("db2: kernel 6.12, criu 4.1.1, 14 files, 3 libraries, pid free")
        await asyncio.sleep(PACE)
        if self.scenario == "obstacles":
            raise errors.PreflightError("pid 4711 cannot be moved to db2: 2 obstacles", obstacles=obstacles())
        await self._phase(Phase.PRECOPY, observer)
        observer.detail("criu pre-dump --tree 4711 --track-mem --images-dir /run/migrate/x/1")
        for number, done in enumerate(ROUNDS[:-1], 1):
            await self._round(number, done, False, observer)
        if self.scenario == "bug":
            raise RuntimeError("a bug\nof two lines")
        if self.scenario == "dump-fails":
            raise errors.DumpError(
                "db1: criu dump: can't dump a task\nthat is traced", log="/var/lib/migrate/x/dump.log"
            )
        await self._phase(Phase.FREEZE, observer)
        await self._round(len(ROUNDS), ROUNDS[-1], True, observer)
        await self._phase(Phase.RESTORE, observer)
        await self._phase(Phase.COMMIT, observer)
        if self.scenario == "in-doubt":
            raise errors.InDoubt("db2: contact lost at RESUME", hint="migrate recover 20260704-031500-a1b2c3")
        await self._phase(Phase.RESUME, observer)
        await self._phase(Phase.FILL, observer)
        await self._phase(Phase.CLEAN, observer)

    async def _phase(self, phase: Phase, observer: Observer) -> None:
        await observer.phase(phase)
        journal(phase.value)
        if self.scenario == f"wait-{phase.value}":
            await asyncio.sleep(WAIT)
        await asyncio.sleep(PACE)

    async def _round(self, number: int, done: Round, final: bool, observer: Observer) -> None:
        observer.round_started(number, done.bytes, final)
        steps = 20 if number == 1 else 3
        for step in range(1, steps + 1):
            await asyncio.sleep(PACE)
            observer.transferred(done.wire_bytes * step // steps)
        observer.round_done(number, done, final)

    async def check(self, order: hosts.Order, observer: Observer) -> tuple[plan.Plan, tuple[Obstacle, ...]]:
        """Preflight alone."""
        await self._phase(Phase.CONNECT, observer)
        await self._phase(Phase.PREFLIGHT, observer)
        if self.scenario == "no-process":
            raise errors.NoProcess(f"db1: there is no process {order.pid}")
        chosen = plan.Plan(
            tree=protocol.TreeFacts(order.pid, (), (), (), 0), precopy=True, criu=protocol.CriuOptions(),
            copy_files=(), memory=0, on_disk=False, notes=("moved as a shell job",),
        )  # fmt: skip
        found = obstacles()
        return chosen, found if self.scenario == "obstacles" else found[2:]

    async def recover(
        self,
        migration: str,
        hosts: recovery.Hosts,
        observer: Observer,
        *,
        undo_only: bool = False,
        word: protocol.Word = protocol.Word.NONE,
    ) -> recovery.Outcome:
        """As if the process had run on."""
        observer.note(f"asking {vars(hosts)['_other'] or 'the target'}")
        if self.scenario == "no-journal":
            raise errors.PreflightError(f"db1 has no journal of a migration {migration} from here")
        if self.scenario == "wait-recover":
            journal("recover")
            await asyncio.sleep(WAIT)
        return recovery.Outcome(recovery.Course.UNDO, "undone: the process runs on the source", "db1", 4711)

    async def unfinished(self, hosts: recovery.Hosts) -> tuple[protocol.Listed, ...]:
        """One."""
        return (protocol.Listed("20260704-031500-a1b2c3", "source", "db2", 4711, ("BEGIN",), 0.0, 0.0, False),)


def install(scenario: str) -> None:
    """Put the scripted engine in the real one's place."""
    engine = Engine(scenario)
    migration.migrate = engine.migrate
    migration.check = engine.check
    recovery.recover_over = engine.recover
    recovery.unfinished = engine.unfinished
    logbook.JOURNAL, logbook.SYSLOG = os.environ.get("FAKE_ENGINE_JOURNALD", ""), ""
    config.files = lambda: tuple(os.environ.get("FAKE_ENGINE_CONFIG", "").split())


if __name__ == "__main__":
    install(sys.argv[1])
    sys.exit(cli.main(sys.argv[2:]))
