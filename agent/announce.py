"""Telling the neighbours where an address is now: a gratuitous ARP, or an unsolicited neighbour advertisement.

Owns the two frames, byte by byte (RFC 826 and 5227; RFC 4861, 4.4 and 7.2.6), so that a target needs no program for it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Optional

ARP, IPV6 = 0x0806, 0x86DD
EVERYBODY = b"\xff" * 6
_ALL_NODES = "ff02::1"
_ALL_NODES_ETHERNET = b"\x33\x33\x00\x00\x00\x01"
_ADVERTISEMENT, _OVERRIDE, _TARGET_LINK = 136, 0x20000000, 2
ETHERNET = 1


def frame(address: str, hardware: bytes) -> bytes:
    """The Ethernet frame that says that this address is at this hardware address."""
    if ":" in address:
        return _advertisement(socket.inet_pton(socket.AF_INET6, address), hardware)
    packed = socket.inet_aton(address)
    # a request for one's own address: all stacks take it for news, as they need not take a reply nobody asked for
    body = struct.pack("!HHBBH", ETHERNET, 0x0800, 6, 4, 1) + hardware + packed + b"\0" * 6 + packed
    return EVERYBODY + hardware + struct.pack("!H", ARP) + body


def _advertisement(address: bytes, hardware: bytes) -> bytes:
    """From the address to all nodes: the override flag makes them forget what they knew."""
    to = socket.inet_pton(socket.AF_INET6, _ALL_NODES)
    option = struct.pack("!BB", _TARGET_LINK, 1) + hardware
    length = 24 + len(option)
    pseudo = address + to + struct.pack("!II", length, socket.IPPROTO_ICMPV6)
    blank = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE) + address + option
    message = struct.pack("!BBHI", _ADVERTISEMENT, 0, checksum(pseudo + blank), _OVERRIDE) + address + option
    head = struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_ICMPV6, 255) + address + to
    return _ALL_NODES_ETHERNET + hardware + struct.pack("!H", IPV6) + head + message


def checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def hardware_of(interface: str) -> Optional[bytes]:
    """Its hardware address; None where it is no Ethernet. Raises OSError where there is no such interface."""
    hardware = bytes.fromhex(Path(f"/sys/class/net/{interface}/address").read_text().strip().replace(":", ""))
    return hardware if len(hardware) == 6 and any(hardware) else None  # that of `lo` is nothing but zeros


def hardware() -> tuple[str, ...]:
    """Those of all interfaces of this host."""
    found = set()
    for interface in os.listdir("/sys/class/net"):
        with contextlib.suppress(OSError, ValueError):  # it has gone meanwhile, or is no Ethernet
            found.add(hardware_of(interface))
    return tuple(sorted(one.hex(":") for one in found if one))


def announce(address: str, interface: str) -> None:
    """Say on this interface that the address is here. Does nothing where there is no Ethernet to say it on."""
    with contextlib.suppress(OSError, ValueError):
        if (hardware := hardware_of(interface)) is None:
            return
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((interface, 0))
            raw.send(frame(address, hardware))
