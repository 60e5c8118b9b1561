"""criu's rules are told from everybody else's in what iptables saves, and nothing is loaded to look for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import iptables, leftovers
from agent.settings import Settings

SAVED = """\
*mangle
-A INPUT -p tcp -m mark ! --mark 0xc114 -j DROP
COMMIT
*filter
:INPUT ACCEPT [12:816]
:OUTPUT ACCEPT [10:904]
-A INPUT -s 10.77.0.9/32 -d 10.77.0.2/32 -p tcp -m mark ! --mark 0xc114 -m tcp --sport 4711 --dport 80 -j DROP
-A INPUT -s 10.77.0.9/32 -p tcp -m tcp --dport 22 -j DROP
-A INPUT -p tcp -m mark ! --mark 0xc115 -j DROP
-A OUTPUT -s 10.77.0.2/32 -d 10.77.0.9/32 -p tcp -m mark ! --mark 0xc114 -m tcp --sport 80 --dport 4711 -j DROP
COMMIT
"""
INTO = "INPUT -s 10.77.0.9/32 -d 10.77.0.2/32 -p tcp -m mark ! --mark 0xc114 -m tcp --sport 4711 --dport 80 -j DROP"
OUT = "OUTPUT -s 10.77.0.2/32 -d 10.77.0.9/32 -p tcp -m mark ! --mark 0xc114 -m tcp --sport 80 --dport 4711 -j DROP"
NAMESPACE = """\
*filter
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:CRIU - [0:0]
-A INPUT -j CRIU
-A OUTPUT -j CRIU
-A CRIU -m mark --mark 0xc114 -j ACCEPT
-A CRIU -j DROP
COMMIT
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for the programs there are; the kernel has a table."""
    place = tmp_path / "sbin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")
    monkeypatch.setattr(iptables, "NFTABLES", tmp_path)
    return place


def saves(place: Path, program: str, text: str) -> None:
    """Have a program of this name that saves this."""
    path = place / f"{program}-save"
    path.write_text(f'#!/bin/sh\n[ "$*" = "" ] || exit 2\ncat <<"END"\n{text}END\n')
    path.chmod(0o755)


def test_the_lock_on_a_connection(programs: Path) -> None:
    saves(programs, "iptables", SAVED)
    saves(programs, "iptables-legacy", SAVED)
    assert list(iptables.left()) == [
        (f"iptables {rule}", "holds a connection still", f"iptables -D {rule}") for rule in (INTO, OUT)
    ]


def test_two_kinds_of_tables_and_two_families(programs: Path) -> None:
    saves(programs, "iptables", "*filter\nCOMMIT\n")
    saves(programs, "iptables-legacy", SAVED)
    saves(programs, "ip6tables", SAVED)
    removes = [remove.split(" -D ")[0] for _, _, remove in iptables.left()]
    assert removes == ["ip6tables", "ip6tables", "iptables-legacy", "iptables-legacy"]


def test_the_lock_on_a_network_namespace(programs: Path) -> None:
    saves(programs, "iptables", NAMESPACE)
    chain, *jumps = iptables.left()
    assert chain[0] == "iptables chain CRIU"
    assert chain[2].endswith("iptables -F CRIU && iptables -X CRIU")
    assert [what for what, _, _ in jumps] == ["iptables INPUT -j CRIU", "iptables OUTPUT -j CRIU"]


def test_they_are_left_over(programs: Path, tmp_path: Path) -> None:
    saves(programs, "iptables", SAVED)
    items = leftovers.find(Settings(tmp_path / "state", tmp_path / "run")).items
    assert {item.remove for item in items if item.kind == "rule"} >= {f"iptables -D {INTO}", f"iptables -D {OUT}"}


@pytest.mark.parametrize(
    ("module", "names", "asked"),
    [("nf_tables.ko.xz", "nat\n", False), ("nf_tables.ko", "nat\nfilter\n", True), ("built-in", "", True)],
)
def test_where_no_table_is_loaded_nobody_is_asked(
    programs: Path, tmp_path: Path, module: str, names: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves(programs, "iptables", SAVED)
    (tmp_path / "names").write_text(names)
    place = tmp_path / os.uname().release / "kernel/net/netfilter"
    place.mkdir(parents=True)
    (place / module).touch()
    monkeypatch.setattr(iptables, "MODULES", tmp_path)
    monkeypatch.setattr(iptables, "NFTABLES", tmp_path / "none")
    monkeypatch.setattr(iptables, "LOADED", (tmp_path / "none", tmp_path / "names"))
    assert len(list(iptables.left())) == (2 if asked else 0)
