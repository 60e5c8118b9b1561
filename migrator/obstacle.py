"""One obstacle, made from its row of the table; and what of a tree's oddities is one.

Judges one tree by itself, never two hosts: that is `plan.py`. What there is to say about a kind stands in
`catalogue.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from agent.protocol import Peculiarity
from migrator.catalogue import KINDS


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """One thing that stands in the way. `id` is that of a row of the table: any other is a ValueError."""

    id: str
    host: str
    object: str
    problem: str
    remedy: str
    stops: bool = True  # False: a warning, and the migration goes on

    def __post_init__(self) -> None:
        if self.id not in KINDS:
            raise ValueError(f"no kind of obstacle has the id {self.id!r}")

    @property
    def note(self) -> str:
        """It in one line, as a warning is said while a migration goes on."""
        return f"{self.host}: {self.object}: {self.problem}"


def make(
    kind_id: str,
    host: str,
    subject: str,
    /,
    *,
    problem: str = "",
    remedy: str = "",
    stops: bool | None = None,
    **fields: Any,
) -> Obstacle:
    """An obstacle of the row `kind_id`: its words with the fields filled in, or better ones where they are given."""
    kind = KINDS[kind_id]
    return Obstacle(
        kind_id, host, subject, problem or kind.problem.format(**fields), remedy or kind.remedy.format(**fields),
        kind.stops if stops is None else stops,
    )  # fmt: skip


UNTOUCHABLE = ("self", "ancestor", "init", "kernel-thread")
"""Trees that were not even looked into: nothing else is to be said about them."""

# kind of a peculiarity -> id
_REFUSED = {
    "self": "is-self", "ancestor": "is-ancestor", "init": "is-init", "kernel-thread": "kernel-thread",
    "zombie-leader": "zombie-leader", "tracer": "tracer", "capability": "capability", "namespace": "namespace",
    "link-remap": "link-remap", "device": "device", "sysv-shm": "sysv-shm",
    "io-uring": "io-uring", "anon-inode": "anon-inode", "socket-kind": "socket-kind",
    "external-pipe": "external-pipe", "watch-lost": "watch-lost", "mqueue": "mqueue",
    "eventfd-semaphore": "eventfd-semaphore", "personality": "personality", "scheduling": "scheduling",
    "sysv-ipc": "sysv-ipc", "pidfd-outside": "pidfd-outside", "packet-pipe": "packet-pipe",
    "unix-waiting": "unix-waiting", "thread-apart": "thread-apart", "uninterruptible": "uninterruptible",
    "unix-moved": "socket-moved",
}  # fmt: skip
_OF_ONE_PROCESS = ("tracer", "personality", "scheduling", "eventfd-semaphore")
_GPUS = ("/dev/nvidia", "/dev/dri/", "/dev/kfd")


def of_oddities(host: str, oddities: Iterable[Peculiarity]) -> Iterator[Obstacle]:
    """What of a tree criu cannot carry, TCP apart (`connections`). `host` is the source's name."""
    for one in oddities:
        if one.kind == "external-unix" and not reconnects(one):
            yield make("external-unix", host, one.object, detail=one.detail)
        elif one.kind == "device" and one.object.startswith(_GPUS):
            yield make("gpu", host, one.object)
        elif one.kind in _REFUSED:
            subject = f"pid {one.object}" if one.kind in (*UNTOUCHABLE, "zombie-leader") else one.object
            subject = f"pid {one.pid}" if one.kind in _OF_ONE_PROCESS else subject
            subject = f"thread {one.object}" if one.kind in ("thread-apart", "uninterruptible") else subject
            yield make(_REFUSED[one.kind], host, subject, object=one.object, detail=one.detail)


def reconnects(one: Peculiarity) -> bool:
    """Whether an external unix socket is one that criu connects anew by its path: datagrams to a name, as syslog's."""
    return one.kind == "external-unix" and one.detail == "dgram" and one.object.startswith("/")
