"""agent/announce.py: the frames, against what the RFCs say."""

from __future__ import annotations

import ipaddress
import struct

from agent import announce

HARDWARE = bytes.fromhex("0200c0000207")


def test_a_gratuitous_arp_asks_everybody_for_its_own_address() -> None:
    frame = announce.frame("192.0.2.7", HARDWARE)
    assert frame[:12] == b"\xff" * 6 + HARDWARE
    assert frame[12:22] == bytes.fromhex("08060001080006040001")
    address = ipaddress.ip_address("192.0.2.7").packed
    assert frame[22:] == HARDWARE + address + bytes(6) + address


def test_an_advertisement_overrides_what_is_known() -> None:
    frame = announce.frame("2001:db8::7", HARDWARE)
    address, everybody = (ipaddress.ip_address(word).packed for word in ("2001:db8::7", "ff02::1"))
    assert frame[:14] == bytes.fromhex("333300000001") + HARDWARE + bytes.fromhex("86dd")
    head, message = frame[14:54], frame[54:]
    assert head[6:] == bytes([58, 255]) + address + everybody  # ICMPv6; a hop limit of 255, or it is not believed
    assert message[0] == 136
    assert message[4] & 0x20  # override
    assert message[8:24] == address
    assert message[24:] == b"\x02\x01" + HARDWARE
    assert struct.unpack("!H", head[4:6]) == (len(message),)
    pseudo = address + everybody + struct.pack("!II", len(message), 58)
    words = struct.unpack(f"!{len(pseudo + message) // 2}H", pseudo + message)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF  # what a receiver computes over it, the checksum included
