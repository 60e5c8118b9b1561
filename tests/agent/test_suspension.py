"""The drop-in that keeps a unit from reviving: there while it is needed, and gone afterwards, also when things fail."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import service, suspension
from agent.journal import Journal
from agent.service import ServiceError
from tests.fake_systemd import UNIT, FakeSystemd


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystemd:
    """One that our own process speaks to, with us as its service."""
    fake = FakeSystemd(tmp_path / "systemd")
    monkeypatch.setattr(service, "SYSTEMCTL", str(fake.program))
    monkeypatch.setattr(service, "SYSTEMD", str(tmp_path / "systemd/system"))
    fake.runs(os.getpid())
    return fake


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal.create(tmp_path / "state", "m", "source")
    yield made
    made.close()


async def test_a_unit_is_suspended_and_as_it_was_again(systemd: FakeSystemd, journal: Journal) -> None:
    await suspension.suspend(journal, UNIT)
    assert systemd.suspended
    assert journal.facts(suspension.NOTE)["unit"] == UNIT
    assert await suspension.give_back(journal, gone=False) == ()
    assert systemd.as_it_was
    assert systemd.reloads == 2
    assert await suspension.give_back(journal, gone=False) == ()
    assert systemd.reloads == 2  # once is enough


async def test_the_drop_in_stops_all_that_systemd_would_do(systemd: FakeSystemd, journal: Journal) -> None:
    await suspension.suspend(journal, UNIT)
    lines = systemd.dropin.read_text().splitlines()
    assert {"Restart=no", "ExecStop=", "ExecStopPost=", "OnFailure=", "SuccessExitStatus=SIGKILL"} <= set(lines)
    assert systemd.dropin.parent == Path(service.SYSTEMD) / "x.service.d"


async def test_without_a_unit_nothing_is_done(systemd: FakeSystemd, journal: Journal) -> None:
    await suspension.suspend(journal, "")
    assert await suspension.give_back(journal, gone=True) == ()
    assert systemd.reloads == 0
    assert not journal.facts(suspension.NOTE)


async def test_drop_ins_of_others_stay(systemd: FakeSystemd, journal: Journal) -> None:
    systemd.dropin.parent.mkdir()
    theirs = systemd.dropin.with_name("limits.conf")
    theirs.write_text("[Service]\n")
    await suspension.suspend(journal, UNIT)
    await suspension.give_back(journal, gone=False)
    assert list(systemd.dropin.parent.iterdir()) == [theirs]


@pytest.mark.parametrize(("word", "message"), [("deaf", "no answer"), ("outdone", "would still be revived")])
async def test_a_unit_that_can_not_be_suspended(
    systemd: FakeSystemd, journal: Journal, word: str, message: str
) -> None:
    systemd.will(word)
    with pytest.raises(ServiceError, match=message):
        await suspension.suspend(journal, UNIT)
    (systemd.directory / word).unlink()
    assert await suspension.give_back(journal, gone=False) == ()
    assert systemd.as_it_was


async def test_a_unit_that_has_ended_already(systemd: FakeSystemd, journal: Journal) -> None:
    systemd.will("dead")
    with pytest.raises(ServiceError, match="not active any more"):
        await suspension.suspend(journal, UNIT)
    assert systemd.reloads == 0


async def test_the_end_is_seen_before_the_unit_is_as_it_was(systemd: FakeSystemd, journal: Journal) -> None:
    child = await asyncio.create_subprocess_exec("sleep", "1000")
    systemd.runs(child.pid)
    await suspension.suspend(journal, UNIT)
    child.kill()
    await child.wait()
    assert await suspension.give_back(journal, gone=True) == ()
    assert systemd.as_it_was
    assert not systemd.revived


async def test_an_end_that_is_never_seen_leaves_the_drop_in(
    systemd: FakeSystemd, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspension, "_PATIENCE", 0.1)
    await suspension.suspend(journal, UNIT)
    (left,) = await suspension.give_back(journal, gone=True)
    assert str(systemd.dropin) in left
    assert systemd.suspended


async def test_a_unit_that_ended_meanwhile_is_named(systemd: FakeSystemd, journal: Journal) -> None:
    await suspension.suspend(journal, UNIT)
    systemd.will("dead")
    (left,) = await suspension.give_back(journal, gone=False)
    assert "systemctl start x.service" in left
    assert systemd.as_it_was


async def test_what_systemd_does_not_hear_is_left_behind_and_tried_again(
    systemd: FakeSystemd, journal: Journal
) -> None:
    await suspension.suspend(journal, UNIT)
    systemd.will("deaf")
    (left,) = await suspension.give_back(journal, gone=False)
    assert "daemon-reload" in left
    (systemd.directory / "deaf").unlink()
    assert await suspension.give_back(journal, gone=False) == ()
    assert systemd.as_it_was


async def test_a_watchdog_is_put_off(systemd: FakeSystemd, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes by what held when its service was started, and would end a process that is held."""
    said: list[tuple[int, str]] = []

    def notify(pid: int, text: str) -> None:
        said.append((pid, text))
        (systemd.directory / "watchdog").write_text("0\n" if text.endswith("USEC=0") else "2s\n")

    monkeypatch.setattr(suspension, "_notify", notify)
    (systemd.directory / "watchdog").write_text("2s\n")
    await suspension.suspend(journal, UNIT)
    await suspension.give_back(journal, gone=False)
    assert said == [(os.getpid(), "WATCHDOG_USEC=0"), (os.getpid(), "WATCHDOG=1\nWATCHDOG_USEC=2000000")]


async def test_a_watchdog_that_can_not_be_put_off(
    systemd: FakeSystemd, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said reaches systemd's socket in our name, and changes nothing."""
    monkeypatch.setattr(suspension, "_NOTIFY", str(tmp_path / "notify"))
    monkeypatch.setattr(suspension, "_LOOKS", 1)
    (systemd.directory / "watchdog").write_text("2s\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(60)
        with pytest.raises(ServiceError, match="watchdog"):
            await suspension.suspend(journal, UNIT)
        assert notify.recv(100) == b"WATCHDOG_USEC=0"
    await suspension.give_back(journal, gone=False)
    assert systemd.as_it_was
