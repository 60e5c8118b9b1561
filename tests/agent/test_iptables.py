"""criu's rules are told from everybody else's in what iptables saves, and nothing is loaded to look for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import guard, iptables, leftovers
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
        (f"iptables {rule}", "holds a connection still", f"iptables -D {rule}", "") for rule in (INTO, OUT)
    ]


def test_two_kinds_of_tables_and_two_families(programs: Path) -> None:
    saves(programs, "iptables", "*filter\nCOMMIT\n")
    saves(programs, "iptables-legacy", SAVED)
    saves(programs, "ip6tables", SAVED)
    removes = [remove.split(" -D ")[0] for _, _, remove, _ in iptables.left()]
    assert removes == ["ip6tables", "ip6tables", "iptables-legacy", "iptables-legacy"]


def test_the_lock_on_a_network_namespace(programs: Path) -> None:
    saves(programs, "iptables", NAMESPACE)
    chain, *jumps = iptables.left()
    assert chain[0] == "iptables chain CRIU"
    assert chain[2].endswith("iptables -F CRIU && iptables -X CRIU")
    assert [what for what, *_ in jumps] == ["iptables INPUT -j CRIU", "iptables OUTPUT -j CRIU"]


OURS = """\
*filter
:INPUT ACCEPT [0:0]
-A INPUT -d 192.0.2.7/32 -m comment --comment migrate-m -j DROP
-A INPUT -d 192.0.2.7/32 -m comment --comment migrate-mm -j DROP
-A INPUT -d 192.0.2.7/32 -m comment --comment ours -j DROP
-A OUTPUT -s 192.0.2.7/32 -m comment --comment migrate-m -j DROP
COMMIT
"""


class Called:
    """Programs that save what they are told to, and write down what they are asked for."""

    def __init__(self, place: Path, **saved: str) -> None:
        self._log = place / "log"
        self._log.touch()
        for program in iptables.OURS:
            saves(place, program, saved.get(program, "*filter\nCOMMIT\n"))
            for name in (program, f"{program}-restore"):
                (place / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{self._log}\n')
                (place / name).chmod(0o755)
            with (place / f"{program}-restore").open("a") as script:
                script.write(f"cat >>{self._log}\n")

    @property
    def acts(self) -> list[str]:
        """What was asked for, and the scripts."""
        return self._log.read_text().splitlines()


def test_a_guard_is_put_up_once(programs: Path) -> None:
    called = Called(programs, iptables=OURS)
    iptables.put_up("m", ["192.0.2.7", "2001:db8::7"], everything=True)
    assert called.acts == [
        "ip6tables -w -I INPUT -d 2001:db8::7/128 -m comment --comment migrate-m -j DROP",
        "ip6tables -w -I OUTPUT -s 2001:db8::7/128 -m comment --comment migrate-m -j DROP",
    ]


def test_a_guard_against_new_connections_lets_the_others_be(programs: Path) -> None:
    called = Called(programs)
    iptables.put_up("m", ["192.0.2.7"], everything=False)
    (act,) = called.acts
    assert "--tcp-flags FIN,SYN,RST,ACK SYN" in act


def test_only_the_guards_of_one_migration_go(programs: Path) -> None:
    called = Called(programs, iptables=OURS)
    assert iptables.take_away("m") == ""
    assert called.acts == [
        "iptables-restore -w --noflush",
        "*filter",
        "-D INPUT -d 192.0.2.7/32 -m comment --comment migrate-m -j DROP",
        "-D OUTPUT -s 192.0.2.7/32 -m comment --comment migrate-m -j DROP",
        "COMMIT",
    ]


LOG = (
    "(00.1) \tRunning iptables [iptables -w -t filter -I {} --protocol tcp -m mark ! --mark 0xC114 --source {} "
    "--sport {} --destination {} --dport {} -j DROP]\n"
)


def test_only_what_this_dump_has_put_up_goes(programs: Path, tmp_path: Path) -> None:
    """criu/netfilter.c: iptables_connection_switch_raw."""
    called = Called(programs, iptables=SAVED)
    log = tmp_path / "dump.log"
    assert iptables.unlock(log) == ""
    log.write_text(LOG.format("INPUT", "10.77.0.9", 4711, "10.77.0.2", 81))
    assert iptables.unlock(log) == ""
    assert called.acts == []
    with log.open("a") as more:
        more.write(LOG.format("INPUT", "10.77.0.9", 4711, "10.77.0.2", 80))
    assert iptables.unlock(log) == ""
    assert called.acts == ["iptables-restore -w --noflush", "*filter", f"-D {INTO}", "COMMIT"]


def test_what_is_refused_is_said(programs: Path) -> None:
    Called(programs, iptables=OURS)
    for name in ("iptables", "ip6tables", "iptables-restore"):
        (programs / name).write_text("#!/bin/sh\necho 'Permission denied' >&2; exit 4\n")
    with pytest.raises(iptables.IptablesError, match="Permission denied"):
        iptables.put_up("m", ["192.0.2.8"], everything=True)
    assert "2 rules of iptables: Permission denied" in iptables.take_away("m")


def test_a_host_without_nft_gets_its_guard_by_iptables(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "there", lambda: False)
    called = Called(programs)
    guard.put_up("m", ["192.0.2.7"], everything=True)
    assert [act.split()[3] for act in called.acts] == ["INPUT", "OUTPUT"]
    (programs / "iptables").write_text("#!/bin/sh\nexit 4\n")
    with pytest.raises(guard.GuardError, match="iptables: "):
        guard.put_up("m", ["192.0.2.7"], everything=True)
    called = Called(programs, iptables=OURS)
    assert guard.take_away("m") == ""
    assert "iptables-restore -w --noflush" in called.acts


def test_ours_are_left_over_with_their_migration(programs: Path, tmp_path: Path) -> None:
    saves(programs, "iptables", OURS)
    items = [one for one in leftovers.find(Settings(tmp_path / "state", tmp_path / "run")).items if one.kind == "rule"]
    assert [one.migration for one in items if one.what.startswith("iptables ")] == ["m", "mm", "m"]


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
