"""agent/peculiar.py: each oddity of a real process once, and texts of systemd and the kernel that are not at hand."""

from __future__ import annotations

import os
import pty
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent import carried, connections, journald, peculiar, process
from agent.descriptors import Holdings, Opened, collect
from agent.protocol import Peculiarity
from tests.children import child, sees_map_files


def oddities(pid: int) -> dict[str, Peculiarity]:
    """By kind; of several of a kind the first."""
    found: dict[str, Peculiarity] = {}
    for one in process.inspect(pid).peculiarities:
        found.setdefault(one.kind, one)
    return found


def of(source: str, directory: Path, *, session: bool = True) -> dict[str, Peculiarity]:
    """Oddities of a process that runs this."""
    with child(source, directory, session=session) as pid:
        return oddities(pid)


def test_a_plain_process_has_none(tmp_path: Path) -> None:
    assert of("ready()", tmp_path) == {}


def test_one_that_leads_no_session_is_a_shell_job(tmp_path: Path) -> None:
    found = of("ready()", tmp_path, session=False)["shell-job"]
    assert found.object == str(os.getsid(0))


def test_pipes_inside_are_nothing_odd(tmp_path: Path) -> None:
    source = """
reading, writing = os.pipe()
if os.fork() == 0:
    time.sleep(600)
ready()
"""
    assert of(source, tmp_path) == {}


