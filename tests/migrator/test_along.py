"""Files that come along, and those that were opened late, in whole migrations on fake hosts, whatever breaks.

The grid of `test_migration` takes a file along, too, whatever it breaks.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import process
from agent.protocol import FileFacts, NewFiles
from migrator import errors, plan
from migrator.peer import Peer
from migrator.phases import Phase
from tests.fake_hosts import Pair, soon
from tests.migrator.test_migration import Lab


@pytest.fixture
def lab(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(pair, monkeypatch)


@pytest.mark.parametrize(
    ("behaviour", "kind", "code"),
    [("fail", errors.CopyError, 30), ("no-space", errors.NoSpace, 31), ("partial", errors.CopyError, 30)],
)
async def test_an_rsync_that_fails(lab: Lab, behaviour: str, kind: type[errors.MigrateError], code: int) -> None:
    lab.source.behave(rsync=behaviour)
    attempt = await lab.migrate()
    attempt.failed(Phase.PRECOPY, kind, code)
    assert "rsync" in str(attempt.error)
    attempt.lives_on_source()


async def test_what_rsync_tore_arrives_whole(lab: Lab) -> None:
    lab.target.behave(rsync="torn")
    lab.rounds = 1
    report = (attempt := await lab.migrate()).succeeded()
    attempt.lives_on_target()  # which looks at the file
    size = len("comes along")
    assert report.files_bytes >= 2 * size
    assert 0 < report.files_seconds < report.downtime_seconds


ACTS: dict[str, Callable[[Lab], None]] = {
    "source agent": Lab.source_agent_dies,
    "target agent": Lab.target_agent_dies,
    "link": Lab.link_drops,
    "signal": Lab.signal,
}


@pytest.mark.parametrize("act", ACTS)
async def test_it_breaks_while_rsync_is_at_work(lab: Lab, act: str) -> None:
    lab.target.behave(rsync="hang")

    async def wait() -> None:
        await soon(lambda: bool(at_work(lab)), "rsync is at work")
        ACTS[act](lab)

    def start() -> None:
        lab.background = asyncio.ensure_future(wait())

    attempt = await lab.migrate({Phase.PRECOPY: start})
    attempt.failed(Phase.PRECOPY, asyncio.CancelledError if act == "signal" else errors.LinkLost)
    attempt.lives_on_source()
    await soon(lambda: not at_work(lab), "rsync leaves")


def at_work(lab: Lab) -> list[int]:
    """The rsync servers of the target."""
    found = []
    for pid in process.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--server" in words and str(lab.target.directory).encode() in b" ".join(words):
            found.append(pid)
    return found


def late(path: str) -> FileFacts:
    return FileFacts(path, "regular", 5, 0o644, 0, 0, 1, 0, ("open", "write"))


@pytest.mark.parametrize(("asked", "phase"), [(1, Phase.PRECOPY), (2, Phase.PRECOPY), (3, Phase.FREEZE)])
@pytest.mark.parametrize("copies", [True, False])
async def test_a_file_that_is_opened_late_and_may_not_come_along(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, asked: int, phase: Phase, copies: bool
) -> None:
    """With the option, it has no directory there; without, it is not there."""
    lab.wishes = dataclasses.replace(lab.wishes, copy_files=copies)
    lab.rounds = 1
    path = str(lab.pair.directory / "no" / "late")
    times = 0

    async def newly_opened(self: Peer) -> NewFiles:
        nonlocal times
        times += 1
        return NewFiles((late(path),) if times == asked else ())

    monkeypatch.setattr(Peer, "newly_opened", newly_opened)
    attempt = await lab.migrate()
    attempt.failed(phase, errors.OpenedMeanwhile, 38)
    assert isinstance(attempt.error, errors.OpenedMeanwhile)
    kind = "directory-missing" if copies else "file-written"
    assert [one.id for one in attempt.error.obstacles] == [kind]
    attempt.lives_on_source()


async def test_a_file_that_is_opened_late_and_is_there_needs_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    there = lab.pair.directory / "there"
    there.write_text("12345")
    found = there.stat()
    facts = FileFacts(
        str(there), "regular", 5, found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns, 0, ("open",)
    )  # fmt: skip

    async def newly_opened(self: Peer) -> NewFiles:
        return NewFiles((facts,))

    monkeypatch.setattr(Peer, "newly_opened", newly_opened)
    (await lab.migrate()).succeeded()


async def test_nothing_comes_along_that_was_not_wished(lab: Lab) -> None:
    lab.wishes = plan.Wishes()
    report = (await lab.migrate()).succeeded()
    assert (report.files_bytes, report.files_frozen_bytes, report.files_seconds) == (0, 0, 0.0)
