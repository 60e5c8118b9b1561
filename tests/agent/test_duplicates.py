"""agent/duplicates.py: who else has an address; the frames, and what is heard of them."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from agent import announce, duplicates
from agent.protocol import Floating

OURS, HIS = bytes.fromhex("0200c0000207"), bytes.fromhex("0200c0000209")
V4, V6 = "192.0.2.7", "2001:db8::7"


def test_an_arp_probe_tells_nobody_anything() -> None:
    frame = duplicates.question(V4, OURS)
    assert frame[:14] == b"\xff" * 6 + OURS + b"\x08\x06"
    assert frame[20:22] == b"\x00\x01"
    assert frame[22:28] == OURS
    assert frame[28:38] == bytes(10)  # from nobody's address, RFC 5227
    assert frame[38:] == ipaddress.ip_address(V4).packed


def test_a_solicitation_goes_to_the_group_of_the_address() -> None:
    frame = duplicates.question(V6, OURS)
    address, group = ipaddress.ip_address(V6).packed, ipaddress.ip_address("ff02::1:ff00:7").packed
    assert frame[:14] == bytes.fromhex("3333ff000007") + OURS + b"\x86\xdd"
    head, message = frame[14:54], frame[54:]
    assert head[6:] == bytes([58, 255]) + bytes(16) + group
    assert (message[0], message[8:]) == (135, address)
    assert struct.unpack("!H", head[4:6]) == (len(message),)
    pseudo = bytes(16) + group + struct.pack("!II", len(message), 58)
    assert announce.checksum(pseudo + message) == 0  # with the checksum in it


@pytest.mark.parametrize("address", [V4, V6])
def test_whoever_speaks_for_the_address_is_heard(address: str) -> None:
    said = announce.frame(address, HIS)
    assert duplicates.answer(address, said) == HIS
    other = "192.0.2.9" if address == V4 else "2001:db8::9"
    assert duplicates.answer(other, said) is None
    assert duplicates.answer(V6 if address == V4 else V4, said) is None
    assert duplicates.answer(address, duplicates.question(address, HIS)) is None
    for length in range(len(said) - 8):
        assert duplicates.answer(address, said[:length]) in (None, HIS)


def test_nobody_is_asked_where_there_is_no_ethernet() -> None:
    missing = Floating(V4, 24, "none0"), Floating("127.0.0.1", 8, "lo")
    assert duplicates.heard(missing, 0.01) == ()
