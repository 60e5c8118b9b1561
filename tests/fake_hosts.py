"""Two hosts on this machine: the real agents, each with directories and a fake criu of its own, and links that break.

Needs no root. What is not two here: the kernel, its PIDs, and /tmp; so a "restored" process has another PID than the
original (see `fake_criu`), and a migration's plan is made by `plan_of` instead of by preflight's rules.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import ctypes
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from agent import process
from agent.protocol import STREAM_HEADER
from migrator import bundle, errors
from migrator.channel import CHUNK, Channel, Tail
from migrator.local import _Errors, _Pipe
from tests import fake_criu, fake_rsync
from tests.fork_server import ForkServer

PATIENCE = 10.0
"""Seconds for what must happen soon."""


def eventually(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait for a condition of the machine (not of this event loop)."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.002)


async def soon(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """`eventually`, letting the event loop run meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never came: {what}"
        await asyncio.sleep(0.002)


def state_of(pid: int) -> str:
    """Letter of /proc/PID/stat; "" when it is gone."""
    try:
        return process.read_stat(pid).state
    except process.NoSuchProcess:
        return ""


_VICTIM = """
import ctypes, os, sys, time
late = sys.argv[2].replace(".log", ".fork")
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_long(-1), 0, 0, 0)  # PR_SET_PTRACER: whoever likes may be the fake criu
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        break
with open(sys.argv[2], "a") as log:
    root = os.getpid() == os.getsid(0)
    while True:
        if root and os.path.exists(late):
            os.unlink(late)
            root = os.fork() != 0
        log.write("%d\\n" % os.getpid())
        log.flush()
        time.sleep(0.005)
"""


class Victim:
    """The tree to be migrated: each task of it writes its PID into `log` every few ms, for as long as it runs."""

    def __init__(self, directory: Path, children: int = 0) -> None:
        self.log = directory / "victim.log"
        self.log.touch()
        command = [os.path.realpath(sys.executable), "-IS", "-c", _VICTIM, str(children), str(self.log)]
        self._process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
        self.pid = self._process.pid
        eventually(lambda: len(self.written()) == children + 1, "the victim runs")
        self.adopt(process.tree_pids(self.pid))

    def adopt(self, pids: list[int]) -> None:
        """These are its tasks now: the root makes one more child when there is a file `victim.fork` beside its log."""
        self.pids = pids
        self._starts = {pid: process.start_time(pid) for pid in pids}

    def written(self) -> set[int]:
        """The tasks that have written."""
        return set(map(int, self.log.read_text().split()))

    @property
    def living(self) -> list[int]:
        """Tasks that may run, now or later: not the dead, nor zombies, nor those that the kernel is taking apart."""
        return [pid for pid in self.pids if not process.never_runs_again(pid, self._starts[pid])]

    @property
    def runs(self) -> bool:
        """Whether every task of it goes on: none is stopped, traced, or merely alive."""
        self.log.write_text("")  # opened for appending, so it goes on at the start
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            if self.written() >= set(self.pids):
                return True
            time.sleep(0.005)
        return False

    def seen_by_its_parent(self) -> object:
        """A stop or a continue of the root that its parent, which we are, could wait for; None when there was none."""
        return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG | os.WNOWAIT)

    def close(self) -> None:
        """Make an end of it, also when it is stopped."""
        for pid in self.living:
            os.kill(pid, signal.SIGKILL)
        self._process.wait()


@dataclasses.dataclass(frozen=True)
class Call:
    """One run of the fake criu."""

    command: str
    pid: int
    start: int
    argv: tuple[str, ...]

    @property
    def alive(self) -> bool:
        """Whether it is still at work."""
        return process.alive(self.pid, self.start)


