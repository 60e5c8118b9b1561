"""Typed stub of one agent: a method a command, by the protocol's table; faults become errors of ours.

It speaks over any channel that `transport` gives it, and knows neither SSH nor the order of a migration.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TypeVar

from agent import protocol, wire
from agent.protocol import FaultCode
from migrator import errors
from migrator.channel import Channel

T = TypeVar("T")


LONGEST = 4000
"""Characters of what an agent says of its fault, of which it has no need of more."""


class PeerLost(Exception):
    """The agent is gone, or what it says is not understood. Where the process is depends on when."""

    def __init__(self, host: str, message: str) -> None:
        super().__init__(f"{host}: {message}")
        self.host = host


class PeerFault(Exception):
    """The agent could not do what it was asked."""

    def __init__(self, host: str, command: str, fault: protocol.Fault) -> None:
        super().__init__(f"{command} on {host}: {fault.message[:LONGEST]}")
        self.host = host
        self.command = command
        self.fault = dataclasses.replace(
            fault, message=fault.message[:LONGEST], hint=fault.hint[:LONGEST], log=fault.log[:LONGEST]
        )


_ERRORS: dict[FaultCode, type[errors.MigrateError]] = {
    FaultCode.NO_PROCESS: errors.NoProcess,
    FaultCode.NOT_ROOT: errors.NotRoot,
    FaultCode.LOCKED: errors.Locked,
    FaultCode.NO_SPACE: errors.NoSpace,
    FaultCode.CHANGED: errors.TreeChanged,
    FaultCode.FILES: errors.CopyError,
    FaultCode.BROKEN_STREAM: errors.LinkLost,
    FaultCode.JOURNAL: errors.CopyError,
    FaultCode.VETOED: errors.CopyError,
    FaultCode.BROKEN_ROUNDS: errors.BrokenRounds,
    FaultCode.TOO_TORN: errors.CopyError,  # not BrokenRounds: a second attempt would meet the same
    FaultCode.THROTTLE: errors.CopyError,
    FaultCode.UNIT: errors.CopyError,
    FaultCode.ICE: errors.IceError,
}
_CRIU_ERRORS: dict[str, type[errors.MigrateError]] = {
    "restore": errors.RestoreError,
    "dump": errors.DumpError,
    "pre_dump": errors.DumpError,
    "commit": errors.DumpError,
}


def error_of(fault: PeerFault) -> errors.MigrateError | None:
    """Our error for a fault before COMMIT; None for a bug, which is to be seen as one."""
    code = fault.fault.code
    if code is FaultCode.CRIU:
        kind = _CRIU_ERRORS.get(fault.command, errors.CopyError)
        log = f"{fault.fault.log} on {fault.host}" if fault.fault.log else ""
        return kind(f"criu failed on {fault.host}: {fault.fault.message}", hint=fault.fault.hint, log=log)
    if code in _ERRORS:
        return _ERRORS[code](f"{fault.host}: {fault.fault.message}", hint=fault.fault.hint)
    return None


def answering(found: protocol.TargetCheck, asked: protocol.Check, host: str) -> protocol.TargetCheck:
    """The answer, which is one to what was asked: what a target names besides, nobody here shall look for.

    Raises PeerLost.
    """
    subjects = [
        (
            [file.path for file in check.files],
            [(account.kind, account.number) for account in check.accounts],
            [(address.protocol, address.address) for address in check.addresses],
        )
        for check in (asked, found)
    ]
    if subjects[0] != subjects[1]:
        raise PeerLost(host, "its agent answers what it was not asked")
    return found


class Peer:
    """One agent at the other end of a control channel. `tell` gets what the agent writes to its log."""

    def __init__(self, host: str, channel: Channel) -> None:
        self.host = host
        self._channel = channel
        self._waiting: dict[int, asyncio.Future[wire.Reply]] = {}
        self._given_up: set[int] = set()  # a late answer to one of these is no surprise
        self._next = 0
        self._writing = asyncio.Lock()  # a channel has one writer at a time
        self._reader: asyncio.Task[None] | None = None
        self._heart: asyncio.Task[None] | None = None
        self._lost: PeerLost | None = None

    async def hello(self, build: str, seconds: float = 120.0) -> protocol.Banner:
        """Exchange banners. Raises WrongAgent when something else answers, PeerLost when nothing does."""
        ours = protocol.Banner(protocol.PRODUCT, protocol.PROTOCOL, protocol.VERSION, build)
        try:
            async with asyncio.timeout(seconds):
                await self._channel.write(ours.line().encode() + b"\n")
                line = await self._channel.readline(wire.BANNER_LIMIT)
        except TimeoutError:
            raise errors.WrongAgent(f"{self.host}: no agent answered within {seconds:.0f} s") from None
        except (OSError, ValueError) as error:
            raise errors.WrongAgent(f"{self.host}: the agent did not start: {error}") from error
        if not line:
            said = self._channel.stderr_tail().strip().splitlines()
            raise errors.WrongAgent(
                f"{self.host}: the agent did not start" + (f": {said[-1]}" if said else ""),
                hint="try `python3 -V` there; the agent needs Python 3.9 or newer",
            )
        banner = protocol.Banner.parse(line.decode(errors="replace"))
        if banner is None or banner.product != protocol.AGENT_PRODUCT:
            raise errors.WrongAgent(
                f"{self.host}: something else answered in the agent's place: {line[:60]!r}",
                hint="does the login shell there print something? it must be silent for commands",
            )
        if (banner.protocol, banner.build) != (protocol.PROTOCOL, build):
            raise errors.WrongAgent(
                f"{self.host}: its agent is protocol {banner.protocol}, build {banner.build}; "
                f"ours is protocol {protocol.PROTOCOL}, build {build}",
                hint="remove the cached agent there (~/.cache/migrate) and try again",
            )
        self._reader = asyncio.create_task(self._read())
        self._heart = asyncio.create_task(self._beat())
        return banner

    async def _beat(self) -> None:
        """An agent whose migrator fell silent gives up: the host that it ran on may be dead."""
        with contextlib.suppress(OSError):
            while True:
                await asyncio.sleep(protocol.HEARTBEAT_SECONDS)
                await self._channel.write(protocol.HEARTBEAT)

    async def _read(self) -> None:
        message = "the connection to its agent was lost"
        try:
            while True:
                line = await self._channel.readline(wire.LINE_LIMIT)
                if not line.endswith(b"\n"):
                    break
                reply = wire.decode_reply(line)
                waiting = self._waiting.pop(reply.id, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply)
                elif waiting is None and reply.id not in self._given_up:
                    raise wire.WireError(f"an answer to no question: {reply.id}")
                self._given_up.discard(reply.id)
        except (OSError, wire.WireError, ValueError) as error:
            message = f"{message}: {error}"
        except errors.MigrateError as error:
            message = f"{message}: {error.message}"
        finally:
            self._lost = PeerLost(self.host, message)
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(self._lost)
            self._waiting.clear()

    async def call(self, name: str, arguments: object, result: type[T]) -> T:
        """One command. Raises PeerFault, or PeerLost when the agent is gone, silent too long or unintelligible."""
        command = protocol.BY_NAME[name]
        if not isinstance(arguments, command.arguments) or result is not command.result:
            raise TypeError(f"{name} takes {command.arguments.__name__} and gives {command.result.__name__}")
        if self._lost is not None:
            raise self._lost
        self._next += 1
        number = self._next
        waiting: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            async with asyncio.timeout(command.pace.value):
                async with self._writing:
                    await self._channel.write(wire.encode_request(number, name, arguments))
                reply = await waiting
        except TimeoutError:
            raise PeerLost(self.host, f"its agent did not answer {name} within {command.pace.value:.0f} s") from None
        except OSError as error:
            raise PeerLost(self.host, f"the connection to its agent was lost: {error}") from error
        finally:
            if self._waiting.pop(number, None) is not None:
                self._given_up.add(number)
            elif not waiting.cancelled():
                waiting.exception()  # seen, also where we failed ourselves before we came to wait for it
        if reply.fault is not None:
            raise PeerFault(self.host, name, reply.fault)
        try:
            return wire.decode(result, reply.result, name)
        except wire.WireError as error:
            raise PeerLost(self.host, f"its agent's answer is not understood: {error}") from error

    def log_tail(self) -> str:
        """The last lines that the agent wrote to its log."""
        return self._channel.stderr_tail()

    async def close(self) -> None:
        """End of input for the agent."""
        for task in (self._heart, self._reader):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._channel.close()

    # --- one method a command ---

    async def probe(self, request: protocol.Probe) -> protocol.HostFacts:
        """Facts of the host."""
        return await self.call("probe", request, protocol.HostFacts)

    async def inspect(self, request: protocol.Inspect) -> protocol.TreeFacts:
        """Facts of the tree."""
        return await self.call("inspect", request, protocol.TreeFacts)

    async def check(self, request: protocol.Check) -> protocol.TargetCheck:
        """What the target has of that which the tree needs."""
        return answering(await self.call("check", request, protocol.TargetCheck), request, self.host)

    async def listen(self, request: protocol.Listen) -> protocol.Answers:
        """Who else has addresses that are to come to this host."""
        return await self.call("listen", request, protocol.Answers)

    async def digest(self, request: protocol.Digest) -> protocol.Digests:
        """What the content of files comes to."""
        return await self.call("digest", request, protocol.Digests)

    async def begin(self, request: protocol.Begin) -> protocol.Prepared:
        """Lock the tree and open its journal."""
        return await self.call("begin", request, protocol.Prepared)

    async def prepare(self, request: protocol.Prepare) -> protocol.Prepared:
        """Make ready to receive."""
        return await self.call("prepare", request, protocol.Prepared)

    async def accept(self, request: protocol.Accept) -> protocol.Nothing:
        """Start a page server for a round."""
        return await self.call("accept", request, protocol.Nothing)

    async def arrived(self, request: protocol.Arrived) -> protocol.Accepted:
        """A round is there without a stream: look whether it is whole."""
        return await self.call("arrived", request, protocol.Accepted)

    async def accept_done(self, request: protocol.AcceptDone) -> protocol.Accepted:
        """Wait until a round has arrived."""
        return await self.call("accept_done", request, protocol.Accepted)

    async def pre_dump(self, request: protocol.PreDump) -> protocol.Dumped:
        """One pre-copy round."""
        return await self.call("pre_dump", request, protocol.Dumped)

    async def throttle(self, request: protocol.Throttle) -> protocol.Throttled:
        """Limit the tree's processor time."""
        return await self.call("throttle", request, protocol.Throttled)

    async def dump(self, request: protocol.Dump) -> protocol.Held:
        """Freeze, dump, hold."""
        return await self.call("dump", request, protocol.Held)

    async def send_images(self, request: protocol.SendImages) -> protocol.Moved:
        """Send the images that are no memory."""
        return await self.call("send_images", request, protocol.Moved)

    async def receive_images(self, request: protocol.ReceiveImages) -> protocol.Moved:
        """Receive them."""
        return await self.call("receive_images", request, protocol.Moved)

    async def newly_opened(self) -> protocol.NewFiles:
        """What the tree has opened since it was inspected."""
        return await self.call("newly_opened", protocol.Nothing(), protocol.NewFiles)

    async def add_files(self, request: protocol.AddFiles) -> protocol.Nothing:
        """More files come along."""
        return await self.call("add_files", request, protocol.Nothing)

    async def stage(self, request: protocol.Stage) -> protocol.Nothing:
        """Make room for files that come along."""
        return await self.call("stage", request, protocol.Nothing)

    async def copy_files(self, request: protocol.CopyFiles) -> protocol.Moved:
        """rsync them."""
        return await self.call("copy_files", request, protocol.Moved)

    async def take_files(self, request: protocol.TakeFiles) -> protocol.Moved:
        """Be rsync's other half."""
        return await self.call("take_files", request, protocol.Moved)

    async def send_files(self, request: protocol.SendFiles) -> protocol.Moved:
        """Send what changed of them."""
        return await self.call("send_files", request, protocol.Moved)

    async def receive_files(self, request: protocol.ReceiveFiles) -> protocol.Moved:
        """Take that in."""
        return await self.call("receive_files", request, protocol.Moved)

    async def restore(self, request: protocol.Restore) -> protocol.Restored:
        """Restore and hold."""
        return await self.call("restore", request, protocol.Restored)

    async def commit(self) -> protocol.Killed:
        """The point of no return."""
        return await self.call("commit", protocol.Nothing(), protocol.Killed)

    async def resume(self, request: protocol.Resume) -> protocol.Resumed:
        """Let the tree run."""
        return await self.call("resume", request, protocol.Resumed)

    async def fill(self) -> protocol.Filled:
        """Wait until memory is whole."""
        return await self.call("fill", protocol.Nothing(), protocol.Filled)

    async def abort(self, request: protocol.Abort) -> protocol.Leftovers:
        """Undo."""
        return await self.call("abort", request, protocol.Leftovers)

    async def finish(self) -> protocol.Leftovers:
        """Remove what is left."""
        return await self.call("finish", protocol.Finish(), protocol.Leftovers)

    async def journal(self, request: protocol.ReadJournal) -> protocol.JournalState:
        """What the host's journal says."""
        return await self.call("journal", request, protocol.JournalState)

    async def settle(self, request: protocol.Settle) -> protocol.Settled:
        """Finish or undo a migration whose agent is gone."""
        return await self.call("settle", request, protocol.Settled)

    async def migrations(self) -> protocol.Migrations:
        """Every migration that the host remembers."""
        return await self.call("migrations", protocol.Nothing(), protocol.Migrations)

    async def story(self, request: protocol.ReadJournal) -> protocol.Story:
        """One migration as the host has it."""
        return await self.call("story", request, protocol.Story)

    async def interrupt(self, request: protocol.Interrupt) -> protocol.Interrupted:
        """Have the `migrate` that runs a migration undo it."""
        return await self.call("interrupt", request, protocol.Interrupted)

    async def remains(self) -> protocol.Remains:
        """Everything of ours on the host."""
        return await self.call("remains", protocol.Nothing(), protocol.Remains)

    async def put_on_ice(self, request: protocol.PutOnIce) -> protocol.Nothing:
        """Have the images on disk, and their manifest."""
        return await self.call("put_on_ice", request, protocol.Nothing)

    async def snapshot(self, request: protocol.PutOnIce) -> protocol.Nothing:
        """Let the held tree run on, and have the images on disk, and their manifest."""
        return await self.call("snapshot", request, protocol.Nothing)

    async def look_at_ice(self, request: protocol.LookAtIce) -> protocol.Ice:
        """What is on ice in a directory."""
        return await self.call("look_at_ice", request, protocol.Ice)

    async def read_ice(self, request: protocol.ReadIce) -> protocol.Manifest:
        """A tree on ice, every image of it verified."""
        return await self.call("read_ice", request, protocol.Manifest)
