"""Whether the addresses and ports of a tree's sockets are to be had on this host. Looks only: nothing is bound to them.

What another socket takes of an address family and of its port is asked of the kernel and of that socket: `sockets.py`
knows which are of IPv6 only, `ports.py` which let others have the port too.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterable, Mapping, Sequence

from agent import ports, sockets
from agent.descriptors import name_of
from agent.protocol import Address

_WILD = {"0.0.0.0", "::"}  # noqa: S104  compared, never bound
_MAPPED = "::ffff:"
_UNIX = "unix "
_TYPES = {"stream": socket.SOCK_STREAM, "dgram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}


def answers(asked: Iterable[Address]) -> tuple[Address, ...]:
    """For each: whether this host owns the address, and who has the port here, where somebody has."""
    everything = tuple(asked)
    wanted = [one for one in everything if not one.protocol.startswith(_UNIX)]
    protocols = {one.protocol for one in wanted}
    tables = {protocol: _by_port(protocol) for protocol in protocols}
    only_ipv6 = {inode for protocol in protocols for inode in sockets.only_ipv6(protocol)}
    found: list[list[sockets.Inet]] = []
    for one in wanted:
        others = tables[one.protocol].get(port_of(one.address), [])
        found.append([other for other in others if _meet(one, other, other.inode in only_ipv6)])
    holding = {}
    if inodes := {f"socket:[{other.inode}]" for others in found for other in others}:
        holding = sockets.holders(inodes, ())
    answered = {one: _answer(one, others, holding) for one, others in zip(wanted, found)}
    answered.update(_names([one for one in everything if one not in answered]))
    return tuple(answered[one] for one in everything)


def _names(asked: Sequence[Address]) -> dict[Address, Address]:
    """The same for names of unix sockets that lie in no directory; each type of socket has its own."""
    bound = {(one.name, one.type): one.inode for one in sockets.unix().values() if not one.peer} if asked else {}
    found = {}
    for one in asked:
        inode = bound.get((one.address, _TYPES.get(one.protocol[len(_UNIX) :], 0)))
        holders = sockets.holders({f"socket:[{inode}]"}, ()).get(f"socket:[{inode}]", []) if inode else []
        holder = (name_of(holders[0]) if holders else "another process") if inode else ""
        found[one] = Address(one.protocol, one.address, holder=holder, listens=bool(inode))
    return found


def _answer(one: Address, others: list[sockets.Inet], holding: Mapping[str, Sequence[int]]) -> Address:
    free = Address(one.protocol, one.address, owned=owned(host_of(one.address)))
    if not others:
        return free
    judged = []
    for other in others:
        holders = holding.get(f"socket:[{other.inode}]", [])
        shared = bool(holders) and ports.shared(holders[0], ports.descriptor(holders[0], other.inode))
        listens = one.protocol == "udp" or other.state == sockets.LISTEN
        judged.append((not listens, shared, name_of(holders[0]) if holders else "another process"))
    near_end, shared, holder = min(judged)  # the worst first: who listens, and shares the port with nobody
    return dataclasses.replace(free, holder=holder, listens=not near_end, shared=shared)


def _meet(one: Address, other: sockets.Inet, only_ipv6: bool) -> bool:
    """Whether these two get in each other's way, the port being the same."""
    ours, theirs = host_of(one.address), host_of(other.local)
    return overlap(ours, theirs, strict=only_ipv6 if ":" in theirs else one.only_ipv6)


def _by_port(protocol: str) -> dict[int, list[sockets.Inet]]:
    found: dict[int, list[sockets.Inet]] = {}
    for one in sockets.inet("self", protocol).values():
        found.setdefault(port_of(one.local), []).append(one)
    return found


def host_of(address: str) -> str:
    """The host in `192.0.2.1:80` or `[2001:db8::1]:80`; an IPv4 address inside IPv6 as the IPv4 one."""
    host = address.rpartition(":")[0].strip("[]")
    return host[len(_MAPPED) :] if host.startswith(_MAPPED) and "." in host else host


def port_of(address: str) -> int:
    """The port in it."""
    return int(address.rpartition(":")[2])


def overlap(one: str, other: str, *, strict: bool = False) -> bool:
    """Whether sockets on two addresses with the same port get in each other's way. `strict`: IPv6's has no IPv4."""
    if (":" in one) == (":" in other):
        return one == other or one in _WILD or other in _WILD
    return not strict and "::" in (one, other)


def owned(host: str) -> bool:
    """Whether this host would bind a socket to that address: asked of the kernel, with no port."""
    if host in _WILD:
        return True
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if host.startswith("fe80:"):  # can be bound only together with an interface
        return host in _link_local()
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.bind((host, 0))
    except OSError:
        return False
    return True


def _link_local() -> set[str]:
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            return {socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0])) for line in file}
    except (OSError, ValueError, IndexError):
        return set()
