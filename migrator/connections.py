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


def lock(*, nft: bool) -> str:
    """By what criu keeps connections still on the source: as our guards there, nftables if it can be."""
    return "nftables" if nft else "iptables"
