"""What the operator orders, and how the two hosts of it are reached: links to both, bulk streams between them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from agent.protocol import LEASE, STREAM_DAMAGED, TERMINAL_STREAM
from migrator import bundle, channel, errors, plan, precopy
from migrator.bandwidth import Bucket, Metered
from migrator.local import LocalLink
from migrator.packing import Packed
from migrator.peer import Peer, PeerLost
from migrator.phases import Observer
from migrator.together import both, end
from migrator.unchanged import Sifted

T = TypeVar("T")

RECONNECT_ATTEMPTS = 5
RECONNECT_PAUSE = 2.0
"""Seconds between attempts to reach a target that was lost."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What the operator wants."""

    pid: int
    target: channel.Target
    wishes: plan.Wishes
    limits: precopy.Limits
    sudo: bool = False
    criu: str = ""
    bandwidth: float = 0.0
    """Bytes a second of pre-copy at most, on the wire; 0: as many as go."""
    rsh: str = ""
    """The remote shell of rsync, where that carries the rounds; "": ssh."""
    rehearsal: bool = False
    """Up to the tree that is held on the target, and back: nothing is moved."""
    lease: float = LEASE
    """Seconds that the tree is held on the target after contact is lost; then only its images are kept there."""
    show: Callable[[channel.Channel], Awaitable[None]] | None = None
    """Who shows its new terminal, once it runs there."""


class Links(Protocol):
    """How the two hosts are reached; the target's may be asked for again when it was lost."""

    async def source(self) -> channel.Link:
        """The host we run on."""

    async def target(self) -> channel.Link:
        """The host to move to."""


class RealLinks:
    """This host, and one over SSH."""

    def __init__(self, order: Order) -> None:
        channel.keep_memory()
        channel.no_core_dumps()
        self._order = order
        self._arguments = ("--criu", order.criu) if order.criu else ()

    async def source(self) -> channel.Link:
        """The local agent."""
        return LocalLink(agent_arguments=self._arguments)

    async def target(self) -> channel.Link:
        """A new SSH connection."""
        from migrator import transport  # late: loading SSH takes as long as the local agent's start, which goes on

        return await transport.connect(self._order.target, sudo=self._order.sudo, agent_arguments=self._arguments)


@dataclasses.dataclass(frozen=True)
class Way:
    """How bytes go from one host to the other, and who is told of them."""

    compress: str  # auto, zstd, none
    bucket: Bucket
    on_bytes: Callable[[int], None]
    """So many bytes have come from the source."""
    on_wire: Callable[[int], None]
    """So many bytes were given to SSH, which adds about a thousandth."""


class Stream:
    """One bulk stream, coupled from the source's agent to the target's for as long as it is open."""

    def __init__(self, name: str, source: channel.Channel, target: channel.Channel, way: Way) -> None:
        self.name = name
        self.damage = ""
        """What the target's relay had against it, when that is why it ended."""
        sink: channel.Channel = Metered(target, way.bucket, way.on_wire)
        if way.compress != "none":
            sink = Packed(sink, always=way.compress == "zstd")
        if name == channel.MEMORY:
            source = Sifted(source)
        self._ends = (source, sink)
        self._pump = asyncio.create_task(channel.pump(source, sink, way.on_bytes))

    async def close(self) -> None:
        """Close both ends: whoever reads or writes there fails."""
        for line in self._ends[1].stderr_tail().splitlines():
            if STREAM_DAMAGED in line:
                self.damage = line
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        for side in self._ends:
            with contextlib.suppress(OSError, errors.MigrateError):
                await side.close()


class Ends:
    """Both ends of one migration: links, and an agent at each. A lost agent can be replaced; its journal stays.

    `close` ends everything that was ever opened here.
    """

    source: Peer
    target: Peer

    def __init__(self, links: Links, observer: Observer) -> None:
        self._links = links
        self._observer = observer
        self._reached = contextlib.AsyncExitStack()
        self._peers: list[Peer] = []
        self._ahead: list[asyncio.Future[Any]] = []
        self._streams: list[Stream] = []
        self._source_link: channel.Link
        self._target_link: channel.Link

    async def reach_source(self) -> None:
        """Start an agent here. Raises ConnectError and its kind, as `reach_target` does."""
        self._source_link = await self._links.source()
        self._reached.push_async_callback(self._source_link.close)
        await self.replace_source()

    async def reach_target(self) -> None:
        """Connect to the target, and start an agent there."""
        self._target_link = await self._links.target()
        self._reached.push_async_callback(self._target_link.close)
        self.target = await self._agent(self._target_link, "target")

    def ahead(self, act: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Begin an act before its turn: its result, or what it raises, is there for whoever waits for it then."""
        begun = asyncio.ensure_future(act)
        self._ahead.append(begun)
        return begun

    async def replace_source(self) -> None:
        """A new agent on the source."""
        self.source = await self._agent(self._source_link, "source")

    async def replace_target(self) -> None:
        """A new connection to the target, and a new agent there. Raises MigrateError when it stays away."""
        for attempt in range(RECONNECT_ATTEMPTS):
            try:
                await self.reach_target()
                return
            except (errors.MigrateError, PeerLost):
                if attempt == RECONNECT_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(RECONNECT_PAUSE)

    async def _agent(self, link: channel.Link, role: str) -> Peer:
        peer = Peer(link.name, await link.start_agent(role))
        self._peers.append(peer)
        banner = await peer.hello(bundle.build_id())
        self._observer.detail(f"{link.name}: {banner.line()}")
        return peer

    async def stream(self, name: str, here: str, there: str, way: Way) -> Stream:
        """A bulk stream between the two agents' sockets."""
        form = "plain" if way.compress == "none" else "packed"
        source, target = await both(
            self._source_link.open_stream(here, name), self._target_link.open_stream(there, name, form)
        )
        stream = Stream(name, source, target, way)
        self._streams.append(stream)
        return stream

    async def terminal(self, socket: str) -> channel.Channel:
        """The terminal that is held at a socket of the target, for the caller to close. Raises LinkLost."""
        return await self._target_link.open_stream(socket, TERMINAL_STREAM)

    def damage(self) -> str:
        """What a relay had against the stream that it was sent, in one line; "" as long as all is well."""
        return next((f"{self.target.host}: {stream.damage}" for stream in self._streams if stream.damage), "")

    async def close(self) -> None:
        """End of input for the agents, end of the connections."""
        async with self._reached:
            await end(*self._ahead)
            for stream in reversed(self._streams):
                await stream.close()
            await asyncio.gather(*(peer.close() for peer in self._peers))
