"""agent/floating.py: addresses that move, on one host; the host's `ip` and nft are stand-ins."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from agent import announce, floating, guard, process, repair
from agent.journal import Journal, Record
from agent.protocol import Floating, HostAddress

ADDRESS = "192.0.2.7"


class Host:
    """What `ip` and nft did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.acts: list[str] = []
        self.addresses: list[str] = []
        self.tables: list[str] = []
        self.refuse = ""
        monkeypatch.setattr(floating, "_ip", self.ip)
        monkeypatch.setattr(floating, "of_host", lambda: tuple(HostAddress(one, 24, "eth0") for one in self.addresses))
        monkeypatch.setattr(guard, "put_up", self.put_up)
        monkeypatch.setattr(guard, "delete", self.delete)
        monkeypatch.setattr(guard, "there", lambda: True)
        monkeypatch.setattr(announce, "announce", lambda address, _: self.acts.append(f"announce {address}"))
        monkeypatch.setattr(repair, "end", self.repair)

    def ip(self, act: str, one: Floating) -> str:
        """Add or delete."""
        if self.refuse:
            return self.refuse
        self.acts.append(f"{act} {one.address}")
        (self.addresses.append if act == "add" else self.addresses.remove)(one.address)
        return ""

    def repair(self, pids: Iterable[int]) -> int:
        """Sockets out of repair mode."""
        self.acts.append(f"repair {sorted(pids)}")
        return 0

    def put_up(self, migration: str, addresses: list[str], *, everything: bool) -> None:
        """A guard."""
        self.acts.append(f"guard {'all' if everything else 'new'} {' '.join(addresses)}")

    def delete(self, table: str) -> str:
        """A table."""
        self.acts.append(f"no {table}")
        return ""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """This host."""
    return Host(monkeypatch)


def journal_of(folder: Path, role: str, moving: bool = True) -> Journal:
    """A journal that has begun."""
    lines = [[ADDRESS, 24, "eth0"]] if moving else []
    return Journal.create(
        folder, "20260102-030405-abcdef", role, peer="x", root=1, boot=process.boot_id(), floating=lines, tasks=[]
    )


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Journal]:
    """A target's."""
    journal = journal_of(tmp_path, "target")
    yield journal
    journal.close()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Journal]:
    """A source's."""
    journal = journal_of(tmp_path, "source")
    yield journal
    journal.close()


GUARD = "no migrate-20260102-030405-abcdef"


def test_the_guard_stands_before_the_address_appears(host: Host, target: Journal) -> None:
    floating.take(target)
    assert host.acts == [f"guard all {ADDRESS}", f"add {ADDRESS}"]
    floating.take(target, announced=True)  # as a restore that is done again does
    assert host.acts[2:] == [f"guard all {ADDRESS}", f"announce {ADDRESS}"]


def test_an_address_that_was_there_is_neither_taken_nor_ever_removed(host: Host, target: Journal) -> None:
    host.addresses = [ADDRESS]
    with pytest.raises(floating.AddressError, match="on this host already"):
        floating.take(target)
    target.write(Record.ABORT, reason="x")
    assert floating.over(target) == ()
    assert host.addresses == [ADDRESS]


def test_an_address_that_is_refused_says_why(host: Host, target: Journal) -> None:
    host.refuse = "Cannot find device"
    with pytest.raises(floating.AddressError, match="Cannot find device"):
        floating.take(target)


def test_undone_on_the_target_the_address_goes_before_the_guard(host: Host, target: Journal) -> None:
    floating.take(target)
    target.write(Record.ABORT, reason="x")
    host.acts.clear()
    assert floating.over(target) == ()
    assert host.acts == [f"delete {ADDRESS}", GUARD]


def test_once_it_runs_the_target_keeps_the_address(host: Host, target: Journal) -> None:
    floating.take(target)
    host.acts.clear()
    floating.opened(target)
    assert floating.over(target) == ()
    assert host.acts == [f"announce {ADDRESS}", GUARD, GUARD]
    assert host.addresses == [ADDRESS]


