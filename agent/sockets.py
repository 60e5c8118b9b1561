"""Whom a tree talks to: its sockets by inode, as /proc/PID/net and sock_diag(7) tell, and who else holds its pipes.

Looks only. Tables are those of the network namespace of the process that is asked about; sock_diag answers for our own.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
import sys
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Union

CLOSE, LISTEN = 7, 10
TCP_STATES = {
    1: "established", 2: "syn-sent", 3: "syn-recv", 4: "fin-wait-1", 5: "fin-wait-2", 6: "time-wait", 7: "close",
    8: "close-wait", 9: "last-ack", 10: "listen", 11: "closing",
}  # fmt: skip
"""include/net/tcp_states.h"""

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3
_ANY = 0xFFFFFFFF
_SHOW_NAME, _SHOW_PEER, _SHOW_ICONS, _SHOW_QUEUES = 1, 4, 8, 16
_INET_MESSAGE, _ATTRIBUTE_V6ONLY = 72, 11  # include/uapi/linux/inet_diag.h
_ATTRIBUTE_NAME, _ATTRIBUTE_PEER, _ATTRIBUTE_ICONS, _ATTRIBUTE_QUEUES = 0, 2, 3, 4


@dataclasses.dataclass(frozen=True)
class Inet:
    """One line of /proc/net/{tcp,tcp6,udp,udp6}."""

    inode: int
    local: str  # 192.0.2.1:80, [2001:db8::1]:80
    remote: str
    state: int
    waiting: int = 0  # of one that listens: connections that wait to be accepted


@dataclasses.dataclass(frozen=True)
class Unix:
    """One unix socket."""

    inode: int
    type: int  # socket.SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET
    state: int  # of TCP_STATES
    peer: int  # inode; 0 where it is not connected
    name: str  # path, @abstract, or ""
    waiting: tuple[int, ...] = ()  # of one that listens: inodes of those that wait to be accepted
    unread: int = 0  # bytes that it has sent and nobody has read


def _address(text: bytes) -> str:
    """`0100007F:1F90`: the address as words of the machine's own byte order, the port as a number."""
    host, _, port = text.partition(b":")
    words = [int(host[start : start + 8], 16) for start in range(0, len(host), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(packed) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, packed)}:{int(port, 16)}"
    return f"[{socket.inet_ntop(socket.AF_INET6, packed)}]:{int(port, 16)}"


def parse_inet(table: bytes) -> Iterator[Inet]:
    """Sockets of a table that belong to a process; lines that are none are passed over."""
    for line in table.split(b"\n"):
        words = line.split()
        try:
            inode = int(words[9])
            if inode:
                state = int(words[3], 16)
                waiting = int(words[4].partition(b":")[2], 16) if state == LISTEN else 0
                yield Inet(inode, _address(words[1]), _address(words[2]), state, waiting)
        except (IndexError, ValueError, OSError, struct.error):
            continue


def inet(pid: Union[int, str], protocol: str) -> dict[int, Inet]:
    """Sockets of one protocol (tcp, udp) in a process's network namespace, by inode, IPv4 and IPv6."""
    found: dict[int, Inet] = {}
    for name in (protocol, f"{protocol}6"):
        try:
            with open(f"/proc/{pid}/net/{name}", "rb") as file:
                found.update((one.inode, one) for one in parse_inet(file.read()))
        except OSError:
            continue  # no IPv6 here, or the process is gone
    return found


def only_ipv6(protocol: str) -> set[int]:
    """Inodes of the bound sockets of IPv6 that leave IPv4 alone (IPV6_V6ONLY), in our network namespace.

    Empty where the kernel has no inet_diag: such a socket then counts as one that takes IPv4 as well.
    """
    number = socket.IPPROTO_TCP if protocol == "tcp" else socket.IPPROTO_UDP
    body = struct.pack("=BBBBI48x", socket.AF_INET6, number, 0, 0, 1 << LISTEN | 1 << CLOSE)
    return {inode for message in _dumped(body) for inode in parse_only_ipv6(message)}


def parse_only_ipv6(message: bytes) -> Iterator[int]:
    """The inode of the socket in a struct inet_diag_msg, if it is said to be of IPv6 only."""
    only = dict(_attributes(message[_INET_MESSAGE:])).get(_ATTRIBUTE_V6ONLY, b"")
    if only[:1] == b"\1":
        yield int.from_bytes(message[_INET_MESSAGE - 4 : _INET_MESSAGE], sys.byteorder)


