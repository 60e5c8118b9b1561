"""agent/guard.py: what the kernel is told to drop."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from agent import guard, iptables


def test_the_target_drops_everything_to_and_from_the_addresses() -> None:
    text = guard.text("20260102-030405-abcdef", ["192.0.2.7", "2001:db8::7"], everything=True)
    assert "table inet migrate-20260102-030405-abcdef" in text
    for rule in ("ip daddr 192.0.2.7 drop", "ip saddr 192.0.2.7 drop", "ip6 daddr 2001:db8::7 drop"):
        assert f'{rule} comment "migration 20260102-030405-abcdef"' in text
    assert "tcp" not in text


def test_the_source_drops_only_new_connections() -> None:
    text = guard.text("m", ["192.0.2.7"], everything=False)
    assert "ip daddr 192.0.2.7 tcp flags & (syn | ack) == syn drop" in text
    assert "output" not in text


def test_a_table_that_is_there_is_replaced_at_once() -> None:
    """One transaction: declared (so that there is one), deleted, made."""
    lines = guard.text("m", ["192.0.2.7"], everything=True).splitlines()
    assert lines[:3] == ["table inet migrate-m", "delete table inet migrate-m", "table inet migrate-m {"]


class Nft:
    """A stand-in that answers as nft does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, status: int = 0, out: str = "", err: str = "") -> None:
        self.calls: list[list[str]] = []
        self._answer = (status, out, err)
        monkeypatch.setattr(subprocess, "run", self.run)
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/sbin/{name}")
        monkeypatch.setattr(iptables, "nftables_unloaded", lambda: False)

    def run(self, words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        """Remember, and answer."""
        self.calls.append(words)
        listing = words[1] == "list"
        status, out, err = (0, self._answer[1], "") if listing else self._answer
        return subprocess.CompletedProcess(words, status, out, err)


OTHERS = "table inet filter\ntable inet CRIU-1\ntable inet migrate-m\n"


def test_only_tables_of_ours_and_of_criu_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    Nft(monkeypatch, out=OTHERS)
    assert guard.tables() == ("CRIU-1", "migrate-m")


def test_what_is_not_there_is_not_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    nft = Nft(monkeypatch, out=OTHERS)
    assert guard.take_away("other") == ""
    assert guard.delete("filter") == ""
    assert [words for words in nft.calls if words[1] == "delete"] == []
    assert guard.take_away("m") == ""
    assert nft.calls[-1] == ["nft", "delete", "table", "inet", "migrate-m"]


def test_what_can_not_be_deleted_is_a_leftover_with_its_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    Nft(monkeypatch, status=1, out=OTHERS, err="Error: Operation not permitted\n")
    left = guard.take_away("m")
    assert "Operation not permitted" in left
    assert "nft delete table inet migrate-m" in left


def test_a_refused_guard_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Nft(monkeypatch, status=1, err="Error: syntax error\nmore\n")
    with pytest.raises(guard.GuardError, match=r"syntax error$"):
        guard.put_up("m", ["192.0.2.7"], everything=True)