def test_the_source_gives_the_address_and_both_tables_up(host: Host, source: Journal, tmp_path: Path) -> None:
    host.addresses = [ADDRESS]
    source.write(Record.FROZEN)
    floating.shut(source)
    floating.locked(source, tmp_path)  # no inventory: named by the root, as older criu does it
    source.write(Record.COMMIT, tasks=[])
    floating.leave(source)
    source.write(Record.KILLED)
    assert floating.over(source) == ()
    assert host.acts == [f"guard new {ADDRESS}", f"delete {ADDRESS}", "no CRIU-1", GUARD]


def test_what_could_not_be_left_is_tried_again_and_named(host: Host, source: Journal) -> None:
    host.addresses, host.refuse = [ADDRESS], "busy"
    for record in (Record.FROZEN, Record.COMMIT, Record.KILLED):
        source.write(record, tasks=[])
    floating.leave(source)
    assert floating.over(source) == (f"address {ADDRESS} on eth0: busy",)


def test_undone_on_the_source_the_neighbours_hear_where_it_is(host: Host, source: Journal) -> None:
    host.addresses = [ADDRESS]
    source.write(Record.FROZEN)
    floating.shut(source)
    assert (source.directory / floating.WORD).exists()
    source.write(Record.ABORT, reason="x")
    host.acts.clear()
    assert floating.over(source) == ()
    assert host.acts == [f"announce {ADDRESS}", GUARD]
    assert not (source.directory / floating.WORD).exists()
    assert host.addresses == [ADDRESS]


def test_sockets_of_a_dead_criu_are_repaired_before_its_lock_goes(
    host: Host, source: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "alive", lambda pid, start: pid != 8)
    floating.shut(source)
    floating.locked(source, tmp_path)
    host.acts.clear()
    floating.unlock(source, [(7, 1), (8, 1)])
    assert host.acts == ["repair [7]", "no CRIU-1"]
    assert not (source.directory / floating.WORD).exists()


def test_where_no_address_moves_nothing_is_done(host: Host, tmp_path: Path) -> None:
    for role in ("source", "target"):
        journal = journal_of(tmp_path / role, role, moving=False)
        for act in (floating.shut, floating.take, floating.announce, floating.opened, floating.leave, floating.over):
            act(journal)
        floating.unlock(journal, [(7, 1)])
        assert len(journal.lines) == 1
        journal.close()
    assert host.acts == []


def test_nothing_is_removed_after_a_reboot(host: Host, tmp_path: Path) -> None:
    """Rules and addresses of then are gone; what is there now is there by configuration."""
    journal = Journal.create(
        tmp_path, "m", "source", peer="x", root=1, boot="another", floating=[[ADDRESS, 24, "eth0"]], tasks=[]
    )
    assert floating.over(journal) == ()
    assert host.acts == []
    journal.close()


def test_the_lock_is_named_by_the_run_that_dumped(tmp_path: Path) -> None:
    """images/inventory.proto: field 13, behind numbers and messages; 21 characters of it (criu/netfilter.c)."""
    run = b"1d69d628-e168-4d45-b2c3-0123456789ab"
    entry = b"\x08\x02" + b"\x1a\x03abc" + b"\x58\x80\x01" + bytes([13 << 3 | 2, len(run)]) + run + b"\x70\x00"
    inventory = tmp_path / "inventory.img"
    inventory.write_bytes(struct.pack("<III", 0x54564319, 0x58313116, len(entry)) + entry)
    assert floating.lock_of(inventory) == "CRIU-1d69d628-e168-4d45-b2"
    inventory.write_bytes(struct.pack("<III", 0x54564319, 0x58313116, 2) + b"\x08\x02")
    assert floating.lock_of(inventory) == ""
    assert floating.lock_of(tmp_path / "none") == ""


IP = """[{"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
{"ifname": "dummy0", "addr_info": []},
{"ifname": "eth0", "addr_info": [{"local": "192.0.2.1", "prefixlen": 24, "dynamic": true},
  {"local": "192.0.2.7", "prefixlen": 24, "secondary": true}]}, {}]"""


def test_addresses_of_this_host_are_those_that_ip_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ip"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{IP}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert floating.of_host() == (
        HostAddress("127.0.0.1", 8, "lo"),
        HostAddress("", 0, "dummy0"),
        HostAddress("192.0.2.1", 24, "eth0", lent=True),
        HostAddress("192.0.2.7", 24, "eth0", secondary=True),
    )
    program.write_text("#!/bin/sh\necho no JSON; exit 255\n")
    assert floating.of_host() == ()
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert floating.of_host() == ()