def test_a_pipe_to_somebody_else_is_named_with_its_holder(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        source = f"held = open('/proc/{os.getpid()}/fd/{writing}', 'wb')\nready()"
        found = of(source, tmp_path)["external-pipe"]
    finally:
        os.close(reading)
        os.close(writing)
    assert found.object.startswith("pipe:[")
    assert f"(pid {os.getpid()})" in found.detail


def test_a_fifo_is_a_pipe_too(tmp_path: Path) -> None:
    source = "held = open('fifo', 'r+b', buffering=0)\nready()"
    os.mkfifo(tmp_path / "fifo")
    ours = os.open(tmp_path / "fifo", os.O_RDWR)
    try:
        assert of(source, tmp_path)["external-pipe"].object == str(tmp_path / "fifo")
    finally:
        os.close(ours)
    assert of(source, tmp_path) == {}


def test_ghosts_carry_their_size(tmp_path: Path) -> None:
    source = "held = open('log', 'w'); held.write('x' * 1234); held.flush(); os.unlink('log')\nready()"
    found = of(source, tmp_path)
    assert set(found) == {"ghost"}
    assert (found["ghost"].object, found["ghost"].detail) == (str(tmp_path / "log"), "1234")


def test_a_name_that_is_gone_while_others_stay_is_a_link_remap(tmp_path: Path) -> None:
    source = "held = open('log', 'w'); os.link('log', 'other'); os.unlink('log')\nready()"
    assert of(source, tmp_path)["link-remap"].object == str(tmp_path / "log")


@pytest.mark.parametrize(("call", "kind"), [("fcntl.flock(held, fcntl.LOCK_EX)", "FLOCK WRITE"),
                                            ("fcntl.lockf(held, fcntl.LOCK_EX)", "POSIX WRITE")])  # fmt: skip
def test_locks_are_found(tmp_path: Path, call: str, kind: str) -> None:
    found = of(f"import fcntl\nheld = open('log', 'w'); {call}\nready()", tmp_path)["file-lock"]
    assert (found.object, found.detail) == (str(tmp_path / "log"), kind)


def test_ip_sockets_listening_connected_and_neither(tmp_path: Path) -> None:
    source = """
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
accepted, _ = server.accept()
nothing = socket.socket()
udp = socket.socket(type=socket.SOCK_DGRAM)
open("port", "w").write(str(server.getsockname()[1]))
ready()
"""
    found = of(source, tmp_path)
    port = (tmp_path / "port").read_text()
    assert found["inet-socket"].detail == "5"
    assert found["listen"].object == f"127.0.0.1:{port}"
    assert f"127.0.0.1:{port}" in found["tcp-established"].object.split(" -> ")
    assert found["tcp-established"].detail == "established"
    assert set(found) == {"inet-socket", "listen", "tcp-established"}


def test_a_socket_that_is_neither_bound_nor_connected_counts(tmp_path: Path) -> None:
    assert of("import socket\nheld = socket.socket()\nready()", tmp_path)["inet-socket"].detail == "1"


def test_a_kind_of_socket_that_criu_refuses(tmp_path: Path) -> None:
    source = """
import socket
try:
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
except OSError:
    open("none", "w").close()
ready()
"""
    found = of(source, tmp_path)
    if (tmp_path / "none").exists():
        pytest.skip("this kernel has no MPTCP")
    assert found["socket-kind"].object == "MPTCP"


def test_unix_sockets_inside_are_nothing_odd_but_for_their_path(tmp_path: Path) -> None:
    source = """
import socket
server = socket.socket(socket.AF_UNIX); server.bind(os.getcwd() + "/sock"); server.listen()
client = socket.socket(socket.AF_UNIX); client.connect("sock")
accepted, _ = server.accept()
pair = socket.socketpair()
if os.fork() == 0:
    time.sleep(600)
ready()
"""
    found = of(source, tmp_path)
    assert set(found) == {"unix-path"}
    assert found["unix-path"].object == str(tmp_path / "sock")


def test_a_unix_connection_to_somebody_else_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        source = f"import socket\nheld = socket.socket(socket.AF_UNIX); held.connect({path!r})\nready()"
        found = of(source, tmp_path)["external-unix"]
    assert (found.object, found.detail) == (path, "stream")


def test_output_that_goes_to_the_journal_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "stdout")
    monkeypatch.setattr(journald, "SOCKET", path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        source = f"""
import socket
held = socket.socket(socket.AF_UNIX); held.connect({path!r})
os.dup2(held.fileno(), 9)
open("/proc/self/comm", "w").write("printer")
print(os.fstat(9).st_ino, file=open("inode", "w"), flush=True)
ready()
"""
        found = of(source, tmp_path)
    assert "external-unix" not in found
    assert found["journal"].object == (tmp_path / "inode").read_text().strip()
    assert found["journal"].detail == "printer"


def test_datagrams_to_a_path_are_told_by_it(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        source = (
            f"import socket\nheld = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); held.connect({path!r})\nready()"
        )
        found = of(source, tmp_path)["external-unix"]
    assert (found.object, found.detail) == (path, "dgram")


def test_a_pair_whose_other_end_is_ours_is_named_by_its_holder(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        source = f"""
import socket
pidfd = os.pidfd_open({os.getpid()})
import ctypes
held = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, {theirs.fileno()}, 0)
os.close(pidfd)
assert held >= 0
ready()
"""
        if os.uname().machine != "x86_64":
            pytest.skip("the number of pidfd_getfd is known for x86_64 only")
        found = of(source, tmp_path)["external-unix"]
    assert f"(pid {os.getpid()})" in found.object


def test_a_peer_that_the_tree_made_while_it_was_looked_at_is_no_stranger(tmp_path: Path) -> None:
    source = "import socket\npair = socket.socketpair()\nif os.fork() == 0:\n    time.sleep(600)\nready()"
    with child(source, tmp_path) as pid:
        holdings = collect(process.tree_pids(pid))
        first = min(one.fd for one in holdings.opened if one.link.startswith("socket:"))
        holdings.opened = [one for one in holdings.opened if one.fd <= first]
        assert list(connections.of_unix(holdings)) == []


def test_descriptors_that_criu_refuses(tmp_path: Path) -> None:
    source = """
import select
poll = select.epoll()
pidfd = os.pidfd_open(os.getpid())
ready()
"""
    assert set(of(source, tmp_path)) == {"pidfd"}


@pytest.mark.parametrize(("link", "kind", "name"), [
    ("anon_inode:[io_uring]", "io-uring", "io_uring"), ("anon_inode:[perf_event]", "anon-inode", "[perf_event]"),
    ("anon_inode:bpf-prog", "anon-inode", "bpf-prog"), ("anon_inode:[userfaultfd]", "anon-inode", "[userfaultfd]"),
    ("anon_inode:[eventpoll]", "", ""), ("anon_inode:inotify", "", ""), ("anon_inode:[timerfd]", "", ""),
    ("/srv/anon_inode:[io_uring]", "", ""),
])  # fmt: skip
def test_kinds_of_anonymous_descriptors(tmp_path: Path, link: str, kind: str, name: str) -> None:
    holdings = Holdings()
    status = tmp_path.stat()
    holdings.opened.append(Opened(7, 3, link, status, False, (), None))
    assert [(one.kind, one.object) for one in peculiar._of_anonymous((), holdings)] == ([(kind, name)] if kind else [])


def device(major: int, minor: int, kind: int = stat.S_IFCHR) -> os.stat_result:
    """The status of a device."""
    return os.stat_result((kind | 0o600, 1, 2, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": os.makedev(major, minor)})


@pytest.mark.parametrize(("link", "status", "kind"), [
    ("/dev/null", device(1, 3), ""), ("/dev/urandom", device(1, 9), ""), ("/dev/mem", device(1, 1), "device"),
    ("/dev/fuse", device(10, 229), "device"), ("/dev/dri/card0", device(226, 0), "device"),
    ("/dev/sda", device(8, 0, stat.S_IFBLK), "device"), ("/dev/ptmx", device(5, 2), ""),
    ("/dev/tty1", device(4, 1), "terminal"), ("/dev/console", device(5, 1), "terminal"),
    ("/dev/tty", device(5, 0), "terminal"), ("/dev/pts/3", device(136, 3), "terminal"),
    ("/dev/pts/300", device(137, 44), "terminal"), ("/dev/ttyS0", device(4, 64), "device"),
])  # fmt: skip
def test_devices(link: str, status: os.stat_result, kind: str) -> None:
    holdings = Holdings()
    holdings.opened.append(Opened(7, 0, link, status, False, (), None))
    found = [(one.kind, one.object) for one in peculiar._of_devices(holdings)]
    assert found == ([(kind, link)] if kind else [])


def test_a_pty_whose_master_is_in_the_tree_is_no_foreign_terminal(tmp_path: Path) -> None:
    (one,) = of("import pty\nheld = pty.openpty()\nready()", tmp_path).values()
    assert (one.kind, one.object.isdigit()) == ("pty", True)


def test_a_pty_whose_master_is_ours_is_a_terminal(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    try:
        path = os.ttyname(slave)
        found = of(f"held = os.open({path!r}, os.O_RDWR | os.O_NOCTTY)\nready()", tmp_path)["terminal"]
    finally:
        os.close(master)
        os.close(slave)
    assert found.object == path


def test_a_traced_task_names_its_tracer(tmp_path: Path) -> None:
    source = """
import ctypes
if os.fork() == 0:
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    open("traced", "w").close()
    time.sleep(600)
while not os.path.exists("traced"):
    time.sleep(0.001)
ready()
"""
    with child(source, tmp_path) as pid:
        found = oddities(pid)["tracer"]
        assert found.object == str(pid)
        assert found.pid != pid


def test_a_first_thread_that_ended_is_odd(tmp_path: Path) -> None:
    source = """
import ctypes, threading
def once_the_first_has_ended():
    while open(f"/proc/self/task/{os.getpid()}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    ready()
threading.Thread(target=once_the_first_has_ended).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    assert "zombie-leader" in of(source, tmp_path)


def test_another_namespace_and_another_root_are_named(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    source = """
import ctypes
flag = os.open(".", os.O_RDONLY)
try:
    if ctypes.CDLL(None).unshare(0x40000000):  # CLONE_NEWNET
        raise PermissionError
    os.chroot("root")
except PermissionError:
    open("none", "w").close()
os.close(os.open("ready", os.O_CREAT | os.O_WRONLY, dir_fd=flag))
os.close(flag)
time.sleep(600)
"""
    found = of(source, tmp_path)
    if (tmp_path / "none").exists():
        pytest.skip("needs root to make a namespace and to change the root")
    assert found["namespace"].object == "net"
    assert found["chroot"].object == str(tmp_path / "root")


def test_memory_in_huge_pages_that_is_open_and_not_mapped(tmp_path: Path) -> None:
    """Each is counted, whatever its name; no page of it needs to be there yet."""
    source = """
held = [os.memfd_create("huge", os.MFD_HUGETLB) for _ in range(2)] + [os.memfd_create("small")]
for one in held:
    os.ftruncate(one, 4 << 20)
ready()
"""
    with child(source, tmp_path) as pid:
        found = [one for one in process.inspect(pid).peculiarities if one.kind == "hugetlb"]
    assert [one.object.split()[0] for one in found] == ["/memfd:huge"] * 2
    assert len({one.object for one in found}) == 2
    assert {int(one.detail.split()[0]) for one in found} == {4 << 20}


CARRIED = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def inner(flags):
    if libc.unshare(flags):
        open("none", "w").close()
{acts}
open("ready", "w").close()
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("acts", "kinds"),
    [
        ("inner(0x0c000000)\nos.fork()", set()),  # CLONE_NEWIPC and CLONE_NEWUTS
        ("os.fork() or inner(0x08000000)\ntime.sleep(0.5)", {"ipc"}),
        ("inner(0x08000000)\nos.fork() or inner(0x08000000)\ntime.sleep(0.5)", {"ipc"}),
    ],
    ids=["all of the tree", "a part of it", "two of them"],
)
def test_namespaces_that_the_tree_has_to_itself_are_none_to_be_named(
    tmp_path: Path, acts: str, kinds: set[str]
) -> None:
    found = of(CARRIED.format(acts=acts), tmp_path)
    if (tmp_path / "none").exists():
        pytest.skip("needs root to make a namespace")
    assert {one.object for name, one in found.items() if name == "namespace"} == kinds


def test_a_namespace_that_somebody_else_is_in_is_named(tmp_path: Path) -> None:
    """Its parent, which has made it and stays outside of the tree."""
    source = CARRIED.format(
        acts="inner(0x08000000)\nwith_parent = os.fork()\nif with_parent: os.waitpid(with_parent, 0)"
    )
    process = subprocess.Popen([sys.executable, "-c", "import os, time\n" + source], cwd=tmp_path)
    try:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        if (tmp_path / "none").exists():
            pytest.skip("needs root to make a namespace")
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        assert carried.of_tree([child]) == ()
        assert carried.of_tree([child, process.pid]) == ("ipc",)
    finally:
        process.kill()
        process.wait()


TIME = """
import ctypes
if ctypes.CDLL(None).unshare(0x80):  # CLONE_NEWTIME, for its children
    open("none", "w").close()
if os.fork() == 0:
    open("child", "w").write(str(os.getpid()))
    time.sleep(600)
while not os.path.exists("child") or not open("child").read():
    time.sleep(0.001)
ready()
"""


def test_a_tree_in_one_time_namespace_is_nothing_odd_and_one_in_two_is(tmp_path: Path) -> None:
    with child(TIME, tmp_path) as pid:
        if (tmp_path / "none").exists():
            pytest.skip("needs root to make a time namespace")
        assert oddities(pid)["namespace"].object == "time"
        # alone, as criu's restore leaves it: all of it is in another one than ours
        assert "namespace" not in oddities(int((tmp_path / "child").read_text()))


@pytest.mark.parametrize(("capabilities", "found"), [("000001fffeffffff", True), ("000001ffffffffff", False)])
def test_a_task_of_another_user_wants_a_capability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: str, found: bool
) -> None:
    real = peculiar._status

    def status(pid: int) -> bytes:
        return f"CapEff:\t{capabilities}\n".encode() if pid == os.getpid() else real(pid)

    with child("ready()", tmp_path) as pid:
        monkeypatch.setattr(peculiar, "_status", status)
        assert "capability" not in oddities(pid)
        monkeypatch.setattr(os, "getuid", lambda: 4711)
        assert ("capability" in oddities(pid)) is found


def test_what_is_held_of_a_dead_process_is_no_lost_file(tmp_path: Path) -> None:
    source = """
pid = os.fork()
if pid == 0:
    time.sleep(600)
held = open(f"/proc/{pid}/status")
os.kill(pid, 9)
os.waitpid(pid, 0)
ready()
"""
    found = of(source, tmp_path)
    assert set(found) == {"dead-process"}
    assert found["dead-process"].object.endswith("/status")


def test_sysv_shared_memory_is_found(tmp_path: Path) -> None:
    if not sees_map_files():
        pytest.skip("needs root: shared memory has no name but in map_files")
    source = """
import ctypes
libc = ctypes.CDLL(None)
segment = libc.shmget(0, 4096, 0o600)
libc.shmat.restype = ctypes.c_void_p
libc.shmat(segment, None, 0)
libc.shmctl(segment, 0, None)
ready()
"""
    assert of(source, tmp_path)["sysv-shm"].object.startswith("/SYSV")


# --- texts -----------------------------------------------------------------------------------------------------------


def test_network_mounts_are_known_by_device() -> None:
    mountinfo = (
        "36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        "37 35 0:51 / /srv/a\\040b rw - nfs4 server:/x rw\n"
        "38 35 0:52 / /g rw shared:7 - fuse.glusterfs x rw\n39 35 0:53 / /f rw - fuseblk /dev/sdb1 rw\ngarbage\n"
    )
    assert peculiar.network_mounts(mountinfo) == {os.makedev(0, 51): "nfs4", os.makedev(0, 52): "fuse.glusterfs"}


def test_files_of_a_network_file_system_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = tmp_path.stat().st_dev
    line = f"1 1 {os.major(number)}:{os.minor(number)} / / rw - nfs4 server:/x rw\n"
    monkeypatch.setattr(peculiar, "mountinfo", lambda: line)
    with child("held = open('log', 'w')\nready()", tmp_path) as pid:
        found = {one.object: one.detail for one in process.inspect(pid).peculiarities if one.kind == "network-file"}
        assert found[str(tmp_path / "log")] == "nfs4"
