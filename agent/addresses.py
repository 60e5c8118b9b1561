"""Whether the addresses and ports of a tree's sockets are to be had on this host. Looks only: nothing is bound to them.

criu binds a restored socket with SO_REUSEADDR and SO_REUSEPORT set (criu/sk-inet.c, open_inet_sk). A listening socket
of another program on an overlapping address fails it all the same, and so does any UDP socket that has not set the one
or the other itself. The tables do not say whether it has; it is taken for one that has not.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from agent import sockets
from agent.peculiar import name_of
from agent.protocol import Address

_WILD = {"0.0.0.0", "::"}  # noqa: S104  compared, never bound
_MAPPED = "::ffff:"


def answers(asked: Iterable[Address]) -> tuple[Address, ...]:
    """For each: whether this host owns the address, and who has the port here, where somebody has."""
    wanted = tuple(asked)
    tables = {protocol: _by_port(protocol) for protocol in {one.protocol for one in wanted}}
    both = {(one.protocol, port_of(one.address)) for one in wanted if host_of(one.address) == "0.0.0.0"}  # noqa: S104
    found: list[tuple[Address, list[sockets.Inet]]] = []
    for one in wanted:
        host, port = host_of(one.address), port_of(one.address)
        others = tables[one.protocol].get(port, [])
        # a program with a socket for each family has told its IPv6 one to leave IPv4 alone
        strict = (one.protocol, port) in both or {"0.0.0.0", "::"} <= {host_of(other.local) for other in others}  # noqa: S104
        found.append((one, [other for other in others if overlap(host, host_of(other.local), strict=strict)]))
    holding = {}
    if inodes := {f"socket:[{other.inode}]" for _, others in found for other in others}:
        holding = sockets.holders(inodes, ())
    answered = []
    for one, others in found:
        others.sort(key=lambda other: other.state != sockets.LISTEN)
        holders = holding.get(f"socket:[{others[0].inode}]", []) if others else []
        answered.append(
            Address(
                one.protocol, one.address, owned=owned(host_of(one.address)),
                holder=(name_of(holders[0]) if holders else "another process") if others else "",
                listens=bool(others) and (one.protocol == "udp" or others[0].state == sockets.LISTEN),
            )
        )  # fmt: skip
    return tuple(answered)


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
    """Whether sockets on two addresses with the same port get in each other's way. `strict`: `::` has no IPv4."""
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
