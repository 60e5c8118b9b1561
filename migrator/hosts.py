"""What the operator orders, and how the two hosts of it are reached: links to both, bulk streams between them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from typing import Protocol

from agent.protocol import STREAM_DAMAGED
from migrator import bundle, channel, errors, plan, precopy, transport
from migrator.bandwidth import Bucket, Metered
from migrator.packing import Packed
from migrator.peer import Peer, PeerLost
from migrator.phases import Observer
from migrator.together import both
from migrator.unchanged import Sifted

RECONNECT_ATTEMPTS = 5
RECONNECT_PAUSE = 2.0
"""Seconds between attempts to reach a target that was lost."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What the operator wants."""

    pid: int
    target: transport.Target
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


class Links(Protocol):
    """How the two hosts are reached; the target's may be asked for again when it was lost."""

    async def source(self) -> transport.Link:
        """The host we run on."""

    async def target(self) -> transport.Link:
        """The host to move to."""


class RealLinks:
    """This host, and one over SSH."""

    def __init__(self, order: Order) -> None:
        channel.keep_memory()
        self._order = order
        self._arguments = ("--criu", order.criu) if order.criu else ()

    async def source(self) -> transport.Link:
        """The local agent."""
        return transport.LocalLink(agent_arguments=self._arguments)

    async def target(self) -> transport.Link:
        """A new SSH connection."""
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

    def __init__(self, name: str, source: transport.Channel, target: transport.Channel, way: Way) -> None:
        self.name = name
        self.damage = ""
        """What the target's relay had against it, when that is why it ended."""
        sink: transport.Channel = Metered(target, way.bucket, way.on_wire)
        if way.compress != "none":
            sink = Packed(sink, always=way.compress == "zstd")
        if name == transport.MEMORY:
            source = Sifted(source)
        self._ends = (source, sink)
        self._pump = asyncio.create_task(transport.pump(source, sink, way.on_bytes))

    async def close(self) -> None:
        """Close both ends: whoever reads or writes there fails."""
        for line in self._ends[1].stderr_tail().splitlines():
            if STREAM_DAMAGED in line:
                self.damage = line
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        for end in self._ends:
            with contextlib.suppress(OSError, errors.MigrateError):
                await end.close()


class Ends:
    """Both ends of one migration: links, and an agent at each. A lost agent can be replaced; its journal stays.

    `close` ends everything that was ever opened here.
    """

    source: Peer
    target: Peer

    def __init__(self, links: Links, observer: Observer) -> None:
        self._links = links
        self._observer = observer
        self._opened = contextlib.AsyncExitStack()
        self._streams: list[Stream] = []
        self._source_link: transport.Link
        self._target_link: transport.Link

    async def connect(self) -> None:
        """Reach both hosts and start an agent on each. Raises ConnectError and its kind."""
        self._source_link = await self._links.source()
        self._opened.push_async_callback(self._source_link.close)
        await self.replace_source()
        await self._reach_target()

    async def replace_source(self) -> None:
        """A new agent on the source."""
        self.source = await self._agent(self._source_link, "source")

    async def replace_target(self) -> None:
        """A new connection to the target, and a new agent there. Raises MigrateError when it stays away."""
        for attempt in range(RECONNECT_ATTEMPTS):
            try:
                await self._reach_target()
                return
            except (errors.MigrateError, PeerLost):
                if attempt == RECONNECT_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(RECONNECT_PAUSE)

    async def _reach_target(self) -> None:
        self._target_link = await self._links.target()
        self._opened.push_async_callback(self._target_link.close)
        self.target = await self._agent(self._target_link, "target")

    async def _agent(self, link: transport.Link, role: str) -> Peer:
        peer = Peer(link.name, await link.start_agent(role))
        self._opened.push_async_callback(peer.close)
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
        self._opened.push_async_callback(stream.close)
        return stream

    def damage(self) -> str:
        """What a relay had against the stream that it was sent, in one line; "" as long as all is well."""
        return next((f"{self.target.host}: {stream.damage}" for stream in self._streams if stream.damage), "")

    async def close(self) -> None:
        """End of input for the agents, end of the connections."""
        await self._opened.aclose()
