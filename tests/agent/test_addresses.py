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
        asked.append(Address("tcp", f"[::]:{port(taken)}", only_ipv6=True))
        answers = addresses.answers(asked)
        same, wild, wilder, other, udp, only = answers
    assert [(one.protocol, one.address) for one in answers] == [(one.protocol, one.address) for one in asked]
    assert f"(pid {os.getpid()})" in same.holder
    assert (same.listens, same.owned, bool(wild.holder)) == (True, True, True)
    assert wilder.holder, "a wildcard of IPv6 takes IPv4 as well"
    assert (other.holder, udp.holder, only.holder) == ("", "", "")


@pytest.mark.parametrize(("flag", "meet"), [(0, True), (1, False)])
def test_a_wildcard_of_ipv6_there_takes_ipv4_unless_it_says_otherwise(flag: int, meet: bool) -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, flag)
        taken.bind(("::", 0))
        taken.listen()
        (found,) = addresses.answers([Address("tcp", f"127.0.0.1:{port(taken)}")])
    assert bool(found.holder) is meet


@pytest.mark.parametrize(("kind", "option", "shared"), [
    (socket.SOCK_STREAM, socket.SO_REUSEPORT, True), (socket.SOCK_STREAM, socket.SO_REUSEADDR, False),
    (socket.SOCK_DGRAM, socket.SO_REUSEADDR, True), (socket.SOCK_DGRAM, socket.SO_REUSEPORT, True),
    (socket.SOCK_DGRAM, socket.SO_KEEPALIVE, False),
])  # fmt: skip
def test_a_socket_that_lets_others_have_its_port_is_known(kind: int, option: int, shared: bool) -> None:
    """As criu would find out: a second socket that is bound as criu binds it gets the port, or does not."""
    with socket.socket(type=kind) as taken, socket.socket(type=kind) as second:
        taken.setsockopt(socket.SOL_SOCKET, option, 1)
        taken.bind(("127.0.0.1", 0))
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == socket.SOCK_STREAM:
            taken.listen()
        protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
        (found,) = addresses.answers([Address(protocol, f"127.0.0.1:{port(taken)}")])
        assert (bool(found.holder), found.listens) == (True, True)
        may_ask = os.geteuid() == 0
        assert found.shared is (shared and may_ask)
        if shared:
            second.bind(taken.getsockname())
        else:
            with pytest.raises(OSError, match="in use"):
                second.bind(taken.getsockname())


def test_who_has_several_sockets_on_a_port_is_judged_by_the_worst() -> None:
    with socket.socket() as taken, socket.socket() as near:
        for one in (taken, near):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        near.bind(taken.getsockname())
        near.connect(taken.getsockname())
        (found,) = addresses.answers([Address("tcp", f"127.0.0.1:{port(taken)}")])
    assert (found.listens, bool(found.holder)) == (True, True)


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


def test_a_name_that_is_no_path_is_taken_by_a_socket_of_the_same_type() -> None:
    name = f"migrate-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as taken:
        taken.bind(f"\0{name}")
        asked = [Address("unix stream", f"@{name}"), Address("unix dgram", f"@{name}"), Address("tcp", "127.0.0.1:1")]
        stream, dgram, tcp = addresses.answers(asked)
    assert [one.protocol for one in (stream, dgram, tcp)] == ["unix stream", "unix dgram", "tcp"]
    assert (stream.holder, f"(pid {os.getpid()})" in dgram.holder) == ("", True)
