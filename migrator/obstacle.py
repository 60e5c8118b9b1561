"""What stands in the way of a migration: the words for it, and the table of a tree's oddities that criu cannot carry.

Owns the stable ids of what `agent/peculiar.py` finds. Judges one tree by itself, never two hosts: that is `plan.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from agent.protocol import Peculiarity


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """One thing that stands in the way. `id` is stable: scripts may rely on it."""

    id: str
    host: str
    object: str
    problem: str
    remedy: str
    stops: bool = True  # False: a warning, and the migration goes on


UNTOUCHABLE = ("self", "ancestor", "init", "kernel-thread")
"""Trees that were not even looked into: nothing else is to be said about them."""

# kind: id, problem, remedy; {object} and {detail} are the peculiarity's
_REFUSED = {
    "self": ("is-self", "is migrate's own process", "name the process that is to be moved"),
    "ancestor": (
        "is-ancestor",
        "is {detail}, which migrate itself runs under",
        "start migrate from another session: another login, or `systemd-run --pty migrate …`",
    ),
    "init": ("is-init", "is {detail}, the first process of this host", "name the process that is to be moved"),
    "kernel-thread": ("kernel-thread", "is the kernel's own thread {detail}", "name a process, not a kernel thread"),
    "zombie-leader": (
        "zombie-leader",
        "{detail}: its first thread has ended while others run, which criu refuses",
        "it can't be moved in this state; restart the program",
    ),
    "tracer": ("tracer", "is traced by {detail}", "detach a debugger or strace; wait for a criu"),
    "capability": (
        "capability",
        "is missing, and criu needs it to dump {detail}: this host seems to be a container",
        "run migrate where root has it, or give it to the container",
    ),
    "namespace": (
        "namespace",
        "{detail} runs in a {object} namespace of its own",
        "containers and sandboxes can't be moved; start the program outside of one",
    ),
    "unit": (
        "unit",
        "{detail} is the main process of this systemd unit, and systemd would start another one here",
        "units can't be moved yet: run the program outside of its unit, e.g. in a scope by `systemd-run --scope`",
    ),
    "link-remap": (
        "link-remap",
        "is held open, its name is gone, but other names of it remain, which criu can't carry to another host",
        "give the file its name back, or let the program close it",
    ),
    "device": ("device", "{detail}: what a device knows does not travel", "let the program close it"),
    "terminal": (
        "terminal",
        "{detail}",
        "start it without a terminal (`setsid PROGRAM </dev/null >LOG 2>&1`), or move the whole tmux or screen",
    ),
    "sysv-shm": (
        "sysv-shm",
        "System V shared memory belongs to the host, not to the tree",
        "let the program use mmap or POSIX shared memory",
    ),
    "io-uring": ("io-uring", "criu can't carry it", "switch it off in the program, or with kernel.io_uring_disabled"),
    "anon-inode": ("anon-inode", "a descriptor of this kind is refused by criu", "let the program close it"),
    "socket-kind": ("socket-kind", "sockets of this kind are refused by criu", "let the program close them"),
    "external-pipe": (
        "external-pipe",
        "its other end is held by {detail}, outside of the tree",
        "send it to a file instead, or move both by naming their common parent",
    ),
}  # fmt: skip


def of_oddities(host: str, oddities: Iterable[Peculiarity]) -> Iterator[Obstacle]:
    """What of a tree criu cannot carry. `host` is the source's name."""
    connections = []
    for one in oddities:
        if one.kind == "tcp-established":
            connections.append(one)
        elif one.kind == "external-unix" and not reconnects(one):
            yield Obstacle(
                "external-unix", host, one.object, f"a unix {one.detail} socket is connected to it, and it stays here",
                "let the program close the connection, or move both by naming their common parent",
            )  # fmt: skip
        elif one.kind in _REFUSED:
            name, problem, remedy = _REFUSED[one.kind]
            subject = f"pid {one.object}" if one.kind in (*UNTOUCHABLE, "zombie-leader") else one.object
            subject = f"pid {one.pid}" if one.kind == "tracer" else subject
            yield Obstacle(name, host, subject, problem.format(object=one.object, detail=one.detail), remedy)
    if connections:
        more = f" (and {len(connections) - 1} more)" if len(connections) > 1 else ""
        yield Obstacle(
            "tcp-established", host, connections[0].object + more, f"TCP connection, {connections[0].detail}",
            "connections can't be moved yet: let the program close them, and try again",
        )  # fmt: skip


def reconnects(one: Peculiarity) -> bool:
    """Whether an external unix socket is one that criu connects anew by its path: datagrams to a name, as syslog's."""
    return one.kind == "external-unix" and one.detail == "dgram" and one.object.startswith("/")
