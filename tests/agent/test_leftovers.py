"""What a crash leaves is found and named; what is in use, or is the moved process itself, is no leftover."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import guard, iptables, leftovers, ours, process, protocol, service, suspension
from agent.journal import Journal, Record
from agent.ledger import Ledger
from agent.leftovers import find
from agent.settings import Settings

ID = "20260704-031500-a1b2c3"
GONE = (2**22 + 5, 1)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Directories of our own; no cgroups but those that a test makes."""
    monkeypatch.setattr(leftovers, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Settings(tmp_path / "state", tmp_path / "run")


def begun(settings: Settings, role: str = "source", *records: str, **details: object) -> Journal:
    """A migration that came so far; its agent is dead unless told otherwise."""
    facts = {"peer": "other", "root": 1, "boot": process.boot_id(), "tasks": [], "on_disk": False, "agent": GONE}
    kept = Journal.create(settings.state, ID, role, **{**facts, **details})
    for record in records:
        kept.write(Record(record), tasks=details.get("tasks", []), pid=1)
    return kept


def found(settings: Settings) -> list[tuple[str, str, bool, str]]:
    """(kind, what, in use, remove) of what lies in our directories, and of processes that our journals name."""
    ours = str(settings.state.parent)
    items = find(settings).items
    return [
        (item.kind, item.what.replace(ours, ""), item.in_use, item.remove.replace(ours, ""))
        for item in items
        if ours in item.what or item.migration == ID
    ]


def recover(kind: str, what: str) -> tuple[str, str, bool, str]:
    return (kind, what, False, f"migrate recover {ID}")


def test_nothing(settings: Settings) -> None:
    assert found(settings) == []


@pytest.mark.parametrize(
    ("role", "records"), [("source", ["FROZEN", "ABORT", "DONE"]), ("target", ["HELD", "RESUMING", "RESUMED", "DONE"])]
)
def test_a_finished_migration_leaves_its_journal_and_logs(settings: Settings, role: str, records: list[str]) -> None:
    kept = begun(settings, role, *records, tasks=[[os.getpid(), process.start_time(os.getpid())]])
    (kept.directory / "dump.log").write_text("")
    kept.close()
    assert found(settings) == []


def test_all_that_a_dead_source_has_left(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = begun(settings, "source", "FROZEN")
    for name in ("hold", "stopped"):
        (kept.directory / name).write_text("")
    place = settings.images(ID)
    place.mkdir(parents=True)
    (place / "pages").write_bytes(b"x" * 5000)
    settings.locks.mkdir()
    (settings.locks / "77").write_text(ID)
    listener = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(settings.run)  # a socket's path is short
    listener.bind(f"{ID}.socket")
    listener.close()
    here = f"/state/{ID}"
    assert sorted(found(settings)) == sorted(
        [
            recover("images", f"/run/{ID}"),
            recover("socket", f"/run/{ID}.socket"),
            ("lock", "/run/locks/77", False, "rm /run/locks/77"),
            recover("file", f"{here}/hold"),
            recover("file", f"{here}/stopped"),
            recover("journal", f"{here}/journal"),
        ]
    )
    images = next(item for item in find(settings).items if item.kind == "images" and item.migration == ID)
    assert images.size >= 5000
    kept.close()


def test_the_lock_on_a_task_belongs_to_the_migration_that_names_it(settings: Settings) -> None:
    begun(settings, "source", tasks=[[77, 1]]).close()
    settings.locks.mkdir(parents=True)
    (settings.locks / "77").write_text(ID)
    assert recover("lock", "/run/locks/77") in found(settings)


@pytest.mark.parametrize(("on_disk", "place"), [(True, f"/state/{ID}/images"), (False, f"/run/{ID}")])
def test_images_of_a_finished_migration(settings: Settings, on_disk: bool, place: str) -> None:
    """No journal settles it any more: the command that removes it is another."""
    begun(settings, "target", "ABORT", "DONE", on_disk=on_disk).close()
    path = Path(f"{settings.state.parent}{place}")
    path.mkdir(parents=True)
    assert found(settings) == [("images", place, False, f"rm -r {place}")]


def test_images_that_no_journal_knows(settings: Settings) -> None:
    settings.images("unknown").mkdir(parents=True)
    assert found(settings) == [("images", "/run/unknown", False, "rm -r /run/unknown")]


def test_files_that_came_along_halfway(settings: Settings, tmp_path: Path) -> None:
    kept = begun(settings, "target")
    ledger = Ledger(kept.directory / "ledger")
    Path(half := ledger.temporary_beside(str(tmp_path / "log"))).write_text("half")
    kept.close()
    assert recover("file", half.replace(str(tmp_path), "")) in found(settings)
    ledger.undo()
    assert [item[0] for item in found(settings)] == ["journal"]


class Child:
    """A process with the command line of one of ours."""

    def __init__(self, *words: str, script: str = "import time; print(flush=True); time.sleep(1000)") -> None:
        # python takes the rest of its arguments for the script's
        self._process = subprocess.Popen(
            [sys.executable, "-IS", "-c", script, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self.pid = self._process.pid
        self.identity = [self.pid, process.start_time(self.pid)]

    def hang_up(self) -> None:
        """Nobody speaks to it any more."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close(self) -> None:
        """Make an end of it, also when it is stopped."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """What is ended with the test."""
    started: list[Child] = []
    yield started
    for child in started:
        child.close()


def test_processes_are_known_by_their_words(settings: Settings, children: list[Child]) -> None:
    begun(settings, "target").close()
    images, journal = str(settings.images(ID)), str(settings.state / ID)
    children += [
        Child("criu", "page-server", "--no-default-config", "--images-dir", f"{images}/1"),
        Child("pager", images, journal),
        Child("relay", str(settings.socket(ID)), "memory"),
        Child("tail", "-f", f"{journal}/restore.log"),  # an admin, who reads
    ]
    said = {item.what: item.detail for item in find(settings).items if item.kind == "process"}
    assert [said.get(str(child.pid)) for child in children] == ["page-server", "pager", "relay", None]
    assert recover("process", str(children[0].pid)) in found(settings)


def test_an_agent_that_nobody_speaks_to(settings: Settings, children: list[Child]) -> None:
    """As long as somebody has the other end of its input, all that belongs to its migration is in use."""
    agent = Child("/root/.cache/migrate/agent-0123456789abcdef.pyz", "serve", "--build", "x")
    children.append(agent)
    begun(settings, "source", agent=agent.identity).close()
    assert found(settings) == [
        ("process", str(agent.pid), True, f"migrate recover {ID}"),
        ("journal", f"/state/{ID}/journal", True, f"migrate recover {ID}"),
    ]
    agent.hang_up()
    assert [(kind, used) for kind, _, used, _ in found(settings)] == [("process", False), ("journal", False)]
    detail = next(item.detail for item in find(settings).items if item.what == str(agent.pid))
    assert detail == "agent, to which nobody speaks"


def test_a_lock_of_criu_while_a_migration_is_not_over(
    settings: Settings, children: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To remove it then would end the connections that it keeps. With none under way it is what a crash has left."""
    monkeypatch.setattr(guard, "tables", lambda: ("CRIU-7",))
    agent = Child("/root/.cache/migrate/agent-0123456789abcdef.pyz", "serve", "--build", "x")
    children.append(agent)

    def locks() -> list[tuple[bool, str]]:
        return [(item.in_use, item.remove) for item in find(settings).items if item.kind == "rule"]

    assert locks() == [(False, "nft delete table inet CRIU-7")]
    kept = begun(settings, "source", "FROZEN", agent=agent.identity)
    assert locks() == [(True, f"migrate recover {ID}")]
    agent.hang_up()
    assert locks() == [(False, f"migrate recover {ID}")]
    kept.write(Record.ABORT)
    kept.write(Record.DONE)
    kept.close()
    assert locks() == [(False, "nft delete table inet CRIU-7")]


def test_an_agent_without_a_migration(settings: Settings, children: list[Child]) -> None:
    """It answers somebody; or it is lost."""
    agent = Child("/root/.cache/migrate/agent-0123456789abcdef.pyz", "serve", "--build", "x")
    children.append(agent)
    assert str(agent.pid) not in {item.what for item in find(settings).items}
    agent.hang_up()
    item = next(item for item in find(settings).items if item.what == str(agent.pid))
    assert (item.kind, item.migration, item.in_use, item.remove) == ("process", "", False, f"kill {agent.pid}")


def test_what_is_held_here_and_what_runs_here(settings: Settings, children: list[Child]) -> None:
    children.append(task := Child("a tree"))
    kept = begun(settings, "target", "HELD", tasks=[task.identity])
    assert recover("held", str(task.pid)) in found(settings)
    kept.write(Record.RESUMING)
    kept.write(Record.RESUMED, pid=task.pid)
    assert [kind for kind, *_ in found(settings)] == ["journal"]
    kept.write(Record.DONE)
    assert found(settings) == []
    kept.close()


def test_what_was_to_be_given_up_and_is_still_there(settings: Settings, children: list[Child]) -> None:
    children.append(task := Child("a tree"))
    begun(settings, "target", "HELD", "ABORT", "DONE", tasks=[task.identity]).close()
    assert found(settings) == [("held", str(task.pid), False, f"kill -KILL {task.pid}")]


def test_tasks_that_a_dead_migration_has_stopped(settings: Settings, children: list[Child]) -> None:
    children.append(task := Child("a tree"))
    kept = begun(settings, "source", "FROZEN")
    (kept.directory / "stopped").write_text(f"{task.pid} {task.identity[1]} {task.pid}\n")
    kept.close()
    assert recover("stopped", str(task.pid)) not in found(settings)
    os.kill(task.pid, signal.SIGSTOP)
    os.waitpid(task.pid, os.WUNTRACED)
    assert recover("stopped", str(task.pid)) in found(settings)


def test_cgroups(settings: Settings) -> None:
    kept = begun(settings, "source", "FROZEN")
    frozen = leftovers.CGROUPS / "of-the-tree"
    (frozen / f"migrating-{ID}").mkdir(parents=True)
    for name in (f"pager-{ID}.scope", f"migrated-{ID}.scope", "migrated-by-somebody.scope"):
        (leftovers.CGROUPS / "system.slice" / name).mkdir(parents=True)
    (frozen / "cgroup.freeze").write_text("1\n")
    (kept.directory / "frozen").write_text(f"{frozen}\n")
    kept.close()
    items = [(kind, what) for kind, what, *_ in found(settings) if kind in ("cgroup", "frozen")]
    slice_ = "/cgroup/system.slice"
    assert sorted(items) == [
        ("cgroup", f"/cgroup/of-the-tree/migrating-{ID}"),
        ("cgroup", f"{slice_}/migrated-{ID}.scope"),
        ("cgroup", f"{slice_}/pager-{ID}.scope"),
        ("frozen", "/cgroup/of-the-tree"),
    ]
    (frozen / "cgroup.freeze").write_text("0\n")
    assert "frozen" not in [kind for kind, *_ in found(settings)]


def test_the_scope_of_a_tree_that_runs_here_is_its_own(settings: Settings) -> None:
    begun(settings, "target", "HELD", "RESUMING", "RESUMED", "DONE").close()
    (leftovers.CGROUPS / f"migrated-{ID}.scope").mkdir(parents=True)
    assert found(settings) == []


def test_the_scope_of_a_unit_whose_tree_never_ran(settings: Settings) -> None:
    """It has the unit's name, and the journal says whose it is."""
    begun(settings, "target", "HELD", scope={"name": "migrated-x.scope", "title": "", "limits": []}).close()
    (leftovers.CGROUPS / "migrated-x.scope").mkdir(parents=True)
    (leftovers.CGROUPS / "migrated-y.scope").mkdir()
    assert recover("cgroup", "/cgroup/migrated-x.scope") in found(settings)
    assert not [what for _, what, *_ in found(settings) if "migrated-y" in what]


@pytest.mark.parametrize("over", [False, True])
def test_what_keeps_a_unit_from_being_revived(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: bool
) -> None:
    monkeypatch.setattr(service, "SYSTEMD", str(tmp_path / "system"))
    path = suspension.path_of("x.service")
    path.parent.mkdir(parents=True)
    path.write_text(suspension.TEXT.format(head="migration ", migration=ID))
    (path.parent / "other.conf").write_text("[Service]\n")
    begun(settings, "source", *(["FROZEN", "ABORT", "DONE"] if over else ["FROZEN"])).close()
    what = f"/system/x.service.d/{suspension.NAME}"
    found_units = [item for item in found(settings) if item[0] == "unit"]
    by_hand = ("unit", what, False, f"rm {what} && systemctl daemon-reload")
    assert found_units == [by_hand if over else recover("unit", what)]


def test_sockets_that_a_killed_criu_has_left(settings: Settings) -> None:
    """criu puts them into /tmp, whatever TMPDIR says; one that somebody has open is at work."""
    left, used = (f"/tmp/.criu-{word}-{os.getpid()}" for word in ("left", "used"))
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as living:
        try:
            dead.bind(left)
            dead.close()
            living.bind(used)
            said = [(item.kind, item.remove) for item in find(settings).items if item.what in (left, used)]
        finally:
            os.unlink(left)
            os.unlink(used)
    assert said == [("socket", f"rm {left}")]


TABLE = "CRIU-0123456789abcdef01234"
OTHER = "CRIU-fedcba9876543210fedcb"
RULE = "INPUT -s 192.0.2.9/32 ! --mark 0xc114 -j DROP"


def rules(settings: Settings) -> dict[str, tuple[str, bool, str]]:
    """(migration, in use, remove) of each rule."""
    return {one.what: (one.migration, one.in_use, one.remove) for one in find(settings).items if one.kind == "rule"}


@pytest.mark.parametrize("noted", [True, False])
def test_what_a_migration_at_work_keeps_still_is_in_use(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, noted: bool
) -> None:
    """Another criu's table is not its own; before it is noted nobody could tell, and the living criu is believed."""
    monkeypatch.setattr(guard, "tables", lambda: (TABLE, OTHER))
    monkeypatch.setattr(iptables, "left", lambda: [(f"iptables {RULE}", "", f"iptables -D {RULE}", "")])
    monkeypatch.setattr(ours.Descriptors, "attended", lambda *_: True)
    me = (os.getpid(), process.start_time(os.getpid()))
    kept = begun(settings, "source", "FROZEN", agent=me)
    kept.note("lock", table=TABLE) if noted else kept.note("criu", pid=me[0], start=me[1])
    said = rules(settings)
    assert {said[f"table inet {TABLE}"][:2], said[f"iptables {RULE}"][:2]} == {(ID, True)}
    assert said[f"table inet {OTHER}"][:2] == (("", False) if noted else (ID, True))
    kept.write(Record.ABORT)
    kept.write(Record.DONE)
    kept.close()
    assert rules(settings)[f"table inet {TABLE}"] == ("", False, f"nft delete table inet {TABLE}")


def test_what_a_dead_migration_keeps_still_is_for_recover(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "tables", lambda: (TABLE,))
    kept = begun(settings, "source", "FROZEN")
    kept.note("lock", table=TABLE)
    kept.close()
    assert rules(settings)[f"table inet {TABLE}"] == (ID, False, f"migrate recover {ID}")


def test_half_an_agent(settings: Settings, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "migrate"
    cache.mkdir(parents=True)
    (cache / "agent-0123456789abcdef.pyz").write_text("whole")
    (cache / f"agent-0123456789abcdef.pyz.{os.getpid()}").write_text("on its way")
    (cache / f"agent-0123456789abcdef.pyz.{GONE[0]}").write_text("half")
    half = f"/cache/migrate/agent-0123456789abcdef.pyz.{GONE[0]}"
    assert found(settings) == [("file", half, False, f"rm {half}")]


def test_after_a_reboot_no_pid_is_taken_for_another(settings: Settings, children: list[Child]) -> None:
    children.append(task := Child("somebody else"))
    kept = begun(settings, "target", "HELD", boot="another", tasks=[task.identity], agent=task.identity)
    kept.note("criu", pid=task.pid, start=task.identity[1])
    kept.close()
    assert [kind for kind, *_ in found(settings)] == ["journal"]


def test_every_kind_is_explained(settings: Settings) -> None:
    told = {line.split("|")[1].strip() for line in (leftovers.__doc__ or "").splitlines() if line.startswith("| ")}
    source = Path(leftovers.__file__).read_text()
    said = {word.split('"')[1] for word in source.split("self._item(")[1:] if word.startswith('"')} | {"rule"}
    assert said == told - {"kind"}
    assert {field.name for field in dataclasses.fields(protocol.Remain)} >= {"kind", "what", "remove"}
