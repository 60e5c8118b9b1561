"""agent/descriptors.py: maps lines of any kind, and what real processes hold."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import descriptors, files, peculiar, process, wire
from agent.memory import private_memory
from agent.process import tree_pids
from agent.protocol import Check, FileFacts
from tests.children import child, sees_map_files


def files_of(*pids: int) -> dict[str, FileFacts]:
    """What these hold, by path."""
    return {file.path: file for file in descriptors.collect(pids).files()}


# --- maps ------------------------------------------------------------------------------------------------------------


@given(
    start=st.integers(0, 2**63), size=st.integers(1, 2**40), inode=st.integers(0, 2**62),
    path=st.binary(max_size=40).map(lambda tail: b"/" + tail.replace(b"\n", b"\\012")),
)  # fmt: skip
def test_any_path_is_read_from_a_maps_line(start: int, size: int, inode: int, path: bytes) -> None:
    line = b"%08x-%08x rw-s 00001000 fd:01 %d        %s" % (start, start + size, inode, path)
    (found,) = descriptors.parse_maps(b"garbage\n" + line + b"\n\n")
    assert (found.start, found.end, found.permissions) == (start, start + size, "rw-s")
    assert (found.inode, found.path) == (inode, path)


@given(st.binary(max_size=300))
def test_garbage_among_maps_is_passed_over(data: bytes) -> None:
    for line in descriptors.parse_maps(data):
        assert line.start >= 0 or line.end >= 0 or line.inode >= 0 or line.path is not None


def test_a_line_without_a_path_is_anonymous() -> None:
    (line,) = descriptors.parse_maps(b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n")
    assert (line.inode, line.path) == (0, b"")


def test_a_field_of_status_is_not_looked_for_on_the_next_line() -> None:
    status = b"Name:\tUid: 7\\nx\nGroups:\t\nUid:\t1000\t0\t0\t0\n"
    assert descriptors.status_field(status, b"Uid") == "1000\t0\t0\t0"
    assert descriptors.status_field(status, b"Groups") == ""
    assert descriptors.status_field(status, b"Nothing") == ""


# --- real processes --------------------------------------------------------------------------------------------------


def test_a_process_is_seen_with_all_it_uses(tmp_path: Path) -> None:
    source = """
import mmap
log = open("log", "a")
reading = open("data", "rb")
shared = open("shared", "r+b")
area = mmap.mmap(shared.fileno(), 4096)
shared.close()
ready()
"""
    (tmp_path / "data").write_bytes(b"x" * 10)
    (tmp_path / "shared").write_bytes(bytes(4096))
    with child(source, tmp_path) as pid:
        files = files_of(pid)
        assert files[str(tmp_path / "log")].uses == ("open", "write")
        assert files[str(tmp_path / "data")].uses == ("open",)
        assert files[str(tmp_path / "shared")].uses == ("map", "open", "write")
        assert [one.link for one in descriptors.mapped(pid, written_only=True)] == [str(tmp_path / "shared")]
        assert "cwd" in files[str(tmp_path)].uses
        assert "root" in files["/"].uses
        assert files["/dev/null"].kind == "char"
        program = files[os.path.realpath(sys.executable)]
        assert {"exe", "exec", "map"} <= set(program.uses)
        data = files[str(tmp_path / "data")]
        status = (tmp_path / "data").stat()
        assert (data.kind, data.size, data.mode, data.uid) == ("regular", 10, status.st_mode & 0o7777, os.getuid())
        assert (data.mtime_ns, data.deleted, data.link_count) == (status.st_mtime_ns, False, 1)


def test_an_elf_file_that_is_run_has_its_build_id(tmp_path: Path) -> None:
    with child("ready()", tmp_path) as pid:
        ids = {file.build_id for file in files_of(pid).values() if "exec" in file.uses}
        assert any(len(found) >= 32 for found in ids)


ODD = b"a b) \n\xff(deleted) (deleted)"


def test_a_file_that_is_really_named_deleted_is_there(tmp_path: Path) -> None:
    source = f"""
held = open({ODD!r}, "w")
ready()
"""
    with child(source, tmp_path) as pid:
        file = files_of(pid)[os.fsdecode(os.fsencode(tmp_path) + b"/" + ODD)]
        assert (file.deleted, file.kind, file.uses) == (False, "regular", ("open", "write"))


def test_a_deleted_file_keeps_its_old_name(tmp_path: Path) -> None:
    source = f"""
