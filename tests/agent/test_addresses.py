"""agent/addresses.py: real sockets of this process in the way of those of a tree."""

from __future__ import annotations

import os
import socket

import pytest

from agent import addresses
from agent.protocol import Address


def port(bound: socket.socket) -> int:
    """The port that it got."""
    return int(bound.getsockname()[1])


@pytest.mark.parametrize(("one", "other", "strict", "meet"), [
    ("10.0.0.1", "10.0.0.1", False, True), ("10.0.0.1", "10.0.0.2", False, False),
    ("0.0.0.0", "10.0.0.2", False, True), ("10.0.0.1", "0.0.0.0", False, True),
    ("::", "10.0.0.2", False, True), ("10.0.0.2", "::", False, True), ("::", "10.0.0.2", True, False),
    ("::1", "10.0.0.2", False, False), ("::", "::1", True, True), ("2001:db8::1", "2001:db8::2", False, False),
])  # fmt: skip
def test_which_addresses_get_in_each_others_way(one: str, other: str, strict: bool, meet: bool) -> None:
    assert addresses.overlap(one, other, strict=strict) is meet


def test_an_address_is_taken_apart() -> None:
    assert (addresses.host_of("192.0.2.1:80"), addresses.port_of("192.0.2.1:80")) == ("192.0.2.1", 80)
    assert (addresses.host_of("[2001:db8::1]:8080"), addresses.port_of("[::]:8080")) == ("2001:db8::1", 8080)
    assert addresses.host_of("[::ffff:192.0.2.1]:80") == "192.0.2.1"


def test_a_listening_socket_is_in_the_way_and_its_holder_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        asked = [Address("tcp", f"{host}:{port(taken)}") for host in ("127.0.0.1", "0.0.0.0", "[::]", "127.0.0.2")]
        asked.append(Address("udp", f"127.0.0.1:{port(taken)}"))
        answers = addresses.answers(asked)
        same, wild, _, other, udp = answers
    assert [(one.protocol, one.address) for one in answers] == [(one.protocol, one.address) for one in asked]
    assert f"(pid {os.getpid()})" in same.holder
    assert (same.listens, same.owned, bool(wild.holder)) == (True, True, True)
    assert (other.holder, udp.holder) == ("", "")
    # 0.0.0.0 is asked for as well: then the one for :: leaves IPv4 alone
    assert answers[2].holder == ""


def test_a_wildcard_of_ipv6_takes_ipv4_as_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (wild,) = addresses.answers([Address("tcp", f"[::]:{port(taken)}")])
    assert wild.holder


def test_a_udp_socket_is_in_the_way() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        (found,) = addresses.answers([Address("udp", f"0.0.0.0:{port(taken)}")])
        assert (bool(found.holder), found.listens) == (True, True)


def test_the_near_end_of_a_connection_does_not_listen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        (found,) = addresses.answers([Address("tcp", f"0.0.0.0:{port(near)}")])
    assert (bool(found.holder), found.listens) == (True, False)


def test_what_this_host_owns() -> None:
    assert addresses.owned("127.0.0.1")
    assert addresses.owned("0.0.0.0")
    assert addresses.owned("::")
    assert not addresses.owned("192.0.2.77")
    assert not addresses.owned("2001:db8::77")
    assert not addresses.owned("fe80::dead:beef")
    assert addresses.answers([]) == ()
