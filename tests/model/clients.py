"""`migrate` and `migrate recover` on the model's hosts: the product's own code, with peers and links of ours.

`migrator.undoing`, `deciding`, `forward` and `recovery` run as they are. What is rewritten here is the order of a
migration, as `migrator.migration` has it, from the freeze on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Generator
from typing import Any, cast

from agent import protocol
from migrator import deciding, errors, recovery
from migrator.forward import Forward
from migrator.hosts import Ends
from migrator.peer import PeerFault, PeerLost
from migrator.phases import Phase
from migrator.undoing import Undoing
from tests.model.agents import CRIU_FAULT, FAULT, ID

LOST = "lost"
CANCELLED = "cancelled"


class Over(BaseException):
    """The world stops looking at this client."""


class Stage:
    """One run of a client. Once it is over nothing that it awaits is done any more."""

    over = False


class Do:
    """Something that the client does, or waits for: an act of the world."""

    def __init__(self, stage: Stage, *act: Any) -> None:
        self._stage = stage
        self._act = act

    def __await__(self) -> Generator[Any, Any, Any]:
        if self._stage.over:
            raise Over
        return (yield self._act)


class ModelPeer:
    """What is used of `migrator.peer.Peer`."""

    def __init__(self, stage: Stage, role: str, name: str) -> None:
        self.host = role
        self._stage = stage
        self._name = name

    async def _call(self, program: str, *arguments: Any) -> Any:
        await Do(self._stage, "send", self._name, program, arguments)
        seen = await Do(self._stage, "receive", self._name)
        if seen == CANCELLED:
            raise asyncio.CancelledError
        if seen == LOST:
            raise PeerLost(self.host, "lost")
        if seen in (FAULT, CRIU_FAULT):
            code = protocol.FaultCode.CRIU if seen == CRIU_FAULT else protocol.FaultCode.JOURNAL
            raise PeerFault(self.host, program, protocol.Fault(code, "refused"))
        return seen

    async def dump(self) -> None:
        await self._call("dump")

    async def restore(self) -> None:
        await self._call("restore")

    async def commit(self) -> protocol.Killed:
        await self._call("commit")
        return protocol.Killed(1, 0.0)

    async def resume(self, request: protocol.Resume) -> protocol.Resumed:
        await self._call("resume")
        return protocol.Resumed(1, 0.0)

    async def fill(self) -> protocol.Filled:
        return protocol.Filled(0, 0.0, 0, 0.0)

    async def abort(self, request: protocol.Abort) -> protocol.Leftovers:
        if not self._name.endswith("0"):
            raise PeerFault(self.host, "abort", protocol.Fault(protocol.FaultCode.BAD_REQUEST, "no migration"))
        arguments = (request.source_aborted,) if self.host == "target" else ()
        await self._call(f"abort {self.host}", *arguments)
        return protocol.Leftovers()

    async def finish(self) -> protocol.Leftovers:
        if not self._name.endswith("0"):
            raise PeerFault(self.host, "finish", protocol.Fault(protocol.FaultCode.BAD_REQUEST, "no migration"))
        await self._call("finish", self.host)
        return protocol.Leftovers()

    async def journal(self, request: protocol.ReadJournal) -> protocol.JournalState:
        return cast(protocol.JournalState, await self._call("journal", self.host, request.migration))

    async def settle(self, request: protocol.Settle) -> protocol.Settled:
        await self._call("settle", self.host, request.verdict, request.word)
        return protocol.Settled((), 1)

    async def close(self) -> None:
        await Do(self._stage, "hang up", self._name)


class ModelLink:
    """A host that was reached."""

    def __init__(self, stage: Stage, role: str) -> None:
        self.name = role
        self.stage = stage

    async def close(self) -> None:
        """Its agents are hung up on one by one."""


async def meet(link: ModelLink, role: str) -> ModelPeer:
    """In the place of `recovery.meet`, which is told a role before it is known."""
    name = await Do(link.stage, "meet", link.name)
    if name == LOST:
        raise errors.ConnectError(f"{link.name} can't be reached")
    return ModelPeer(link.stage, link.name, name)


class ModelHosts:
    """In the place of `recovery.RealHosts`."""

    def __init__(self, stage: Stage, at: str, other: str) -> None:
        self._stage = stage
        self._at = at
        self._other = other

    async def here(self) -> ModelLink:
        return ModelLink(self._stage, self._at)

    async def there(self, peer: str, address: str = "") -> ModelLink:
        if not await Do(self._stage, f"reach {self._other}"):
            raise errors.ConnectError(f"the {self._other} can't be reached")
        return ModelLink(self._stage, self._other)

    async def answers(self, peer: str, address: str) -> str:
        return "it is up"


class ModelEnds:
    """In the place of `migrator.hosts.Ends`."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.source = ModelPeer(stage, "source", "S0")
        self.target = ModelPeer(stage, "target", "T0")

    async def replace_source(self) -> None:
        self.source = await meet(ModelLink(self._stage, "source"), "source")

    async def replace_target(self) -> None:
        if not await Do(self._stage, "reach target"):
            raise errors.ConnectError("the target can't be reached")
        self.target = await meet(ModelLink(self._stage, "target"), "target")


class Deaf:
    """An observer."""

    async def phase(self, phase: Phase) -> None:
        return

    def note(self, text: str) -> None:
        return

    detail = note


async def migrate(stage: Stage) -> None:
    """From the freeze on, as `migrator.migration.Migration.run`."""
    ends = ModelEnds(stage)
    real, observer = cast(Ends, ends), cast(Any, Deaf())
    undoing, forward = Undoing(ID, real, observer), Forward(ID, real, observer)
    with contextlib.suppress(PeerFault, PeerLost, errors.MigrateError, asyncio.CancelledError):
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(undoing.target)
            undo.push_async_callback(undoing.source)
            await ends.source.dump()
            await ends.target.restore()
            killed = await deciding.decide(ID, real, undoing, 1)
            undo.pop_all()
        await forward.run(killed, frozen_at=0.0, instant=False)


async def recover(stage: Stage) -> None:
    """`migrate recover` on the source, without an ID: it has to find by itself what is not over."""
    with contextlib.suppress(errors.MigrateError):
        await recovery.recover_over("", cast(Any, ModelHosts(stage, "source", "target")), cast(Any, Deaf()))


async def recover_by_id(stage: Stage) -> None:
    """`migrate recover ID` on the source."""
    with contextlib.suppress(errors.MigrateError):
        await recovery.recover_over(ID, cast(Any, ModelHosts(stage, "source", "target")), cast(Any, Deaf()))


async def recover_there(stage: Stage) -> None:
    """`migrate recover ID` on the target."""
    with contextlib.suppress(errors.MigrateError):
        await recovery.recover_over(ID, cast(Any, ModelHosts(stage, "target", "source")), cast(Any, Deaf()))


async def say(stage: Stage, word: protocol.Word) -> None:
    """`migrate recover ID` on the target with an operator's word, while the source can be asked."""
    with contextlib.suppress(errors.MigrateError):
        hosts = cast(Any, ModelHosts(stage, "target", "source"))
        await recovery.recover_over(ID, hosts, cast(Any, Deaf()), word=word)


PROGRAMS = {"migrate": migrate, "recover": recover, "recover by ID": recover_by_id, "recover there": recover_there} | {
    word.value: functools.partial(say, word=word) for word in protocol.Word if word
}
