"""migrator/floating.py: what `--move-address` means, and what is in its way."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from agent.protocol import Address, Floating, Heard, HostAddress, HostFacts, Peculiarity, TargetCheck
from migrator import connections, floating
from migrator.floating import Wanted
from tests.migrator.test_plan import host

SOURCE = dataclasses.replace(
    host("alpha"), nft=True, net_admin=True,
    addresses=(
        HostAddress("", 0, "dummy0"),
        HostAddress("10.0.0.1", 24, "eth0"),
        HostAddress("192.0.2.1", 24, "eth1"), HostAddress("192.0.2.7", 24, "eth1", secondary=True),
        HostAddress("2001:db8::7", 64, "eth1"),
    ),
)  # fmt: skip
TARGET = dataclasses.replace(
    SOURCE,
    addresses=(HostAddress("10.0.0.2", 24, "ens1"), HostAddress("192.0.2.2", 24, "ens2"), HostAddress("", 0, "ens3")),
    session=("10.0.0.1", "10.0.0.2"),
)


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("192.0.2.7", Wanted("192.0.2.7")),
        ("192.0.2.7/32", Wanted("192.0.2.7", 32)),
        ("192.0.2.7@eth1", Wanted("192.0.2.7", 0, "eth1", "eth1")),
        ("192.0.2.7/24@eth1:br0.5", Wanted("192.0.2.7", 24, "eth1", "br0.5")),
        ("2001:DB8:0::7/64@a:b", Wanted("2001:db8::7", 64, "a", "b")),
    ],
)
def test_a_word_is_understood(word: str, wanted: Wanted) -> None:
    assert floating.parse(word) == wanted


@pytest.mark.parametrize(
    "word",
    ["", "x", "1.2.3", "1.2.3.4/33", "1.2.3.4/0", "::7/129", "1.2.3.4@", "1.2.3.4@a:", "1.2.3.4@a:b:c", "1.2.3.4@a b",
     "127.0.0.1", "::1", "fe80::1", "0.0.0.0", "224.0.0.1", "1.2.3.4/", "1.2.3.4\n"],
)  # fmt: skip
def test_what_is_no_address_that_can_move_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        floating.parse(word)


def resolve(*words: str, **facts: Any) -> tuple[floating.Move, list[str]]:
    """What moves, and the ids of what is in the way."""
    source: HostFacts = facts.get("source", SOURCE)
    target: HostFacts = facts.get("target", TARGET)
    move, obstacles = floating.resolve("a", source, "b", target, map(floating.parse, words))
    return move, [one.id for one in obstacles]


def test_it_goes_where_the_same_subnet_is() -> None:
    move, obstacles = resolve("192.0.2.7")
    assert obstacles == []
    assert move.here == (Floating("192.0.2.7", 24, "eth1"),)
    assert move.there == (Floating("192.0.2.7", 24, "ens2"),)


def test_or_where_it_is_told_to_with_the_prefix_it_is_told() -> None:
    move, obstacles = resolve("192.0.2.7/32@eth1:ens3")
    assert obstacles == []
    assert move.here == (Floating("192.0.2.7", 24, "eth1"),)
    assert move.there == (Floating("192.0.2.7", 32, "ens3"),)


def odd(object_: str, kind: str = "listen") -> Peculiarity:
    """A socket."""
    return Peculiarity(kind, 1, object_)


@pytest.mark.parametrize(
    ("socket", "addresses"),
    [
        (odd("192.0.2.7:80"), ["192.0.2.7"]),
        (odd("192.0.2.7:80", "receive"), ["192.0.2.7"]),
        (odd("192.0.2.7:80 -> 198.51.100.1:5000", "tcp-established"), ["192.0.2.7"]),
        (odd("[2001:db8::7]:80"), ["2001:db8::7"]),
        (odd("[2001:db8::1]:80"), []),
        (odd("192.0.2.1:80"), []),
        (odd("10.0.0.1:80"), []),
        (odd("0.0.0.0:80"), []),
        (odd("127.0.0.2:80"), []),
        (odd("[fe80::2]:80"), []),
        (odd("198.51.100.9:80"), []),
        (odd("[2001:db8::9]:80"), []),
        (odd("192.0.2.7:80", "unix-path"), []),
    ],
)
def test_auto_takes_what_a_socket_is_bound_to_but_not_the_hosts_own(socket: Peculiarity, addresses: list[str]) -> None:
    """eth1's oldest is 192.0.2.1, and 2001:db8::1: the kernel lists IPv6 the other way round."""
    more = ("127.0.0.1", "lo"), ("127.0.0.2", "lo"), ("2001:db8::1", "eth1"), ("fe80::1", "eth1"), ("fe80::2", "eth1")
    lent = HostAddress("2001:db8::9", 64, "eth1", lent=True)
    found = (lent, *SOURCE.addresses, *(HostAddress(address, 64, where) for address, where in more))
    source = dataclasses.replace(SOURCE, addresses=found)
    asked = floating.chosen(source, TARGET, [floating.parse("auto")], [socket])
    assert [one.address for one in asked] == addresses