def protocol_name(pid: int, fd: int) -> str:
    """What kind of socket a descriptor is, as the kernel names it: TCP, TCPv6, UDP, UNIX, NETLINK, PACKET, MPTCP, ALG…

    "" when it can't be told. Needed for what no table lists: a socket that is neither bound nor connected.
    """
    try:
        name = os.getxattr(f"/proc/{pid}/fd/{fd}", "system.sockprotoname")
    except OSError:
        return ""
    return name.rstrip(b"\0").decode("ascii", "replace")


def unix() -> dict[int, Unix]:
    """Unix sockets of our network namespace by inode; empty where the kernel has no unix_diag."""
    show = _SHOW_NAME | _SHOW_PEER | _SHOW_ICONS | _SHOW_QUEUES
    body = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _ANY, 0, show, _ANY, _ANY)
    return {one.inode: one for message in _dumped(body) for one in parse_unix(message)}


def _dumped(body: bytes) -> Iterator[bytes]:
    """The answers to one question of sock_diag(7), until they end or fail."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as asking:
            asking.settimeout(5)
            asking.send(struct.pack("=IHHII", 16 + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + body)
            more = True
            while more:
                more, messages = parse(asking.recv(1 << 18))
                yield from messages
    except OSError:
        return


def parse(data: bytes) -> tuple[bool, list[bytes]]:
    """Whether more is to come, and the messages in one datagram of netlink(7)."""
    found: list[bytes] = []
    position = 0
    while position + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, position)
        if kind in (_ERROR, _DONE) or length < 16:
            return False, found
        found.append(data[position + 16 : position + length])
        position += (length + 3) & ~3
    return position > 0, found


def parse_unix(message: bytes) -> Iterator[Unix]:
    """The socket in a struct unix_diag_msg; none where it is cut off."""
    if len(message) < 16:
        return
    _, type_, state, _, inode = struct.unpack_from("=BBBBI", message)
    attributes = dict(_attributes(message[16:]))
    peer = attributes.get(_ATTRIBUTE_PEER, b"")
    number = int.from_bytes(peer[:4], sys.byteorder) if len(peer) >= 4 else 0
    icons = attributes.get(_ATTRIBUTE_ICONS, b"")
    waiting = struct.unpack(f"={len(icons) // 4}I", icons[: len(icons) // 4 * 4])
    queues = attributes.get(_ATTRIBUTE_QUEUES, b"").ljust(8, b"\0")
    unread = 0 if state == LISTEN else int.from_bytes(queues[4:8], sys.byteorder)
    yield Unix(inode, type_, state, number, _unix_name(attributes.get(_ATTRIBUTE_NAME, b"")), waiting, unread)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, position)
        if length < 4:
            return
        yield kind, data[position + 4 : position + length]
        position += (length + 3) & ~3


def _unix_name(raw: bytes) -> str:
    if raw[:1] == b"\0":
        return "@" + os.fsdecode(raw[1:])
    return os.fsdecode(raw.split(b"\0")[0])


def holders(links: Container[str], besides: Container[int]) -> dict[str, list[int]]:
    """Which other processes hold these descriptors, by the text of the link (`pipe:[4711]`); one walk of /proc.

    `besides` are the tree's. A child that one of them has made meanwhile is the tree's too, and one that has ended
    holds nothing.
    """
    found: dict[str, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in besides:
            continue
        try:
            descriptors = os.listdir(f"/proc/{name}/fd")
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                link = os.readlink(f"/proc/{name}/fd/{descriptor}")
            except OSError:
                continue
            if link in links and int(name) not in found.setdefault(link, []):
                found[link].append(int(name))
    others = {link: [pid for pid in pids if _stranger(pid, besides)] for link, pids in found.items()}
    return {link: pids for link, pids in others.items() if pids}


def _stranger(pid: int, family: Container[int]) -> bool:
    """Whether a process lives and has no ancestor in this family."""
    first = pid
    while pid > 1:
        try:
            data = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return pid != first  # gone itself; an ancestor that is gone has left it to init
        pid = int(data.rpartition(b")")[2].split()[1])
        if pid in family:
            return False
    return True