class FakeHost:
    """One host: directories, a criu, and what is going on in it."""

    def __init__(self, directory: Path, name: str, fork_server: ForkServer) -> None:
        self.name = name
        self.fork_server = fork_server
        self.directory = directory / name
        self.directory.mkdir()
        self.state = self.directory / "state"
        self.run = self.directory / "run"
        self.criu = fake_criu.install(str(self.directory))
        self.rsync = fake_rsync.install(str(self.directory))
        self.agents: list[tuple[int, int]] = []
        self.deaths: list[tuple[str, str] | None] = []
        """At which decision the next agents are to die: ("before", "COMMIT"), ("after", "HELD"), or None for never."""
        self.constants: dict[str, float] = {}
        """Module constants of the next agents: {"agent.server.SILENCE": 0.5}."""
        self.starts_no_agent = False

    @property
    def agent_arguments(self) -> tuple[str, ...]:
        """For `serve`."""
        return ("--state", str(self.state), "--run", str(self.run), "--criu", self.criu, "--rsync", self.rsync)

    def behave(self, **commands: str | list[str]) -> None:
        """How its criu is to behave; `pre_dump` is pre-dump. See `fake_criu`."""
        wanted = {name.replace("_", "-"): wish for name, wish in commands.items()}
        (self.directory / "behaviour.json").write_text(json.dumps(wanted))

    def calls(self, command: str = "") -> list[Call]:
        """Runs of its criu, oldest first."""
        try:
            lines = (self.directory / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        calls = [Call(*ast.literal_eval(line)) for line in lines]
        return [call for call in calls if command in ("", call.command)]

    def kill_criu(self, command: str) -> None:
        """SIGKILL the newest run of this command, and see it dead."""
        call = self.calls(command)[-1]
        assert call.alive, f"criu {command} has ended already"
        os.kill(call.pid, signal.SIGKILL)
        eventually(lambda: not call.alive, f"criu {command} dies")

    def kill_agent(self) -> None:
        """SIGKILL the newest agent, and see it dead."""
        pid, start = self.agents[-1]
        assert process.alive(pid, start), "the agent is dead already"
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not process.alive(pid, start), "the agent dies")

    def restored(self) -> list[int]:
        """Processes that were restored here and live."""
        try:
            lines = (self.directory / "restored").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = [(int(pid), int(start)) for pid, start in map(str.split, lines)]
        return [pid for pid, start in found if process.alive(pid, start)]

    def ever_ran(self) -> set[int]:
        """Restored processes that ever ran, dead ones too."""
        try:
            return set(map(int, (self.directory / "ran").read_text().split()))
        except FileNotFoundError:
            return set()

    def running(self) -> list[int]:
        """Restored processes that live and go on."""
        living = self.restored()
        if not living:
            return []
        (self.directory / "ran").write_text("")
        end = time.monotonic() + 0.5
        while time.monotonic() < end and not self.ever_ran() >= set(living):
            time.sleep(0.005)
        return [pid for pid in living if pid in self.ever_ran()]

    def journal(self, migration: str) -> list[str]:
        """Decisions in its journal of a migration, oldest first; none when there is no journal."""
        try:
            lines = (self.state / migration / "journal").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [name for name in (json.loads(line)["record"] for line in lines) if name.isupper()]

    def wait_for_record(self, migration: str, record: str) -> None:
        """Until its journal says so."""
        eventually(lambda: record in self.journal(migration), f"{record} on {self.name}")

    def left_behind(self) -> list[str]:
        """What should not be there any more when a migration is over, in words."""
        found = [f"{call.command} {call.pid} lives" for call in self.calls() if call.alive]
        found += [f"agent {pid} lives" for pid, start in self.agents if process.alive(pid, start)]
        if self.run.exists():
            found += [f"{path} is there" for path in self.run.rglob("*")]
        for path in self.state.glob("*/*") if self.state.exists() else ():
            if path.name not in ("journal", "ledger") and path.suffix != ".log":
                found.append(f"{path} is there")
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found += [f"mounted: {line}" for line in mounts if str(self.directory) in line]
        return found

    def settle_down(self, seconds: float = 5.0) -> list[str]:
        """`left_behind`, after giving agents that were told to leave the time for it."""
        end = time.monotonic() + seconds
        while (left := self.left_behind()) and time.monotonic() < end:
            time.sleep(0.01)
        return left

    def close(self) -> None:
        """End what this host has started, and forget it."""
        for pid, start in self.agents + [(call.pid, call.start) for call in self.calls()]:
            if process.alive(pid, start):
                os.kill(pid, signal.SIGKILL)
        for pid in self.restored():
            os.kill(pid, signal.SIGKILL)
        libc = ctypes.CDLL(None)
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if line.split()[1].startswith(str(self.directory)):
                libc.umount2(os.fsencode(line.split()[1]), 2)
        shutil.rmtree(self.directory, ignore_errors=True)


