"""The agent's conversation: banner, dispatch by table, exception -> fault; end of input -> abort, until HELD.

Standard output is the wire. Whatever else prints lands on standard error, so that a stray print corrupts nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import platform
import signal
import sys
import traceback
from collections.abc import Awaitable
from pathlib import Path
from typing import Callable, Optional, TypeVar

from agent import disk, duplicates, files, host, ice, images, instants, newcomers, process, protocol, wire
from agent.bulk import BrokenStream
from agent.claim import Claimed, claim
from agent.criu import Criu, CriuError
from agent.deltas import FilesError
from agent.fill import BrokenRounds, FillError, NotInstant
from agent.floating import AddressError
from agent.guard import GuardError
from agent.journal import IdTaken, JournalError, WrongOrder, check_id
from agent.keeping import kind_of
from agent.lock import TaskLocked
from agent.namespace import NamespaceError
from agent.protocol import Fault, FaultCode
from agent.saving import Saving, onto_ice
from agent.service import ServiceError
from agent.settings import Settings
from agent.settle import read_journal, settle
from agent.source import Source, Vetoed
from agent.standing import refuse_held
from agent.target import Target
from agent.tasks import NotRunning, TreeChanged
from agent.throttle import ThrottleError, why_not
from agent.unfilled import StillFilling, whole

T = TypeVar("T")
SILENCE = 120.0
"""Seconds without a heartbeat after which the other side counts as gone: a host that dies says nothing, and sshd would
wait for hours. Twelve beats, since hosts under load are slow."""


class BadRequest(Exception):
    """A command that makes no sense now."""


def fault_of(error: BaseException) -> Fault:
    """What the other side is told of an exception."""
    if isinstance(error, CriuError):
        full = "No space left on device" in error.message
        return Fault(FaultCode.NO_SPACE if full else FaultCode.CRIU, error.message, log=error.log)
    if isinstance(error, process.NoSuchProcess):
        return Fault(FaultCode.NO_PROCESS, str(error))
    if isinstance(error, (images.ImageError, BrokenStream, ConnectionError)):
        return Fault(FaultCode.BROKEN_STREAM, str(error))
    if isinstance(error, NotInstant):
        return Fault(FaultCode.TOO_TORN, str(error), hint="restore all of it before it runs: --resume eager")
    if isinstance(error, TaskLocked):
        return Fault(FaultCode.LOCKED, str(error), hint=error.hint)
    for kind, code in _FAULTS:
        if isinstance(error, kind):
            return Fault(code, str(error))
    # the interpreter has no class for a thread without memory
    if isinstance(error, MemoryError) or "can't start new thread" in str(error):
        hint = "`free -h` tells what the host has; a limit on memory or tasks of the agent's own session counts, too"
        return Fault(FaultCode.NO_SPACE, "no memory left for the agent", hint=hint)
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            where = f": {error.filename}" if error.filename else ""
            hint = "make room there; `df /var/lib/migrate /run/migrate` tells where it is full"
            return Fault(FaultCode.NO_SPACE, f"no space left on the disk{where}", hint=hint)
        return Fault(FaultCode.INTERNAL, str(error))
    return Fault(FaultCode.INTERNAL, f"{type(error).__name__}: {error}")


_FAULTS: tuple[tuple[type[BaseException], FaultCode], ...] = (
    (BadRequest, FaultCode.BAD_REQUEST),
    (WrongOrder, FaultCode.BAD_REQUEST),
    (wire.WireError, FaultCode.BAD_REQUEST),
    (IdTaken, FaultCode.LOCKED),
    (StillFilling, FaultCode.LOCKED),
    (Claimed, FaultCode.LOCKED),
    (ice.InUse, FaultCode.LOCKED),
    (ice.IceError, FaultCode.ICE),
    (TreeChanged, FaultCode.CHANGED),
    (Vetoed, FaultCode.VETOED),
    (images.NoRoom, FaultCode.NO_SPACE),
    (FilesError, FaultCode.FILES),
    (disk.NotOurs, FaultCode.FILES),
    (images.NotWhole, FaultCode.FILES),
    (JournalError, FaultCode.JOURNAL),
    (NotRunning, FaultCode.CRIU),
    (NamespaceError, FaultCode.CRIU),
    (AddressError, FaultCode.CRIU),
    (GuardError, FaultCode.CRIU),
    (BrokenRounds, FaultCode.BROKEN_ROUNDS),
    (FillError, FaultCode.CRIU),
    (ThrottleError, FaultCode.THROTTLE),
    (ServiceError, FaultCode.UNIT),
)


class Server:
    """One conversation with `migrator`, and the migration that it is about."""

    def __init__(self, settings: Settings, reader: asyncio.StreamReader, output: int, build: str) -> None:
        self._settings = settings
        self._reader = reader
        self._output = output
        self._build = build
        self._source: Optional[Source] = None
        self._target: Optional[Target] = None
        self._claimed: set[str] = set()  # migrations that nobody else recovers while we live
        self._seen: set[str] = set()  # files of the tree that was inspected, by name
        self._running: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()  # beginning and giving up never overlap: what has half begun can't be given up
        self.handlers: dict[str, Callable[..., Awaitable[object]]] = {
            "probe": self._probe,
            "inspect": self._inspect,
            "check": self._check,
            "listen": self._listen,
            "digest": self._digest,
            "begin": self._begin,
            "prepare": self._prepare,
            "accept": lambda request: self._to.accept(request),
            "arrived": lambda request: self._to.arrived(request),
            "accept_done": lambda request: self._to.accept_done(request),
            "pre_dump": lambda request: self._from.pre_dump(request),
            "throttle": lambda request: self._from.throttle(request),
            "dump": lambda request: self._from.dump(request),
            "send_images": lambda request: self._from.send_images(request),
            "receive_images": lambda request: self._to.receive_images(request),
            "newly_opened": lambda request: self._newly_opened(),
            "add_files": lambda request: self._from.files.add(request),
            "stage": lambda request: self._to.files.stage(request),
            "copy_files": lambda request: self._from.files.copy(request),
            "take_files": lambda request: self._to.files.take(request),
            "send_files": lambda request: self._from.files.send(request),
            "receive_files": lambda request: self._to.files.receive(request),
            "restore": lambda request: self._to.restore(request),
            "commit": lambda request: self._from.commit(),
            "resume": lambda request: self._to.resume(request),
            "fill": lambda request: self._to.fill(),
            "abort": self._abort,
            "finish": self._finish,
            "journal": self._journal,
            "settle": self._settle,
            "migrations": self._migrations,
            "story": self._story,
            "interrupt": self._interrupt,
            "remains": self._remains,
            "put_on_ice": lambda request: onto_ice(self._from).put_on_ice(request),
            "snapshot": lambda request: onto_ice(self._from).snapshot(request),
            "look_at_ice": lambda request: _aside(ice.look, Path(request.directory)),
            "read_ice": lambda request: _aside(ice.verified, Path(request.directory), request.id),
        }

    async def serve(self) -> None:
        """Banner, then requests until the end of input; then undo what may be undone."""
        instants.at("connect")
        rest = f"python={platform.python_version()}"
        banner = protocol.Banner(protocol.AGENT_PRODUCT, protocol.PROTOCOL, protocol.VERSION, self._build, rest)
        self._write(banner.line().encode() + b"\n")
        theirs = protocol.Banner.parse((await self._reader.readline()).decode(errors="replace"))
        if theirs is None or (theirs.protocol, theirs.build) != (protocol.PROTOCOL, self._build):
            say("the other side speaks another protocol or is of another build; nothing was done")
            return
        while True:
            try:
                line = await asyncio.wait_for(self._reader.readline(), SILENCE)
            except ValueError:
                say("a message over the size limit: giving up")
                break
            except asyncio.TimeoutError:
                say(f"nothing was heard for {SILENCE:.0f} s: giving up")
                break
            if line == protocol.HEARTBEAT:
                continue
            if not line.endswith(b"\n"):
                break
            try:
                request = wire.decode_request(line)
            except wire.WireError as error:
                say(f"{error}: giving up")
                break
            task = asyncio.ensure_future(self._answer(request))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        hanging_up = asyncio.ensure_future(self._hang_up())
        await self._contact_lost()
        await hanging_up

    async def _hang_up(self) -> None:
        """Let the other side see that nobody listens any more, as soon as what is under way is answered.

        It may be there still: SIGTERM, or its own silence, has ended this conversation, and a lease may follow.
        """
        if self._running:
            await asyncio.wait(self._running)
        os.close(self._output)
        # sshd tells of the end of the output when that of the errors has come as well
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        for number in (1, 2):
            os.dup2(null, number)
        os.close(null)

    async def _answer(self, request: wire.Request) -> None:
        try:
            command = protocol.BY_NAME.get(request.command)
            if command is None:
                raise BadRequest(f"there is no command {request.command!r}")
            arguments = wire.decode(command.arguments, request.arguments, request.command)
            result = await self.handlers[command.name](arguments)
            data = wire.encode_result(request.id, result)
        except Exception as error:
            fault = fault_of(error)
            if fault.code is FaultCode.INTERNAL:
                say(traceback.format_exc())
            data = wire.encode_fault(request.id, fault)
        self._write(data)

    def _write(self, data: bytes) -> None:
        """Replies are written whole and at once; when nobody reads any more, end of input will tell."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._output, view) :]
        except (BrokenPipeError, ConnectionResetError):
            say("the other side is gone")

    async def _contact_lost(self) -> None:
        try:
            async with self._turn:
                if self._source is not None and not self._source.committed:
                    await self._source.abort("contact lost")
                if self._target is not None:
                    await self._target.contact_lost()
        except (JournalError, NotRunning) as error:
            say(f"{error}: `migrate recover` undoes it once that has ended")
        if self._running:
            # a commit or resume that is under way is finished by this host alone
            await asyncio.wait(self._running)

    @property
    def _from(self) -> Source:
        if self._source is None:
            raise BadRequest("no migration from here has begun")
        return self._source

    @property
    def _to(self) -> Target:
        if self._target is None:
            raise BadRequest("no migration to here was prepared")
        return self._target

    async def _probe(self, request: protocol.Probe) -> protocol.HostFacts:
        return await host.facts(Criu(self._settings.criu), request)

    async def _inspect(self, request: protocol.Inspect) -> protocol.TreeFacts:
        instants.at("preflight")

        def inspect() -> protocol.TreeFacts:
            facts = process.inspect(request.pid)
            return dataclasses.replace(facts, no_throttle=why_not(task.pid for task in facts.tasks))

        if request.pid > 1:  # a tree of which a task is held can't even be looked at: it is said whose it is
            tasks = process.tasks_of(request.pid)
            refuse_held(self._settings, ((task.pid, task.start_time) for task in tasks))
        # before it is looked at: what is not there yet can't be measured, nor room be made for it
        await whole(self._settings.state, request.pid, say)
        facts = await asyncio.get_running_loop().run_in_executor(None, inspect)
        self._seen = {file.path for file in facts.files}
        return facts

    async def _newly_opened(self) -> protocol.NewFiles:
        return protocol.NewFiles(await _aside(newcomers.found, self._from.root, self._seen))

    async def _check(self, request: protocol.Check) -> protocol.TargetCheck:
        instants.at("preflight")
        known = (await _aside(ice.look, Path(request.ice)),) if request.ice else ()
        return dataclasses.replace(await _aside(files.check, request, self._settings.state), ice=known)

    async def _listen(self, request: protocol.Listen) -> protocol.Answers:
        return protocol.Answers(await _aside(duplicates.heard, request.addresses))

    async def _digest(self, request: protocol.Digest) -> protocol.Digests:
        return protocol.Digests(await _aside(lambda: tuple(map(files.digest, request.paths))))

    async def _begin(self, request: protocol.Begin) -> protocol.Prepared:
        async with self._turn:
            self._be_free(request.migration)
            source = (Saving if request.place.ice else Source)(self._settings, request, say)
            prepared = await source.begin()
            self._source = source
            return prepared

    async def _prepare(self, request: protocol.Prepare) -> protocol.Prepared:
        async with self._turn:
            self._be_free(request.migration)
            self._target = await kind_of(request).prepare(self._settings, request, say)
            return self._target.prepared

    def _be_free(self, migration: str) -> None:
        check_id(migration)
        self._trust_our_own()
        if self._source is not None or self._target is not None:
            raise BadRequest("this agent has a migration already")

    def _trust_our_own(self) -> None:
        """Journals name processes to be killed, and locks keep others away: nobody else may have written them."""
        for directory in (self._settings.state, self._settings.run):
            disk.trusted(directory)

    async def _abort(self, request: protocol.Abort) -> protocol.Leftovers:
        async with self._turn:
            if self._source is not None:
                return await self._source.abort(request.reason)
            if self._target is not None:
                return await self._target.abort(request.reason, request.source_aborted)
            # not "nothing to undo": the migration may be one whose agent was lost, and then `settle` undoes it
            raise BadRequest("this agent has no migration")

    async def _finish(self, request: protocol.Finish) -> protocol.Leftovers:
        if self._source is not None:
            return await self._source.finish()
        return await self._to.finish()

    async def _journal(self, request: protocol.ReadJournal) -> protocol.JournalState:
        self._trust_our_own()
        # a holder that is asked may take a moment to answer
        state = await _aside(read_journal, self._settings, request.migration)
        if request.claim and state.role == request.claim and state.migration not in self._claimed:
            self._claimed.add(state.migration)
            await claim(self._settings.state / state.migration)
            state = read_journal(self._settings, request.migration)  # somebody may have been at it meanwhile
        return state

    async def _settle(self, request: protocol.Settle) -> protocol.Settled:
        self._trust_our_own()
        return await settle(self._settings, request, say)

    # late imports: only whoever asks for them waits for their loading

    async def _migrations(self, request: protocol.Nothing) -> protocol.Migrations:
        from agent import story

        return await _aside(story.migrations, self._settings)

    async def _story(self, request: protocol.ReadJournal) -> protocol.Story:
        from agent import story

        return await _aside(story.tell, self._settings, request)

    async def _interrupt(self, request: protocol.Interrupt) -> protocol.Interrupted:
        from agent import story

        return story.interrupt(self._settings, request)

    async def _remains(self, request: protocol.Nothing) -> protocol.Remains:
        from agent import leftovers

        return await _aside(leftovers.find, self._settings)


async def _aside(act: Callable[..., T], *arguments: object) -> T:
    """What an act gives that may take long, in a thread of its own."""
    return await asyncio.get_running_loop().run_in_executor(None, act, *arguments)


def say(text: str) -> None:
    """A line for the log, which is standard error. When the session is gone nobody reads it, and work goes on."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:
        return


async def serve(settings: Settings, build: str) -> None:
    """Serve one conversation on standard input and output.

    SIGHUP and SIGINT are ignored: the session's end is seen as the end of input. SIGTERM counts as that too.
    """
    output = os.dup(1)
    os.dup2(2, 1)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=wire.LINE_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(0), "rb", 0))
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    loop.add_signal_handler(signal.SIGTERM, reader.feed_eof)
    os.set_blocking(output, True)
    await Server(settings, reader, output, build).serve()
