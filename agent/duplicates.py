"""Who else has an address that is to come to this host: asked on the link, as duplicate address detection does.

Owns the two questions, byte by byte: an ARP probe (RFC 5227, 2.1.1), whose sender's address is 0.0.0.0 so that nobody
learns anything from it; a neighbour solicitation from `::` to the address's own group (RFC 4862, 5.4.2). The source
answers as well; whose an answer is, is for whoever has asked to tell.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from typing import Optional

from agent.announce import ARP, ETHERNET, EVERYBODY, IPV6, checksum, hardware_of
from agent.protocol import Floating, Heard

_SECONDS = 0.6
"""For which answers are waited for; a link of today answers within a few ms."""
_PROBES = 3
"""How often is asked, evenly: the first one may fall to whatever the link is at."""
_REQUEST, _SOLICITATION, _ADVERTISEMENT = 1, 135, 136
_NOBODY = b"\0" * 16
_GROUP, _GROUP_ETHERNET = socket.inet_pton(socket.AF_INET6, "ff02::1:ff00:0")[:13], b"\x33\x33\xff"
_SNAP = 1 << 16


def question(address: str, hardware: bytes) -> bytes:
    """The Ethernet frame from this hardware address that asks who has the address."""
    if ":" not in address:
        body = struct.pack("!HHBBH", ETHERNET, 0x0800, 6, 4, _REQUEST) + hardware + b"\0" * 10
        return EVERYBODY + hardware + struct.pack("!H", ARP) + body + socket.inet_aton(address)
    packed = socket.inet_pton(socket.AF_INET6, address)
    to, length = _GROUP + packed[13:], 24
    pseudo = _NOBODY + to + struct.pack("!II", length, socket.IPPROTO_ICMPV6)
    blank = struct.pack("!BBHI", _SOLICITATION, 0, 0, 0) + packed
    message = struct.pack("!BBHI", _SOLICITATION, 0, checksum(pseudo + blank), 0) + packed
    head = struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_ICMPV6, 255) + _NOBODY + to
    return _GROUP_ETHERNET + packed[13:] + hardware + struct.pack("!H", IPV6) + head + message


def answer(address: str, frame: bytes) -> Optional[bytes]:
    """The hardware address of whoever says in this frame that the address is his; None where nobody does."""
    if ":" not in address:
        # whatever is sent from an address by ARP says whose it is, a question of his own too
        its = len(frame) >= 42 and frame[12:14] == struct.pack("!H", ARP) and frame[28:32] == socket.inet_aton(address)
        return frame[22:28] if its else None
    packed = socket.inet_pton(socket.AF_INET6, address)
    kind = len(frame) >= 78 and frame[12:14] == struct.pack("!H", IPV6) and frame[20] == socket.IPPROTO_ICMPV6
    return frame[6:12] if kind and frame[54] == _ADVERTISEMENT and frame[62:78] == packed else None


def heard(wanted: Iterable[Floating], seconds: float = _SECONDS) -> tuple[Heard, ...]:
    """Everybody who says within so many seconds that one of these addresses is his. Blocks for so long.

    Nobody is asked where there is no Ethernet to ask on: an interface that is missing, or has no hardware address.
    """
    asked = []
    with contextlib.ExitStack() as stack:
        for one in wanted:
            with contextlib.suppress(OSError, ValueError):
                if (hardware := hardware_of(one.interface)) is None:
                    continue
                raw = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
                raw.bind((one.interface, IPV6 if ":" in one.address else ARP))
                asked.append((one.address, raw, question(one.address, hardware), hardware))
        found = list(_ask(asked, seconds)) if asked else []
    return tuple(dict.fromkeys(found))


def _ask(asked: list[tuple[str, socket.socket, bytes, bytes]], seconds: float) -> Iterator[Heard]:
    began, sent = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        if passed >= sent * seconds / _PROBES:
            sent += 1
            for _, raw, frame, _ in asked:
                with contextlib.suppress(OSError):  # a link that is down has nobody on it
                    raw.send(frame)
        until = min(seconds, sent * seconds / _PROBES) - (time.monotonic() - began)
        ready, _, _ = select.select([raw for _, raw, _, _ in asked], [], [], max(0.0, until))
        for address, raw, _, ours in asked:
            if raw in ready:
                his = answer(address, raw.recv(_SNAP))
                if his is not None and his != ours:
                    yield Heard(address, his.hex(":"))
