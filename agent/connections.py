"""Whom a tree talks to, as far as that is odd: its sockets and pipes. `peculiar.py` says what each kind means.

Asks `sockets.py` for the kernel's tables; judges nothing.
"""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator, Sequence

from agent import journald, ports, sockets
from agent.descriptors import Holdings, Opened, names_of
from agent.protocol import Peculiarity, TaskFacts

# criu/sk-inet.c, can_dump_ipproto; criu/sockets.c, dump_socket
_INET_KNOWN = {"TCP", "UDP", "UDP-LITE", "UDPLITE", "RAW", "PING"}
_OTHER_KNOWN = {"UNIX", "UNIX-STREAM", "UNIX-DGRAM", "UNIX-SEQPACKET", "NETLINK", "PACKET"}
_TYPES = {int(socket.SOCK_STREAM): "stream", int(socket.SOCK_DGRAM): "dgram", int(socket.SOCK_SEQPACKET): "seqpacket"}
_INET_REFUSED = {"MPTCP", "SCTP", "DCCP", "L2TP/IP", "SMC", "SMC6"}


def _held(holdings: Holdings, kind: int) -> dict[int, Opened]:
    """Descriptors of one kind by inode, each by the first process that holds it."""
    found: dict[int, Opened] = {}
    for one in holdings.opened:
        if stat.S_IFMT(one.status.st_mode) == kind:
            found.setdefault(one.inode, one)
    return found


def of_sockets(tasks: Sequence[TaskFacts], holdings: Holdings) -> Iterator[Peculiarity]:
    """Sockets of IP and of kinds that criu refuses, and the addresses that they are bound to."""
    held = _held(holdings, stat.S_IFSOCK)
    if not held:
        return
    tcp, only_ipv6 = sockets.inet(tasks[0].pid, "tcp"), sockets.only_ipv6("tcp")
    count = 0
    for inode, one in held.items():
        name = sockets.protocol_name(one.pid, one.fd)
        bare = name[:-2] if name.endswith("v6") else name
        bare = bare.upper()
        if bare in _INET_KNOWN or bare in _INET_REFUSED or inode in tcp:
            count += 1
        if name and bare not in _INET_KNOWN and bare not in _OTHER_KNOWN:
            yield Peculiarity("socket-kind", one.pid, name)
        known = tcp.get(inode)
        if known is not None and known.state == sockets.LISTEN:
            yield Peculiarity("listen", one.pid, known.local, _manner(one, inode in only_ipv6))
            if known.waiting:  # criu/sk-inet.c: "In-flight connection"
                yield Peculiarity("tcp-established", one.pid, known.local, "waits to be accepted")
        elif known is not None and sockets.TCP_STATES.get(known.state) != "close":
            pair = f"{known.local} -> {known.remote}"
            yield Peculiarity("tcp-established", one.pid, pair, sockets.TCP_STATES.get(known.state, "connected"))
    udp = {inode: bound for inode, bound in sockets.inet(tasks[0].pid, "udp").items() if inode in held}
    only_ipv6 = sockets.only_ipv6("udp") if udp else set()
    for inode, bound in udp.items():
        one = held[inode]
        yield Peculiarity("receive", one.pid, bound.local, _manner(one, inode in only_ipv6))
    if count:
        yield Peculiarity("inet-socket", tasks[0].pid, "IP sockets", str(count))


def _manner(one: Opened, only_ipv6: bool) -> str:
    """How a bound socket takes its port, in words of the protocol's Address."""
    shared = ports.shared(one.pid, one.fd)
    return " ".join(word for word, holds in (("only-ipv6", only_ipv6), ("shared", shared)) if holds)


def of_unix(holdings: Holdings) -> Iterator[Peculiarity]:
    """Unix sockets that are connected to the outside, wait to be accepted, or have a path or a name."""
    held = _held(holdings, stat.S_IFSOCK)
    if not held:
        return
    known = sockets.unix()
    # one that waits to be accepted has no peer yet: the listening socket knows it
    waiting = {inode: listening.inode for listening in known.values() for inode in listening.waiting}
    peers = dict(waiting)
    peers.update((inode, known[inode].peer) for inode in held if inode in known and known[inode].peer)
    outside = {peers[inode] for inode in held if inode in peers} - set(held)
    holding = sockets.holders({f"socket:[{peer}]" for peer in outside}, {one.pid for one in holdings.opened})
    # a peer that only the tree itself holds was made since its descriptors were listed
    unheld = {peer for peer in outside if f"socket:[{peer}]" not in holding}
    new = sockets.holders({f"socket:[{peer}]" for peer in unheld}, ())
    outside -= {peer for peer in unheld if f"socket:[{peer}]" in new}
    for inode, one in held.items():
        if inode not in known:
            continue
        peer = peers.get(inode, 0)
        if peer in outside:
            name = known[peer].name if peer in known else ""
            if name == journald.SOCKET and known[inode].type == socket.SOCK_STREAM:
                yield Peculiarity("journal", one.pid, str(inode), journald.identifier(one.pid))
                continue
            kind = "dgram" if known[inode].type == socket.SOCK_DGRAM else "stream"
            whose = names_of(holding.get(f"socket:[{peer}]", []))
            yield Peculiarity("external-unix", one.pid, name or whose or f"socket {inode}", kind)
        elif inode in waiting and known[inode].unread:  # criu/sk-unix.c: "Non-empty write queue"
            yield Peculiarity("unix-waiting", one.pid, known[peer].name or f"socket {peer}")
        elif known[inode].name.startswith("@") and not peer:
            yield Peculiarity("unix-name", one.pid, known[inode].name, _TYPES.get(known[inode].type, ""))
        # what was accepted on a bound socket carries its name too; the path is that of the one without a peer
        elif known[inode].name.startswith("/") and not peer:
            if now := ports.moved_to(one.pid, one.fd, known[inode].name):
                yield Peculiarity("unix-moved", one.pid, now, known[inode].name)
            else:
                yield Peculiarity("unix-path", one.pid, known[inode].name)


def of_pipes(tasks: Sequence[TaskFacts], holdings: Holdings) -> Iterator[Peculiarity]:
    """Pipes and FIFOs that others hold too, and pipes that criu refuses."""
    held = {one.link: one for one in _held(holdings, stat.S_IFIFO).values()}
    if not held:
        return
    for one in holdings.opened:
        if one.direct and one.link.startswith("pipe:"):  # criu/pipes.c: "The packetized mode for pipes"
            yield Peculiarity("packet-pipe", one.pid, one.link)
    # criu would make such a pipe anew with nobody at the other end: a reader sees its end, a writer dies of SIGPIPE
    for link, pids in sockets.holders(held, {task.pid for task in tasks}).items():
        yield Peculiarity("external-pipe", held[link].pid, link, names_of(sorted(pids)))
