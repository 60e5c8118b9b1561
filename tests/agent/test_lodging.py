"""What the target's systemd gives to a tree: its scope, limits that wait for criu, streams to the journal."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import freezer, journald, lodging, service
from agent.journal import Journal
from agent.lodging import Lodging
from agent.protocol import Scope

SCOPE = Scope("migrated-x.scope", "x.service, moved here from alpha", ("MemoryMax=9", "CPUQuota=5.5%"))


@pytest.fixture
def journals(tmp_path: Path) -> Iterator[list[Journal]]:
    made: list[Journal] = []
    yield made
    for one in made:
        one.close()


def lodging_of(tmp_path: Path, journals: list[Journal], **facts: object) -> Lodging:
    journals.append(Journal.create(tmp_path / "state", "m", "target", **facts))
    return Lodging(journals[-1])


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a scope of the system's systemd takes root")


@needs_root
def test_the_command_that_makes_the_scope(
    tmp_path: Path, journals: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SYSTEMD", str(tmp_path))
    made = lodging_of(tmp_path, journals, scope=dataclasses.asdict(SCOPE))
    assert made.around() == [
        "systemd-run", "--scope", "--quiet", "--collect", "--slice=system.slice", "--unit=migrated-x.scope",
        "--description=x.service, moved here from alpha", "--property=MemoryMax=9", "--property=CPUQuota=5.5%",
    ]  # fmt: skip
    assert made.name == "migrated-x.scope"
    journals.append(Journal.create(tmp_path / "state", "n", "target"))
    plain = Lodging(journals[-1])
    assert plain.around()[-1] == "--unit=migrated-n.scope"
    assert plain.name == ""


def test_without_systemd_there_is_none(
    tmp_path: Path, journals: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SYSTEMD", str(tmp_path / "none"))
    made = lodging_of(tmp_path, journals, scope=dataclasses.asdict(SCOPE))
    assert (made.around(), made.name) == ([], "")


@pytest.mark.parametrize("name", ["migrated-x.scope", "another.scope"])
def test_limits_are_lifted_while_criu_restores(
    tmp_path: Path, journals: list[Journal], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Only those of the tree's own scope, and only where there is one."""
    cgroup = tmp_path / name
    cgroup.mkdir()
    held = {"cpu.max": "5500 100000", "pids.max": "50", "memory.max": "209715200", "memory.high": "max"}
    for file, text in held.items():
        (cgroup / file).write_text(f"{text}\n")
    monkeypatch.setattr(freezer, "cgroup_of", lambda pid: cgroup)
    made = lodging_of(tmp_path, journals, scope=dataclasses.asdict(SCOPE))
    made.lift(os.getpid())
    lifted = name == "migrated-x.scope"
    assert (cgroup / "cpu.max").read_text().strip() == ("max" if lifted else "5500 100000")
    lodging.hold(tmp_path / "state/m")
    assert {file: (cgroup / file).read_text().strip() for file in held} == held
    assert not (tmp_path / "state/m" / lodging.WORD).exists()
    lodging.hold(tmp_path / "state/m")


def test_a_tree_that_has_ended_is_held_to_nothing(
    tmp_path: Path, journals: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup = tmp_path / "migrated-x.scope"
    cgroup.mkdir()
    (cgroup / "pids.max").write_text("50\n")
    monkeypatch.setattr(freezer, "cgroup_of", lambda pid: cgroup)
    lodging_of(tmp_path, journals, scope=dataclasses.asdict(SCOPE)).lift(os.getpid())
    (cgroup / "pids.max").unlink()
    cgroup.rmdir()
    lodging.hold(tmp_path / "state/m")
    assert not (tmp_path / "state/m" / lodging.WORD).exists()


@pytest.mark.parametrize("word", ["", "/sys/f", "x\npids.max 50\n"])
def test_a_word_that_a_full_disk_has_cut_holds_nobody_to_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / lodging.WORD).write_text(word)
    lodging.hold(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["x"]


def test_a_cgroup_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own systemd lets its user make some."""
    cgroup = tmp_path / os.fsdecode(b"caf\xe9")
    cgroup.mkdir()
    (cgroup / "cgroup.freeze").write_text("0\n")
    monkeypatch.setattr(freezer, "cgroup_of", lambda pid: cgroup)
    assert freezer.freeze(tmp_path, 1, ()) == cgroup
    assert (cgroup / "cgroup.freeze").read_text() == "1"
    freezer.thaw(tmp_path)
    assert (cgroup / "cgroup.freeze").read_text() == "0"


def test_streams_to_the_journal(tmp_path: Path, journals: list[Journal], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journald, "SOCKET", str(tmp_path / "stdout"))
    monkeypatch.setattr(service, "SYSTEMD", str(tmp_path))
    assert not journald.there()
    made = lodging_of(tmp_path, journals, scope=dataclasses.asdict(SCOPE), logged=[[7, "app"], [8, "a\nb"]])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "stdout"))
        listener.listen()
        assert journald.there()
        with made.streams() as (descriptors, arguments):
            assert arguments == [
                "--inherit-fd", f"fd[{descriptors[0]}]:socket:[7]", "--inherit-fd", f"fd[{descriptors[1]}]:socket:[8]",
            ]  # fmt: skip
            assert min(descriptors) >= 20
            os.write(descriptors[0], b"a line\n")
        heard = []
        for _ in descriptors:
            with listener.accept()[0] as connection, connection.makefile() as lines:
                heard.append(lines.read())
    assert heard == ["app\nmigrated-x.scope\n30\n1\n0\n0\n0\na line\n", "a b\nmigrated-x.scope\n30\n1\n0\n0\n0\n"]


def test_no_stream_no_argument() -> None:
    with journald.opened((), "") as nothing:
        assert nothing == ((), [])