class Cut(Channel):
    """A channel that can be cut: from then on, both ends see nothing but the end of it."""

    def __init__(self, inner: Channel) -> None:
        super().__init__()
        self.inner = inner
        self.is_cut = False
        self._reading: asyncio.Future[bytes] | None = None

    def cut(self) -> None:
        """Break it, now."""
        self.is_cut = True
        if self._reading is not None:
            self._reading.cancel()
        self.inner._writer.transport.abort()  # type: ignore[attr-defined]

    async def _receive(self, size: int) -> bytes:
        if self.is_cut:
            raise ConnectionResetError("the link was cut")
        self._reading = asyncio.ensure_future(self.inner.read(size))
        try:
            return await self._reading
        except asyncio.CancelledError:
            if self.is_cut:
                raise ConnectionResetError("the link was cut") from None
            raise

    async def write(self, data: bytes) -> None:
        """Send, unless it was cut."""
        if self.is_cut:
            raise ConnectionResetError("the link was cut")
        await self.inner.write(data)

    async def write_eof(self) -> None:
        """End our direction."""
        if not self.is_cut:
            await self.inner.write_eof()

    async def close(self) -> None:
        """Close it, if it is whole."""
        if not self.is_cut:
            await self.inner.close()

    async def wait(self) -> int | None:
        """The far end's exit status."""
        return await self.inner.wait()

    def stderr_tail(self) -> str:
        """What the far end said."""
        return self.inner.stderr_tail()


class AgentChannel(_Pipe):
    """Standard input and output of an agent that the fork server has started."""

    def __init__(
        self,
        pid: int,
        ends: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        pipes: Sequence[asyncio.BaseTransport],
        tail: Tail,
    ) -> None:
        super().__init__(*ends)
        self.pid = pid
        self.started = process.start_time(pid)
        self._pipes = pipes
        self._tail = tail

    @classmethod
    async def start(cls, host: FakeHost) -> AgentChannel:
        """A new agent on this host."""
        die = host.deaths.pop(0) if host.deaths else None
        theirs, ours = [-1, -1, -1], [-1, -1, -1]
        theirs[0], ours[0] = os.pipe()
        for number in (1, 2):
            ours[number], theirs[number] = os.pipe()
        arguments = ["serve", "--build", bundle.build_id(), *host.agent_arguments]
        pid = host.fork_server.start(arguments, theirs, die, host.constants)
        for descriptor in theirs:
            os.close(descriptor)
        loop = asyncio.get_running_loop()
        tail = Tail(host.name)
        reader = asyncio.StreamReader(limit=CHUNK)
        output, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours[1], "rb", 0)
        )
        said, _ = await loop.connect_read_pipe(lambda: _Errors(tail), os.fdopen(ours[2], "rb", 0))
        flow = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        given, _ = await loop.connect_write_pipe(lambda: flow, os.fdopen(ours[0], "wb", 0))
        writer = asyncio.StreamWriter(given, flow, None, loop)
        return cls(pid, (reader, writer), (given, output, said), tail)

    async def wait(self) -> int | None:
        """Until it has gone."""
        while process.alive(self.pid, self.started):
            await asyncio.sleep(0.002)
        return None

    async def close(self) -> None:
        """End its input, and give it time to leave."""
        self._writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await self.wait()
        for pipe in self._pipes:
            pipe.close()

    def stderr_tail(self) -> str:
        """The last that it wrote to its stderr."""
        return self._tail.text()