def test_auto_goes_with_others_and_says_what_it_has_come_to() -> None:
    wanted = [floating.parse("192.0.2.7/32@eth1:ens3"), floating.AUTO]
    assert floating.chosen(SOURCE, TARGET, wanted, [odd("192.0.2.7:80")]) == (wanted[0],)
    move, _ = resolve("192.0.2.7")
    assert list(floating.notes(wanted, move)) == ["--move-address auto: 192.0.2.7 moves along"]
    assert list(floating.notes([floating.AUTO], floating.NOTHING)) == ["--move-address auto: no address moves along"]
    assert list(floating.notes(wanted[:1], move)) == []


HERE_TOO = dataclasses.replace(TARGET, addresses=(*TARGET.addresses, HostAddress("192.0.2.7", 32, "lo")))
TWO = dataclasses.replace(TARGET, addresses=(*TARGET.addresses, HostAddress("192.0.2.3", 24, "ens3")))


@pytest.mark.parametrize(
    ("word", "facts", "expected"),
    [
        ("192.0.2.9", {}, "move-not-here"),
        ("192.0.2.7@eth0:ens2", {}, "move-not-here"),
        ("192.0.2.7@eth1:ens9", {}, "move-interface"),
        ("2001:db8::7", {}, "move-interface"),
        ("192.0.2.7", {"target": TWO}, "move-interface"),
        ("192.0.2.7", {"target": HERE_TOO}, "move-there"),
        ("192.0.2.1", {}, "move-primary"),
        ("10.0.0.1", {}, "move-session"),
        ("192.0.2.7", {"source": dataclasses.replace(SOURCE, net_admin=False)}, "no-net-admin"),
        ("192.0.2.7", {"target": dataclasses.replace(TARGET, nft=False)}, "move-program"),
        ("192.0.2.7", {"source": dataclasses.replace(SOURCE, addresses=())}, "move-program"),
    ],
)
def test_what_is_in_the_way_is_named(word: str, facts: dict[str, Any], expected: str) -> None:
    assert expected in resolve(word, **facts)[1]


def test_iptables_will_do_where_there_is_no_nft() -> None:
    old = dataclasses.replace(TARGET, nft=False, iptables=True)
    assert resolve("192.0.2.7", target=old)[1] == []


def test_where_nothing_moves_nothing_is_needed() -> None:
    bare = dataclasses.replace(SOURCE, addresses=(), nft=False, net_admin=False)
    assert resolve(source=bare, target=bare) == (floating.NOTHING, [])


@pytest.mark.parametrize(
    ("pair", "detail", "goes"),
    [
        ("192.0.2.7:80 -> 198.51.100.1:5000", "established", True),
        ("[::ffff:192.0.2.7]:80 -> [::ffff:198.51.100.1]:5000", "established", True),
        ("192.0.2.1:80 -> 192.0.2.7:5000", "established", False),
        ("192.0.2.7:80", floating.WAITS, False),
    ],
)
def test_connections_go_along_with_their_near_end(pair: str, detail: str, goes: bool) -> None:
    move, _ = resolve("192.0.2.7")
    assert floating.go_along(Peculiarity("tcp-established", 1, pair, detail), move) is goes


def test_a_socket_on_an_address_that_moves_will_have_it_there() -> None:
    move, _ = resolve("192.0.2.7")
    asked = tuple(Address("tcp", where, owned=False) for where in ("192.0.2.7:80", "192.0.2.1:80"))
    then = floating.owned_then(TargetCheck((), (), 0, 0, addresses=asked), move)
    assert [one.owned for one in then.addresses] == [True, False]


def test_a_third_host_that_has_it_is_named() -> None:
    source = dataclasses.replace(SOURCE, hardware=("02:00:00:00:00:01",))
    heard = [Heard("192.0.2.7", "02:00:00:00:00:01"), Heard("192.0.2.7", "02:00:00:00:00:03")]
    (found,) = floating.elsewhere("b", source, heard)
    assert (found.id, found.object, found.stops) == ("move-elsewhere", "192.0.2.7", True)
    assert "02:00:00:00:00:03" in found.problem


BOUND, PAIR = "192.0.2.7:80", "192.0.2.7:80 -> 198.51.100.1:5000"


@pytest.mark.parametrize(
    ("socket", "moves", "tcp", "fate"),
    [
        (odd(BOUND), True, "fail", f"tcp {BOUND} listens: a drops new connections"),
        (odd(BOUND), False, "fail", f"tcp {BOUND} listens: on b as on a"),
        (odd(BOUND, "receive"), True, "fail", f"udp {BOUND} receives: on b as on a, together with its address"),
        (odd(BOUND, "receive"), False, "fail", f"udp {BOUND} receives: on b as on a, but no address goes along"),
        (odd(PAIR, "tcp-established"), True, "fail", f"tcp {PAIR} goes along"),
        (odd(PAIR, "tcp-established"), False, "fail", f"tcp {PAIR} stays on a"),
        (odd(PAIR, "tcp-established"), True, "close", f"tcp {PAIR} is closed"),
        (Peculiarity("tcp-established", 1, BOUND, floating.WAITS), True, "fail", f"tcp {BOUND} stays on a"),
    ],
)
def test_every_socket_has_its_fate(socket: Peculiarity, moves: bool, tcp: str, fate: str) -> None:
    move, _ = resolve(*(["192.0.2.7"] if moves else []))
    (line,) = connections.fates("a", "b", [socket, odd("/run/x", "unix-path")], move, tcp)
    assert line.startswith(f"pid 1: {fate}")
