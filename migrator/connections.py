"""What becomes of a tree's TCP connections: they go along with their address, are closed, or are in the way. Pure.

criu has one way for all of them, and takes none of those that wait to be accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.protocol import Peculiarity
from migrator import floating
from migrator.obstacle import Obstacle, make

CLOSE = "close"
"""Of `--tcp`: whatever moves, no connection goes along."""


def obstacles(here: str, oddities: Iterable[Peculiarity], move: floating.Move, tcp: str) -> Iterator[Obstacle]:
    """Each connection that is in the way, or will be closed, by both its ends."""
    for one in oddities:
        if one.kind != "tcp-established":
            continue
        if tcp == CLOSE:
            yield make("tcp-closed", here, one.object, detail=one.detail)
        elif not floating.go_along(one, move):
            yield make("tcp-established", here, one.object, detail=one.detail)


def fates(here: str, there: str, oddities: Iterable[Peculiarity], move: floating.Move, tcp: str) -> Iterator[str]:
    """A line for each IP socket that is bound or connected: what becomes of it on either host."""
    for one in oddities:
        if one.kind not in ("listen", "receive", "tcp-established"):
            continue
        moves = floating.host_of(one.object.split(" -> ")[0]) in move.addresses
        if one.kind == "listen" and moves:
            what = f"listens: {here} drops new connections from the freeze on, they come again and find it on {there}"
        elif one.kind == "listen":
            what = f"listens: on {there} as on {here}, and clients of {here} have to be led there"
        elif one.kind == "receive":
            address = "together with its address" if moves else "but no address goes along"
            what = f"receives: on {there} as on {here}, {address}; what comes between is lost, as UDP's may be"
        elif tcp == CLOSE:
            what = f"is closed: {there} gets a socket that has come to its end, and its peer learns that from {here}"
        elif floating.go_along(one, move):
            what = f"goes along: kept still on {here} from the freeze on, and goes on on {there}"
        else:
            what = f"stays on {here}, and so keeps the process from moving"
        yield f"pid {one.pid}: {'udp' if one.kind == 'receive' else 'tcp'} {one.object} {what}"


def lock(*, nft: bool) -> str:
    """By what criu keeps connections still on the source: as our guards there, nftables if it can be."""
    return "nftables" if nft else "iptables"
