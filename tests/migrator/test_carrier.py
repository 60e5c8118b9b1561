"""Rounds as directories, in whole migrations on fake hosts: rsync is a copy, or the storage is shared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.protocol import Place
from migrator import errors, plan
from migrator.phases import Phase
from migrator.rsync import Rsync
from tests.fake_hosts import Pair
from tests.migrator.test_migration import BEFORE_COMMIT, FROM_COMMIT, Lab

Harm = Callable[[Path], None]


@pytest.fixture
def lab(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab(pair, monkeypatch)
    lab.wishes = plan.Wishes(copy_files=True, rsync=True)
    lab.place = Place(True, (16 << 20) if os.geteuid() == 0 else 0)
    return lab


@pytest.fixture
def harm() -> dict[int, Harm]:
    """What is done to a round when it has been copied, by its number."""
    return {}


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch, harm: dict[int, Harm]) -> list[str]:
    """The directories that were sent."""
    names: list[str] = []

    async def send(self: Rsync, here: str, there: str, **_: object) -> int:
        shutil.copytree(here, there, symlinks=True)
        names.append(Path(there).name)
        if (act := harm.get(int(names[-1]))) is not None:
            act(Path(there))
        return 1000

    monkeypatch.setattr(Rsync, "send", send)
    return names


async def test_rounds_as_directories(lab: Lab, sent: list[str]) -> None:
    lab.rounds = 2
    attempt = await lab.migrate(children=1)
    report = attempt.succeeded()
    assert [done.pages for done in report.rounds] == [3, 3, 2]
    assert [done.bytes for done in report.rounds] == [12288, 12288, 8192]
    assert sent == ["1", "2", "3"]
    assert [done.wire_bytes for done in report.rounds[:2]] == [1000, 1000]
    assert not [call for call in lab.source.calls() if "--page-server" in call.argv]
    assert "../1" in lab.source.calls("pre-dump")[1].argv
    attempt.lives_on_target()


async def test_shared_storage(lab: Lab, sent: list[str]) -> None:
    shared = lab.pair.directory / "shared"
    shared.mkdir()
    lab.rounds = 1
    lab.wishes = plan.Wishes(copy_files=True, shared=str(shared))
    lab.place = Place(True, 0, str(shared), True)
    attempt = await lab.migrate()
    assert [done.bytes for done in attempt.succeeded().rounds] == [12288, 8192]
    assert sent == []
    assert list(shared.iterdir()) == [], "the images are still there"
    attempt.lives_on_target()


def cut_short(directory: Path) -> None:
    os.truncate(directory / "pages-1.img", 100)


def without_one(directory: Path) -> None:
    (directory / "inventory.img").unlink()


def with_another(directory: Path) -> None:
    (directory / "fdinfo-7.img").write_bytes(b"")


@pytest.mark.parametrize(("number", "phase"), [(1, Phase.PRECOPY), (3, Phase.FREEZE)])
@pytest.mark.parametrize(
    ("act", "said"),
    [
        (cut_short, "pages-1.img has 100 bytes, not"),
        (without_one, "inventory.img has not come"),
        (with_another, "fdinfo-7.img is there, and nobody sent it"),
    ],
)
async def test_a_round_that_is_not_whole(
    lab: Lab, harm: dict[int, Harm], act: Harm, said: str, number: int, phase: Phase
) -> None:
    lab.rounds = 2
    harm[number] = act
    attempt = await lab.migrate()
    attempt.failed(phase, errors.CopyError, 30)
    assert f"round {number}: {said}" in str(attempt.error)
    attempt.lives_on_source()


async def test_rsync_that_fails_in_the_freeze(lab: Lab, harm: dict[int, Harm]) -> None:
    def fail(directory: Path) -> None:
        raise errors.CopyError("rsync to beta failed: it was cut off")

    lab.rounds = 1
    harm[2] = fail
    attempt = await lab.migrate()
    attempt.failed(Phase.FREEZE, errors.CopyError, 30)
    attempt.lives_on_source()


@pytest.mark.parametrize("what", ["source_agent_dies", "target_agent_dies", "link_drops", "signal"])
@pytest.mark.parametrize("phase", [*BEFORE_COMMIT, *FROM_COMMIT[1:]])
async def test_whatever_breaks(lab: Lab, phase: Phase, what: str) -> None:
    """As with the stream: before COMMIT on the source, after it on the target."""
    lab.rounds = 1
    breaks: Callable[[], None] = getattr(lab, what)
    attempt = await lab.migrate({phase: breaks})
    held = phase in FROM_COMMIT and what in ("target_agent_dies", "link_drops")
    if held or phase in FROM_COMMIT[1:]:
        attempt.succeeded()
        attempt.lives_on_target()
    else:
        assert attempt.error is not None
        attempt.lives_on_source()


async def test_an_agent_that_dies_leaves_no_images_on_shared_storage(lab: Lab) -> None:
    shared = lab.pair.directory / "shared"
    shared.mkdir()
    lab.wishes = plan.Wishes(copy_files=True, shared=str(shared))
    lab.place = Place(True, 0, str(shared), True)
    for phase in (Phase.FREEZE, Phase.RESTORE):
        attempt = await lab.migrate({phase: lab.source_agent_dies})
        attempt.lives_on_source()
        assert list(shared.iterdir()) == [], phase
