"""One cell of the grid: a process on alpha, `migrate` to beta stopped at an instant, the harm, the account of it."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import time
from typing import Any

import paramiko

from migrator import errors
from tests.live.conftest import Started, settled_snapshot
from tests.live.faults import cells
from tests.live.faults.cells import Cell
from tests.live.faults.hands import ENVIRONMENT, Hand
from tests.live.faults.outside import ADDRESS, PORT, Outside, judge
from tests.live.lab_host import LabHost, difference, status_of, until

PRIVATE = {"alpha": "10.77.0.11", "beta": "10.77.0.12"}
PATIENCE = 60.0
"""Seconds for what takes one or two, times ten on an emulated machine."""
STOP_SECONDS = 5.0
HOLE_SECONDS = 25.0
"""How long the link is a black hole: longer than it takes `migrate` to notice (migrator/transport.py)."""
SIGNALS = {cells.KILL: signal.SIGKILL, cells.TERM: signal.SIGTERM, cells.STOP: signal.SIGSTOP}


class Ran:
    """`migrate` as it ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err
        self.events: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    @property
    def id(self) -> str:
        """The migration's; "" where it had none yet."""
        return next((str(event["id"]) for event in reversed(self.events) if event.get("id")), "")

    def complaint(self) -> str:
        """What is wrong with the way in which it said how it ended; "" when nothing is (README: When it fails)."""
        if self.status == cells.KILLED:
            return ""
        if "Traceback" in self.err + self.out:
            return "a traceback"
        if self.status == 71 and "migrate: no memory left" in self.err:
            return ""
        last = self.events[-1] if self.events else {}
        if last.get("event") != "report":
            return f"no report, exit {self.status}"
        outcome = {0: "migrated", 3: "migrated", 70: "not-resumed", 71: "in-doubt", 72: "memory-lost"}
        if last["outcome"] != outcome.get(self.status, "undone"):
            return f"exit {self.status}, and it says {last['outcome']}"
        if (self.status == 3) != bool(last["leftovers"]) and self.status in (0, 3):
            return f"exit {self.status}, and left over is {last['leftovers']}"
        said = [event for event in self.events if event["event"] == "error"]
        if self.status in (0, 3):
            return f"it says {said[-1]['message']!r} and ends with {self.status}" if said else ""
        if not said:
            return f"exit {self.status} without an error"
        kind = getattr(errors, said[-1]["error"], None)
        if kind is None or said[-1]["exit_code"] != self.status or not said[-1]["message"]:
            return f"exit {self.status} for {said[-1]}"
        return ""

    def explain(self) -> str:
        """All that it said."""
        return f"exit {self.status}\n{self.out}\n{self.err}"


