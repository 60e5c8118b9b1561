"""Manifests and what lies beside them: what is taken for whole, and what is not."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import ice, process, wire
from agent.protocol import CriuOptions, Manifest
from tests.agent.test_server import facts_for_ice

ID = "20260101-000000-abcdef"


def manifest_of(pid: int = 4711, name: str = ID) -> Manifest:
    """One without images."""
    facts = facts_for_ice(pid)
    return Manifest(
        ice.FORMAT, name, 1.5, socket.gethostname(), process.boot_id(), "0.1.0", 1, facts.source, facts.tree,
        CriuOptions(),
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Images that are not on ice yet."""
    place = tmp_path / "ice" / ID
    (place / "1").mkdir(mode=0o700, parents=True)
    tmp_path.joinpath("ice").chmod(0o700)
    place.chmod(0o700)
    (place / "1" / "pages-1.img").write_bytes(bytes(8192))
    (place / "1" / "core-4711.img").write_bytes(b"core")
    (place / "1" / "stats-dump").write_bytes(b"statistics")
    return place


@pytest.fixture
def sealed(place: Path) -> Path:
    """A tree on ice."""
    ice.put(place, manifest_of())
    ice.seal(place)
    return place


def test_it_is_on_ice_only_once_it_is_sealed(place: Path) -> None:
    assert not ice.whole(place)
    with pytest.raises(ice.IceError, match="no manifest"):
        ice.read(place)
    ice.put(place, manifest_of())
    assert ice.whole(place)
    assert not ice.sealed(place)
    with pytest.raises(ice.IceError, match=f"migrate recover {ID}"):
        ice.verified(place.parent, ID)
    for _ in range(2):
        ice.seal(place)
    found = ice.verified(place.parent, ID)
    assert [(one.name, one.size) for one in found.images] == [("1/core-4711.img", 4), ("1/pages-1.img", 8192)]
    assert dataclasses.replace(found, images=()) == manifest_of()
    assert {path.name for path in place.iterdir()} == {"1", "manifest"}


@pytest.mark.parametrize("name", ["core-4711.img", "pages-1.img"])
@pytest.mark.parametrize("harm", ["other", "shorter", "gone"])
def test_every_image_is_read(sealed: Path, name: str, harm: str) -> None:
    path = sealed / "1" / name
    data = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes(data[:-1] + (b"?" if harm == "other" else b""))
    with pytest.raises(ice.IceError, match=name):
        ice.verified(sealed.parent, ID)


@pytest.mark.parametrize("which", ["place", "parent"])
def test_others_may_not_write_there(sealed: Path, which: str) -> None:
    (sealed if which == "place" else sealed.parent).chmod(0o777)
    with pytest.raises(ice.IceError, match="writable for others"):
        ice.verified(sealed.parent, ID)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": ice.FORMAT + 1, "more": 1}, "newer migrate"),
        ({"more": 1}, "unknown field"),
        ({"id": "20260101-000000-abcdf0"}, "not that of"),
        ({"id": "../../etc"}, "damaged"),
        ({"images": [{"name": "1/../../../etc/shadow", "size": 1, "sha256": ""}]}, "no image"),
        ({"images": [{"name": "x/core-1.img", "size": 1, "sha256": ""}]}, "no image"),
        ({"images": 2 * [{"name": "1/core-1.img", "size": 1, "sha256": ""}]}, "not that of"),
    ],
)
def test_a_manifest_that_is_none(sealed: Path, change: dict[str, object], said: str) -> None:
    data = json.dumps({**wire.plain(manifest_of()), **change}).encode()
    with pytest.raises(ice.IceError, match=said):
        ice.parsed(data, sealed)


def test_what_there_is(sealed: Path) -> None:
    found = ice.look(sealed.parent)
    assert [(one.id, one.pid, one.name, one.wrong) for one in found.items] == [(ID, 4711, "victim", "")]
    assert found.items[0].size >= 8192
    assert found.room > 0
    assert ice.look(sealed / "no" / "such").items == ()
    with pytest.raises(ice.IceError, match="no directory"):
        ice.look(sealed / "manifest" / "below")


@pytest.fixture
def living() -> Iterator[int]:
    """A process."""
    with subprocess.Popen(["sleep", "1000"]) as running:
        yield running.pid
        running.kill()


def test_it_is_restored_once_at_a_time(sealed: Path, living: int) -> None:
    claim = ice.claim(sealed)
    with pytest.raises(ice.InUse, match="being restored"):
        ice.claim(sealed)
    os.close(claim)
    ice.note_restored(sealed, [(living, process.start_time(living))])
    for use in (lambda: ice.claim(sealed), lambda: ice.verified(sealed.parent, ID)):
        with pytest.raises(ice.InUse, match=f"its process {living} lives"):
            use()
    assert "lives" in ice.look(sealed.parent).items[0].wrong
    ice.note_restored(sealed, [(living, process.start_time(living) + 1)])
    os.close(ice.claim(sealed))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ({"boot": "another"}, ""),
        ({"host": "db2"}, "it ran on db2 last"),
        ({"tasks": [[0, 1]]}, "damaged"),
        ({"tasks": [[1]]}, "damaged"),
        ({"host": "a\x1bb"}, "damaged"),
        ({"boot": 4}, "damaged"),
    ],
)
def test_the_word_of_a_restore(sealed: Path, living: int, word: dict[str, object], said: str) -> None:
    start = process.start_time(living)
    known = {"host": socket.gethostname(), "boot": process.boot_id(), "tasks": [[living, start]]}
    (sealed / "restored").write_text(json.dumps(known | word))
    if not said:
        assert ice.running(sealed, manifest_of()) == ""
    elif said == "damaged":
        with pytest.raises(ice.IceError, match=said):
            ice.running(sealed, manifest_of())
    else:
        assert said in ice.running(sealed, manifest_of())


def test_a_restore_changes_a_copy(sealed: Path) -> None:
    copy = sealed.parent / "copy"
    ice.working_copy(sealed, 1, copy)
    assert (copy / "pages-1.img").readlink() == sealed / "1" / "pages-1.img"
    (copy / "core-4711.img").write_bytes(b"changed")
    ice.verified(sealed.parent, ID)
    assert not (copy / "stats-dump").exists()
