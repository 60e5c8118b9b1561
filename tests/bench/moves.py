"""One process moved from alpha to beta: by hand, p.haul's way, or by `migrate`. Owns the two hosts of the lab and what
runs on them meanwhile; knows nothing of rows.

Downtime is the witness's own gap: the longest pause between two lines of its log, from before the move to after it. The
clocks of two virtual machines differ, so beta's lines are put on alpha's clock first; it is known to within some ms.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.live import serving
from tests.live.conftest import Started
from tests.live.lab_host import LOG, PROGRAMS, LabHost, gap, log_lines, start_lab, until, wait_for_log, whole_lines

OWN_PROGRAMS = Path(__file__).parent / "programs"
PLACE = "/root/programs"
NOISE = 4 << 20
"""Bytes of noise the witness is made of: zstd at its fastest looks back less than 1 MiB."""

CIPHER = "aes128-gcm@openssh.com"
"""What `migrate` chooses by itself, and so what everybody else gets."""

WITNESS = {
    "netns": ("--rest", "3600"),
    # an emulated CPU is a tenth of a real one, and has to run criu and ssh as well
    "vm": ("--rest", "3600", "--interval", "0.02"),
}
PAGES_A_MIB = 256
MORE_LINES = 50
"""Lines of the log that are waited for after a move: a pause that it brought about may come a little later."""
PAUSE = "/run/tick.pause"
"""Where a tiny process says how long it stood still."""


class BenchError(Exception):
    """A move failed, or the process did not arrive as it left: there is no figure then."""


@dataclasses.dataclass(frozen=True)
class Move:
    """What was seen of one move. Times in seconds; `at` has those of `migrate`'s phases, on alpha's clock."""

    downtime: float
    resumed_at: float
    report: dict[str, Any]
    at: dict[str, float]

    def between(self, first: str, second: str) -> float:
        """Seconds from the beginning of one phase to that of another."""
        return self.at[second] - self.at[first]


class Bench:
    """The two hosts."""

    def __init__(self, alpha: LabHost, beta: LabHost) -> None:
        self.alpha, self.beta = self.hosts = (alpha, beta)
        self.backend = alpha.backend
        self._started = Started(self.hosts)
        for host in self.hosts:
            host.run(f"mkdir -p {PLACE}")
            for program in (*PROGRAMS.iterdir(), *OWN_PROGRAMS.iterdir()):
                if program.is_file():
                    host.put(f"{PLACE}/{program.name}", program.read_bytes(), 0o755)
            host.run("criu check", check=False)  # the feature cache that every criu after it has
        self.beta_ahead = beta.seconds_ahead() - alpha.seconds_ahead() if self.backend == "vm" else 0.0

    @classmethod
    @contextlib.contextmanager
    def on(cls, lab: str, backend: str) -> Iterator[Bench]:
        """A lab that is up."""
        hosts = start_lab(lab, backend)
        bench = cls(*hosts)
        try:
            yield bench
        finally:
            bench._started.end()
            for host in hosts:
                host.close()

    @property
    def tracks_memory(self) -> bool:
        """Whether the kernel of the source knows which pages were written to, which pre-copy needs."""
        return self.alpha.run("criu check --feature mem_dirty_track", check=False).status == 0

    @contextlib.contextmanager
    def witness(self, mib: int, pages_a_second: int = 0) -> Iterator[int]:
        """A witness at work on alpha; by default it dirties 1 % of its memory a second, always the same pages of it.

        The same ones, because a kernel with huge pages counts 2 MiB as dirty for each byte of it that was written to.
        """
        for host in self.hosts:
            host.run(f"rm -f {LOG}")
        rate = pages_a_second or max(mib * PAGES_A_MIB // 100, 1)
        arguments = ["--mib", str(mib), "--rate", str(rate), "--hot", str(rate), "--noise", str(NOISE)]
        with self.started("python3", f"{PLACE}/witness.py", *arguments, *WITNESS[self.backend], "--log", LOG) as pid:
            wait_for_log(self.alpha, lines=20)
            self._wait_for_first_sweep()
            yield pid

    def _wait_for_first_sweep(self) -> None:
        deadline = time.monotonic() + 300
        while self._log(self.alpha, "tail -n 2")[-1][2] < 1:
            if time.monotonic() > deadline:
                raise BenchError("the witness does not come to rest")
            time.sleep(0.1)

    @contextlib.contextmanager
    def tiny(self) -> Iterator[int]:
        """A process on alpha that is as small as one can be, and knows how long it stood still."""
        with self.started("python3", "-IS", f"{PLACE}/tick.py", PAUSE) as pid:
            time.sleep(0.3)  # its start is no pause
            yield pid

    @contextlib.contextmanager
    def heap(self, kind: str, mib: int) -> Iterator[int]:
        """A process on alpha with memory of this kind, at rest."""
        ready = "/run/heap.ready"
        self.alpha.run(f"rm -f {ready}")
        with self.started("python3", f"{PLACE}/heap.py", kind, str(mib), ready) as pid:
            self.alpha.run(f"until test -e {ready}; do sleep 0.1; done")
            yield pid

    @contextlib.contextmanager
    def holder(self, processes: int, files: int) -> Iterator[int]:
        """A tree on alpha that holds so many files open, each of them in each process; beta has the same files."""
        place, ready = "/root/held", "/run/holder.ready"
        for host in self.hosts:
            host.run(f"rm -rf {place} {ready}; python3 {PLACE}/holder.py make {place} {files}")
        try:
            words = ("hold", place, str(files), str(processes), ready)
            with self.started("python3", f"{PLACE}/holder.py", *words) as pid:
                self.alpha.run(f"until test -e {ready}; do sleep 0.1; done")
                yield pid
        finally:
            for host in self.hosts:
                host.run(f"rm -rf {place} {ready}")

    @contextlib.contextmanager
    def server(self, mib: int) -> Iterator[tuple[int, str, serving.Clients]]:
        """A server on alpha with an address of its own, and clients of it on a third host."""
        serving.raise_third_host(*self.hosts)
        try:
            address = serving.add(self.alpha, serving.V4)
            words = ("python3", f"{PLACE}/echo_server.py", "--address", address, "--mib", str(mib))
            with self.started(*words) as pid:
                until(lambda: self.alpha.run("ss -Hltn sport = :7000").out != "", "the server does not listen")
                clients = serving.Clients.of(self.alpha, address, new=2)
                try:
                    yield pid, address, clients
                finally:
                    clients.end()
        finally:
            serving.delete(*self.hosts, serving.V4)
            serving.remove_third_host(*self.hosts)

    def seconds(self, command: str) -> float:
        """How long a command takes on alpha. Raises BenchError when it fails."""
        timed = f"a=$(date +%s%N); {command} >/dev/null </dev/null || exit; b=$(date +%s%N); echo $((b - a))"
        done = self.alpha.run(timed, check=False)
        if done.status != 0:
            raise BenchError(f"{command!r} ended with {done.status}: {done.out}{done.err}")
        return int(done.out) / 1e9

    @contextlib.contextmanager
    def started(self, *words: str) -> Iterator[int]:
        """A process on alpha, ended wherever it is by then."""
        pid = self._started.launch(*words)
        try:
            yield pid
        finally:
            self._started.end()

    @contextlib.contextmanager
    def watched(self, host: LabHost, *words: str) -> Iterator[list[Any]]:
        """`watch.py` on a host meanwhile; what it saw is in the list afterwards."""
        channel = host.start(shlex.join(["python3", f"{PLACE}/watch.py", *words]))
        seen: list[Any] = []
        said = bytearray()
        while not said.endswith(b"\n"):
            part = channel.recv(64)
            assert part, "watch.py ended before it began"
            said += part
        said.clear()
        try:
            yield seen
        finally:
            channel.shutdown_write()
            while part := channel.recv(1 << 20):
                said += part
            channel.close()
            seen.append(json.loads(said))

    # --- the ways of moving --------------------------------------------------------------------------------------

    def ours(self, pid: int, *options: str) -> Move:
        """`migrate`, and the witness's gap; `options` go to it."""
        began = self._lines_before()
        report, at = self.migrate(pid, "--copy-files", *options)
        return self._seen(began, report, at)

    def migrate(self, pid: int, *options: str) -> tuple[dict[str, Any], dict[str, float]]:
        """`migrate` alone: its report, and when each phase began."""
        words = shlex.join(["migrate", "--json", "--resume", "instant", *options, str(pid), "beta"])
        said = self.alpha.run(f"{words} 2>&1 | python3 -u {PLACE}/stamp.py", seconds=1800).out
        at: dict[str, float] = {}
        report: dict[str, Any] = {}
        for line in said.splitlines():
            seconds, _, text = line.partition(" ")
            event = json.loads(text) if text.startswith("{") else {}
            if event.get("event") == "phase":
                at[event["phase"]] = float(seconds)
            elif event.get("event") == "report":
                report = event
        if report.get("outcome") != "migrated":
            raise BenchError(f"migrate failed: {said}")
        return report, at

    def by_hand(self, pid: int) -> Move:
        """The usual way: dump to disk, rsync, restore."""
        began = self._lines_before()
        images = "/root/images"
        rsync = f"rsync -a -e 'ssh -c {CIPHER}'"
        self.beta.run(f"rm -rf {images}")
        self._on_alpha(
            f"rm -rf {images}; mkdir {images} && criu dump -t {pid} -D {images} -o dump.log && "
            f"{rsync} {images}/ beta:{images}/ && {rsync} {LOG} beta:{LOG} && "
            f"ssh beta criu restore -d -D {images} -o restore.log </dev/null >/dev/null 2>&1"
        )
        move = self._seen(began, {}, {})
        for host in self.hosts:
            host.run(f"rm -rf {images}")
        return move

    def haul(self, pid: int) -> Move:
        """p.haul's way (programs/haul.py)."""
        began = self._lines_before()
        self._on_alpha(f"/opt/migrate/bin/python {PLACE}/haul.py {pid} beta {LOG}")
        return self._seen(began, {}, {})

    def tiny_ours(self, pid: int) -> float:
        """Seconds for which `migrate` stops a tiny process."""
        self._paused(self.alpha, pid)
        self.migrate(pid)
        return self._paused(self.beta, pid)

    def tiny_on_one_host(self, pid: int) -> float:
        """Seconds that plain dump and restore on alpha stop a tiny process, images in its tmpfs."""
        self._paused(self.alpha, pid)
        images = "/run/floor"
        dump = f"criu dump -t {pid} -D {images} -o dump.log"
        restore = f"criu restore -d -D {images} -o restore.log"
        # a PID is free slightly after its process is gone, on a busy machine after some hundredths of a second
        again = f"until {restore}; do [ $((tries += 1)) -lt 100 ] || exit 1; sleep 0.01; done"
        self._on_alpha(f"rm -rf {images}; mkdir {images}; {dump} && {{ {again}; }} </dev/null >/dev/null 2>&1")
        self.alpha.run(f"rm -rf {images}")
        return self._paused(self.alpha, pid)

    def _paused(self, host: LabHost, pid: int) -> float:
        """The longest pause of a tiny process since it was last asked, in its own words: so it lives, on this host."""
        told = f"until test -s {PAUSE}; do kill -0 {pid} || exit 1; sleep 0.05; done"
        said = host.run(f"rm -f {PAUSE}; kill -USR1 {pid} && {told} && cat {PAUSE}")
        return float(said.out.split()[0])

    def _on_alpha(self, command: str) -> None:
        done = self.alpha.run(command, check=False, seconds=1800)
        if done.status != 0:
            raise BenchError(f"{command!r} ended with {done.status}: {done.out}{done.err}")

    # --- what the witness saw ------------------------------------------------------------------------------------

    def _log(self, host: LabHost, how: str = "cat") -> list[tuple[int, float, int, int, int]]:
        return log_lines(whole_lines(host.run(f"{how} {LOG}").out))

    def _lines_before(self) -> int:
        return int(self.alpha.run(f"wc -l <{LOG}").out)

    def _seen(self, began: int, report: dict[str, Any], at: dict[str, float]) -> Move:
        """The log after the move, checked: a figure of a process that was not moved well is no figure."""
        wait_for_log(self.beta, lines=self._lines_before() + MORE_LINES, seconds=60)
        here = len(self._log(self.alpha))
        lines = self._log(self.beta)
        lines[here:] = [(line[0], line[1] - self.beta_ahead, *line[2:]) for line in lines[here:]]
        if [line[0] for line in lines] != list(range(len(lines))) or any(line[3] or line[4] for line in lines):
            raise BenchError("the process did not arrive as it left")
        return Move(gap(lines[max(began - 1, 0) :]), lines[here][1], report, at)