held = open({ODD!r}, "w")
held.write("x" * 77); held.flush()
os.unlink({ODD!r})
ready()
"""
    with child(source, tmp_path) as pid:
        holdings = descriptors.collect([pid])
        path = os.fsdecode(os.fsencode(tmp_path) + b"/" + ODD)
        file = {file.path: file for file in holdings.files()}[path]
        assert (file.deleted, file.link_count, file.size) == (True, 0, 77)
        assert [(name, became) for name, became, *_ in holdings.fates()] == [(path, "ghost")]


def test_a_new_file_of_the_same_name_is_another_one(tmp_path: Path) -> None:
    source = """
first = open("log", "w"); first.write("old"); first.flush()
os.unlink("log")
second = open("log", "w")
ready()
"""
    with child(source, tmp_path) as pid:
        found = [file for file in descriptors.collect([pid]).files() if file.path == str(tmp_path / "log")]
        assert [(file.deleted, file.size) for file in found] == [(True, 3), (False, 0)]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_name_that_leads_elsewhere_is_a_link_remap(tmp_path: Path, replaced: bool) -> None:
    source = f"""
held = open("here", "w")
os.link("here", "other")
os.unlink("here")
if {replaced}:
    open("here", "w").close()
ready()
"""
    with child(source, tmp_path) as pid:
        fates = [(path, became) for path, became, *_ in descriptors.collect([pid]).fates()]
        assert fates == [(str(tmp_path / "here"), "link-remap")]


def test_a_descriptor_without_a_path_is_no_file(tmp_path: Path) -> None:
    with child(
        "import socket\nheld = os.pipe(), socket.socket(), os.eventfd(0) if hasattr(os, 'eventfd') else 0\nready()",
        tmp_path,
    ) as pid:
        assert all(path.startswith("/") for path in files_of(pid))
        links = [one.link for one in descriptors.opened(pid)]
        assert sum(link.startswith("pipe:") for link in links) == 2
        assert sum(link.startswith("socket:") for link in links) == 1


def test_locks_and_ptys_are_seen(tmp_path: Path) -> None:
    source = """
import fcntl, pty
held = open("locked", "w")
fcntl.flock(held, fcntl.LOCK_EX)
master, slave = pty.openpty()
ready()
"""
    with child(source, tmp_path) as pid:
        opened = list(descriptors.opened(pid))
        locked = [one for one in opened if one.locks]
        assert [(one.link, one.locks) for one in locked] == [(str(tmp_path / "locked"), ("FLOCK WRITE",))]
        (master,) = [one for one in opened if one.pty is not None]
        assert f"/dev/pts/{master.pty}" in [one.link for one in opened]


def test_a_file_held_by_two_processes_is_one(tmp_path: Path) -> None:
    source = """
held = open("log", "w")
if os.fork():
    ready()
reading = open("log")
held.close()
time.sleep(600)
"""
    with child(source, tmp_path) as pid:
        found = [file for file in descriptors.collect(tree_pids(pid)).files() if file.path.endswith("/log")]
        assert len(found) == 1
        assert "write" in found[0].uses


# --- memory ----------------------------------------------------------------------------------------------------------

MEMORY = """
import mmap
private = bytearray(b"x" * (32 << 20))
shared = mmap.mmap(-1, 16 << 20)
shared.write(b"y" * (16 << 20))
if os.fork() == 0:
    time.sleep(600)
ready()
"""


def test_private_memory_counts_in_each_process_and_shared_memory_once(tmp_path: Path) -> None:
    if not sees_map_files():
        pytest.skip("needs root: shared memory has no name but in map_files")
    with child(MEMORY, tmp_path) as pid:
        one, both = descriptors.collect([pid]).memory, descriptors.collect(tree_pids(pid)).memory
        assert 48 << 20 <= one < 80 << 20
        assert 80 << 20 <= both < 144 << 20  # two times the private memory, one time the shared
        assert not [file for file in descriptors.collect([pid]).files() if "zero" in file.path]


def test_a_memfd_is_memory_and_no_file(tmp_path: Path) -> None:
    source = """