class HostLink:
    """A link to a fake host that can be cut."""

    def __init__(self, host: FakeHost) -> None:
        self.name = host.name
        self._host = host
        self._channels: list[Cut] = []
        self.is_cut = False

    def cut(self) -> None:
        """All channels at once, as when a connection drops."""
        self.is_cut = True
        for channel in self._channels:
            channel.cut()

    async def start_agent(self, role: str) -> Channel:
        """A real agent with this host's directories."""
        if self._host.starts_no_agent:
            raise errors.ConnectError(f"{self.name}: the {role} agent could not be started")
        self._refuse()
        channel = await AgentChannel.start(self._host)
        self._host.agents.append((channel.pid, channel.started))
        return self._keep(channel)

    async def open_stream(self, socket: str, name: str, form: str = "plain") -> Channel:
        """A bulk stream, straight to the agent's socket."""
        assert form == "plain", "there is no relay here that could unpack"
        self._refuse()
        reader, writer = await asyncio.open_unix_connection(socket, limit=CHUNK)
        channel = _Pipe(reader, writer)
        await channel.write(f"{STREAM_HEADER} {name}\n".encode())
        return self._keep(channel)

    def _refuse(self) -> None:
        if self.is_cut:
            raise errors.LinkLost(f"{self.name}: the link was cut")

    def _keep(self, channel: Channel) -> Channel:
        self._channels.append(Cut(channel))
        return self._channels[-1]

    async def close(self) -> None:
        """Give it up."""
        for channel in self._channels:
            await channel.close()


class FakeLinks:
    """How a migration reaches the two hosts; a host in `unreachable` can't be reached (again)."""

    def __init__(self, source: FakeHost, target: FakeHost) -> None:
        self.hosts = {"source": source, "target": target}
        self.made: dict[str, list[HostLink]] = {"source": [], "target": []}
        self.unreachable: set[str] = set()
        self.at = "source"
        """Where operators' commands are run."""

    def _link(self, role: str) -> HostLink:
        if role in self.unreachable:
            raise errors.Refused(f"{self.hosts[role].name}: connection refused")
        self.made[role].append(HostLink(self.hosts[role]))
        return self.made[role][-1]

    async def source(self) -> HostLink:
        """The host of the process."""
        return self._link("source")

    async def target(self) -> HostLink:
        """The host to move to."""
        return self._link("target")

    async def here(self) -> HostLink:
        """The host that an operator's command is run on."""
        return self._link(self.at)

    async def there(self, peer: str, address: str = "") -> HostLink:
        """The other one, by the name that the journal here has."""
        other = "target" if self.at == "source" else "source"
        assert peer in ("", "beta" if other == "target" else socket.gethostname())
        return self._link(other)

    async def answers(self, peer: str, address: str) -> str:
        """Whether the other one is up."""
        other = "target" if self.at == "source" else "source"
        return "" if other in self.unreachable else f"{peer} lets us in"

    def by_hand(self, peer: str, command: str) -> str:
        """As `reaching.RealHosts`."""
        return f"ssh -t {peer} {command}"

    def cut(self, role: str) -> None:
        """The connection drops."""
        self.made[role][-1].cut()

    def lose_all(self) -> None:
        """Every connection drops, and none can be made again until `unreachable` is emptied."""
        for role, links in self.made.items():
            self.unreachable.add(role)
            for link in links:
                link.cut()


class Pair:
    """Two fake hosts, one of which has a victim."""

    def __init__(self, fork_server: ForkServer) -> None:
        # a unix socket's path is short, so pytest's tmp_path is too long for it
        self.directory = Path(tempfile.mkdtemp(prefix="m-"))
        self.source = FakeHost(self.directory, "alpha", fork_server)
        self.target = FakeHost(self.directory, "beta", fork_server)
        self.links = FakeLinks(self.source, self.target)
        self._victims: list[Victim] = []

    def victim(self, children: int = 0) -> Victim:
        """A process tree on the source."""
        self._victims.append(Victim(self.directory, children))
        return self._victims[-1]

    def close(self) -> None:
        """End everything."""
        for victim in self._victims:
            victim.close()
        self.source.close()
        self.target.close()
        shutil.rmtree(self.directory, ignore_errors=True)