class Runner:
    """Both hosts, a hand on each, and a place outside."""

    def __init__(self, hosts: tuple[LabHost, LabHost], name: str, backend: str) -> None:
        self._hosts = dict(zip(("alpha", "beta"), hosts))
        self._slow = hosts[0].slow
        self._outside = Outside(hosts, backend, status_of(name))
        self._hands = {host.name: Hand(host) for host in hosts}
        self._before: dict[str, dict[str, set[str]]] = {}
        self._started = Started(hosts)
        self._struck: list[int] = []
        self.log = ""
        """What may help to see why a cell failed."""

    def close(self) -> None:
        """Nothing of the grid stays on the hosts."""
        for hand in self._hands.values():
            with contextlib.suppress(AssertionError, OSError):
                hand.ask("heal")
            hand.close()
        self._outside.close()

    # --- a cell ------------------------------------------------------------------------------------------------------

    def run(self, cell: Cell) -> str:
        """Where the process ended, as a word of the table. Raises AssertionError where it is not as it must be."""
        self.log = ""
        if not self._before:
            self._before = {name: host.snapshot() for name, host in self._hosts.items()}
        token = secrets.token_hex(6)
        self._outside.expect(token)
        try:
            pid = self._started.launch("python3", "-B", "/root/programs/beacon.py", ADDRESS, str(PORT), token)
            assert self._alive(1), "the process does not start"
            ran = self._sabotaged(cell, pid, token)
            self.log += ran.explain()
            place = self._settled(cell, ran, token)
            self._end()
            self._nothing_behind()
            return place
        except BaseException:
            self._end()
            for hand in self._hands.values():
                hand.ask("clear")
            self._before = {}
            raise

    def _end(self) -> None:
        for hand in self._hands.values():
            hand.ask("hold", name="")
            hand.ask("heal")
        self._started.end()

    def _sabotaged(self, cell: Cell, pid: int, token: str) -> Ran:
        options = ""
        if cell.fault in (cells.DAMAGED, cells.CUT):
            how = "flip" if cell.fault == cells.DAMAGED else "cut"
            stream, _, after = cells.STREAMS[cell.victim].partition(":")
            options = f"--damage {stream}:{how}:{after}"
        self._hold_first(cell)
        command = f"env {ENVIRONMENT} /opt/migrate/bin/python -B /root/programs/steered.py {options}"
        channel = self._hosts["alpha"].start(f"exec {command} -- --json {pid} beta")
        with self._at(cell, channel, pid, token):
            undo = self._harm(cell)
        for act in undo:
            act()
        return self._ended(channel)

    def _hold_first(self, cell: Cell) -> None:
        """Order the first stop on the way to the cell's instant."""
        first = {"dump": "freeze", "restoring": "restore"}.get(cell.instant, cell.instant)
        self._hands[cells.INSTANT[first].host].hold(cells.INSTANT[first].at)

    @contextlib.contextmanager
    def _at(self, cell: Cell, channel: paramiko.Channel, pid: int, token: str) -> Any:
        """Within it everything stands at the cell's instant."""
        alpha, beta = self._hands["alpha"], self._hands["beta"]
        hand, stopped = alpha, []
        if cell.instant == "dump":
            self._come("freeze", channel)
            stopped = alpha.ask("victims", what="migrate")
            alpha.ask("signal", pids=stopped, number=signal.SIGSTOP)
            alpha.hold("dump")  # lets go of who stands at `freeze`
            self._come("dump", channel)
            self._half_way(token)
        elif cell.instant == "restoring":
            self._come("restore", channel)
            hand, stopped = beta, beta.ask("victims", what="pager")
            beta.ask("signal", pids=stopped, number=signal.SIGSTOP)
            beta.ask("go")
            until(lambda: bool(beta.ask("stands", pid=pid)), "criu is not half-way", self._patience)
        else:
            self._come(cell.instant, channel)
        yield
        if stopped and cell.fault != cells.STOP:
            hand.ask("signal", pids=stopped, number=signal.SIGCONT)
        for each in self._hands.values():
            each.ask("go")
        if cell.fault == cells.STOP:
            time.sleep(STOP_SECONDS)
            for each, pids in ((hand, stopped), (self._hands[cells.VICTIMS[cell.victim].host], self._struck)):
                each.ask("signal", pids=pids, number=signal.SIGCONT)

    def _half_way(self, token: str) -> None:
        """Until criu has the tree, and waits for somebody to take its pages."""
        seen = [0]

        def waits() -> bool:
            seen.append(self._hands["alpha"].ask("frozen", token=token))
            return bool(seen[-1]) and seen[-1] == seen[-2]

        until(waits, "criu is not half-way", self._patience)

    def _come(self, instant: str, channel: paramiko.Channel) -> None:
        where = cells.INSTANT[instant]
        if not self._hands[where.host].held(self._patience):
            self.log += self._ended(channel, seconds=5).explain()
            raise AssertionError(f"nobody comes to {instant}")

    @property
    def _patience(self) -> float:
        return PATIENCE * self._slow

    def _victims(self, cell: Cell) -> tuple[Hand, list[int]]:
        victim = cells.VICTIMS[cell.victim]
        hand = self._hands[victim.host]
        found: list[int] = []

        def there() -> bool:
            found[:] = hand.ask("victims", what=victim.kind)
            return bool(found)

        until(there, f"there is no {cell.victim}", self._patience)
        return hand, found

    def _harm(self, cell: Cell) -> list[Any]:
        """Do it; what has to be done about it afterwards."""
        if cell.fault in SIGNALS:
            hand, self._struck = self._victims(cell)
            hand.ask("signal", pids=self._struck, number=SIGNALS[cell.fault])
        elif cell.fault == cells.LIMIT:
            hand, pids = self._victims(cell)
            hand.ask("limit", pids=pids)
        elif cell.fault == cells.DROP:
            assert self._hands["beta"].ask("cut", peer=PRIVATE["alpha"]), "there is no connection to drop"
        elif cell.fault == cells.HOLE:
            beta = self._hands["beta"]
            beta.ask("black_hole", peer=PRIVATE["alpha"])
            return [lambda: time.sleep(HOLE_SECONDS), lambda: beta.ask("heal")]
        elif cell.fault == cells.TMPFS:
            self._hands["beta"].ask("fill", directory="/run/migrate/2*-*")
        elif cell.fault == cells.DISK:
            host = {"source": "alpha", "target": "beta"}[cell.victim]
            self._hands[host].ask("fill", directory="/var/lib")
        elif cell.fault == cells.CLOCK:
            host = {"source": "alpha", "target": "beta"}[cell.victim]
            self._hands[host].ask("step", seconds=86400.0)
            return [lambda: self._hands[host].ask("step", seconds=-86400.0)]
        elif cell.fault == cells.REBOOT:
            # here, where everybody stands: before the other host goes on, as a power cut at this instant is
            self._reboot({"source": "alpha", "target": "beta"}[cell.victim])
        return []

    def _ended(self, channel: paramiko.Channel, seconds: float = 0) -> Ran:
        """Read `migrate` to its end."""
        out, err = bytearray(), bytearray()
        deadline = time.monotonic() + (seconds or 4 * self._patience)
        while not (channel.exit_status_ready() and channel.eof_received) and not channel.closed:
            assert time.monotonic() < deadline, f"migrate does not end:\n{out.decode()}\n{err.decode()}"
            while channel.recv_ready():
                out += channel.recv(1 << 20)
            while channel.recv_stderr_ready():
                err += channel.recv_stderr(1 << 20)
            time.sleep(0.01)
        while data := channel.recv(1 << 20):
            out += data
        while data := channel.recv_stderr(1 << 20):
            err += data
        status = channel.recv_exit_status() if channel.exit_status_ready() else cells.KILLED
        return Ran(status, out.decode(errors="replace"), err.decode(errors="replace"))

    # --- afterwards --------------------------------------------------------------------------------------------------

    def _settled(self, cell: Cell, ran: Ran, token: str) -> str:
        """Recover if needed, and look where the process is: one copy, its memory right, everything finished."""
        recovered = self._recover_if_needed(ran)
        assert not self._unfinished(), f"unfinished: {self._unfinished()}, {recovered}"
        places = {name: hand.ask("copies", token=token) for name, hand in self._hands.items()}
        self.log += f"\n{places}\n{recovered}\n"
        count = sum(map(len, places.values()))
        if not count:
            place = cells.HOST_LOST if cell.fault == cells.REBOOT else cells.CRIU_LOST
            assert place in cell.places, "the process is nowhere"
            return place
        assert count == 2 and not all(places.values()), f"not one copy of it: {places}"
        place = cells.SOURCE if places["alpha"] else cells.TARGET
        seen = len(self._outside.signs)
        assert self._alive(2, since=seen), f"it does not go on: {places}"
        wrong = judge(self._outside.signs, int(place == cells.TARGET))
        assert not wrong, wrong
        assert place in cell.places, f"it is on the {place}"
        complaint = ran.complaint()
        assert not complaint, complaint
        assert ran.status in cell.codes, f"exit {ran.status} instead of {sorted(cell.codes)}"
        if ran.status not in (cells.KILLED, 0, 3, 70, 71):
            assert place == cells.SOURCE, f"exit {ran.status}, and it is on the {place}"
        return place

    def _recover_if_needed(self, ran: Ran) -> str:
        """What `migrate recover` said, where the migration was not finished when both hosts had settled."""
        left = ran.status in (cells.KILLED, 70, 71)
        waited = ("alpha",) if left else ("alpha", "beta")
        with contextlib.suppress(AssertionError):
            until(lambda: not self._agents(*waited), "", 30 * self._slow if not left else self._patience)
        unfinished = self._unfinished()
        if not unfinished:
            return ""
        name = next(migration for host in unfinished.values() for migration in host)
        said = self._hosts["alpha"].run(f"migrate recover --json {name}", check=False, seconds=5 * self._patience)
        told = f"recover {name}: {said.status}\n{said.out}\n{said.err}"
        assert said.status == 0, told
        until(lambda: not self._agents("alpha", "beta"), f"agents stay: {told}", self._patience)
        return told

    def _agents(self, *names: str) -> bool:
        return any(self._hands[name].ask("victims", what="agent") for name in names)

    def _unfinished(self) -> dict[str, dict[str, str]]:
        found = {name: hand.ask("unfinished") for name, hand in self._hands.items()}
        return {name: migrations for name, migrations in found.items() if migrations}

    def _alive(self, sweeps: int, since: int = 0) -> bool:
        """Whether it looks at all of its memory so many times more, from the sign with this number on."""
        signs = self._outside.signs

        def enough(_: object) -> bool:
            return len(signs) > since and signs[-1].sweeps >= signs[since].sweeps + sweeps

        return self._outside.wait(enough, self._patience)

    def _nothing_behind(self) -> None:
        before = self._before
        after = {name: settled_snapshot(host, before[name]) for name, host in self._hosts.items()}
        changes = {name: difference(before[name], after[name]) for name in after}
        assert not any(changes.values()), f"left behind: {changes}"
        self._before = after

    # --- machines ----------------------------------------------------------------------------------------------------

    def _reboot(self, name: str) -> None:
        """Off and on again, at once and without a word to anybody."""
        host = self._hosts[name]
        boot = host.read("/proc/sys/kernel/random/boot_id")
        host.start("echo b >/proc/sysrq-trigger")
        # to connect anew ends the hand's session, and who stands there would go on if the host were not down yet
        time.sleep(2 * self._slow)
        deadline = time.monotonic() + self._patience

        def is_back() -> bool:
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException, AssertionError, TimeoutError):
                host.reconnect()
                return host.read("/proc/sys/kernel/random/boot_id") != boot
            return False

        until(is_back, f"{name} does not come back", deadline - time.monotonic())
        self._hands[name] = Hand(host)
        self._outside.join(host)


def versions(host: LabHost) -> str:
    """What decides on a host."""
    seen = host.versions()
    return f"{seen['kernel']}, criu {seen['criu']}, Python {seen['python']}"