held = os.memfd_create("held")
os.write(held, b"x" * (8 << 20))
ready()
"""
    with child(source, tmp_path) as pid:
        holdings = descriptors.collect([pid])
        assert not [file for file in holdings.files() if file.path.startswith("/memfd")]
        assert list(holdings.fates()) == []
        assert holdings.memory - private_memory(pid) >= 8 << 20


# --- what others may not see -----------------------------------------------------------------------------------------


def test_without_map_files_the_maps_lines_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a (deleted)"
    source = f"""
import mmap
held = open({name!r}, "r+b")
area = mmap.mmap(held.fileno(), 4096)
ready()
"""
    (tmp_path / name).write_bytes(bytes(4096))
    real = os.readlink

    def refused(path: str) -> str:
        if "map_files" in path:
            raise PermissionError
        return real(path)

    with child(source, tmp_path) as pid:
        monkeypatch.setattr(os, "readlink", refused)
        links = {mapping.link: mapping for mapping in descriptors.mapped(pid)}
        assert links[str(tmp_path / name)].writing
        written = [mapping.link for mapping in descriptors.mapped(pid, written_only=True)]
        assert written == [str(tmp_path / name)]


def test_what_is_gone_holds_nothing() -> None:
    holdings = descriptors.collect([4_190_000])
    assert (list(holdings.files()), holdings.memory, holdings.opened, holdings.mapped) == ([], 0, [], [])
    assert descriptors.same_namespace(4_190_000, "mnt")


def test_we_are_in_our_own_namespaces() -> None:
    assert descriptors.same_namespace(os.getpid(), "pid")


@pytest.mark.parametrize("name", [
    b"a\nb", b"a b", b"\xff\xfe", b"x (deleted)", b"\x1b[31m", b"a\\012b", b" ", b"x\n (deleted)", b"\xe2\x80\xae",
])  # fmt: skip
def test_any_name_is_asked_for_as_it_is(tmp_path: Path, name: bytes) -> None:
    """From the process that holds it, over the wire, to what the target has at that path."""
    path = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(path)).write_bytes(b"x" * 5000)
    source = f"""
import mmap
held = os.open({path!r}, os.O_RDONLY)
mapped = mmap.mmap(held, 4096, prot=mmap.PROT_READ)
ready()
"""
    with child(source, tmp_path) as pid:
        tree = process.inspect(pid)
    (found,) = [file for file in tree.files if os.fsencode(file.path) == path]
    assert (found.size, found.deleted, set(found.uses)) == (5000, False, {"map", "open"})
    over = wire.decode(FileFacts, json.loads(json.dumps(wire.plain(found))))
    (answer,) = files.check(Check((over,), ()), tmp_path).files
    assert (answer.path, answer.kind, answer.size) == (found.path, "regular", 5000)


def test_ten_thousand_mappings_are_few_files(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(4096))
    source = """
import mmap
held = os.open(sys.argv[1] + "/data", os.O_RDONLY)
both = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_EXEC
kept = [mmap.mmap(held, 4096, prot=both[at % 2]) for at in range(10000)]
ready()
"""
    with child(source, tmp_path) as pid:
        began = time.process_time()
        holdings = descriptors.collect([pid])
        took = time.process_time() - began
    (found,) = [file for file in holdings.files() if file.path == str(tmp_path / "data")]
    assert {"map", "open", "exec"} <= set(found.uses)
    assert took < 2


def test_a_tree_that_ends_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that vanishes is left out; a root that does is one clear error."""
    listed = process.tree_pids
    with child("if os.fork() == 0:\n    time.sleep(600)\nready()", tmp_path) as pid:
        (_, born) = listed(pid)
        vanished = 4_000_000
        monkeypatch.setattr(process, "tree_pids", lambda root: [pid, born, vanished])
        assert [task.pid for task in process.inspect(pid).tasks] == [pid, born]
        monkeypatch.undo()
    with pytest.raises(process.NoSuchProcess, match=f"there is no process {pid}"):
        process.inspect(pid)


def test_a_process_that_ends_after_it_was_listed_holds_nothing(tmp_path: Path) -> None:
    with child("ready()", tmp_path) as pid:
        tasks = process.tasks_of(pid)
    assert peculiar.of_tasks(tasks, descriptors.collect([pid])) in (
        [],
        peculiar.of_tasks(tasks, descriptors.Holdings()),
    )
    assert list(descriptors.collect([pid]).files()) == []
