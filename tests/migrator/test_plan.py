"""migrator/plan.py, fileplan.py and obstacle.py: each obstacle provoked once, and a plain tree that has none."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol import (
    Account,
    Address,
    Check,
    Conditions,
    FileFacts,
    HostFacts,
    Incoming,
    Numbers,
    Peculiarity,
    Place,
    TargetCheck,
    TaskFacts,
    TreeFacts,
)
from migrator.plan import Obstacle, Plan, Wishes, _version, make_plan, questions

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class World:
    """Everything that a plan is made of."""

    source: HostFacts
    target: HostFacts
    tree: TreeFacts
    missing: tuple[str, ...] = ()
    there: tuple[FileFacts, ...] = ()  # where the target differs
    taken: tuple[TaskFacts, ...] = ()
    memory: int = 4096 * MIB
    disk: int = 100_000 * MIB
    wishes: Wishes = Wishes()  # noqa: RUF009  frozen
    addresses: tuple[Address, ...] = ()  # where the target differs
    accounts: tuple[Account, ...] = ()
    missing_labels: tuple[str, ...] = ()
    taken_terminals: tuple[int, ...] = ()
    disk_volatile: str = ""

    def with_(self, **changes: object) -> World:
        """The same world, but for this."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def on_source(self, **changes: object) -> World:
        """Another source."""
        return self.with_(source=dataclasses.replace(self.source, **changes))  # type: ignore[arg-type]

    def on_target(self, **changes: object) -> World:
        """Another target."""
        return self.with_(target=dataclasses.replace(self.target, **changes))  # type: ignore[arg-type]

    def holding(self, *files: FileFacts) -> World:
        """The tree uses these as well."""
        return self.with_(tree=dataclasses.replace(self.tree, files=self.tree.files + files))

    def odd(self, kind: str, object_: str = "x", detail: str = "") -> World:
        """The tree has such a peculiarity too."""
        found = (*self.tree.peculiarities, Peculiarity(kind, 100, object_, detail))
        return self.with_(tree=dataclasses.replace(self.tree, peculiarities=found))

    def checked(self) -> TargetCheck:
        """A target that has everything as the source has it, but for `missing` and `there`."""
        different = {file.path: file for file in self.there}
        answers = []
        for file in questions(self.tree).files:
            if file.path in different:
                answers.append(different[file.path])
            elif file.path in self.missing or (file.uses == ("bind",)):
                answers.append(FileFacts(file.path, "missing", 0, 0, 0, 0, 0, 0, file.uses))
            elif file.uses == ("connect",):
                answers.append(dataclasses.replace(file, uses=("bound", "connect")))
            else:
                answers.append(file)
        asked = questions(self.tree)
        of_address = {one.address: one for one in self.addresses}
        addresses = tuple(of_address.get(one.address, one) for one in asked.addresses)
        of_number = {(one.kind, one.number): one for one in self.accounts}
        accounts = tuple(of_number.get((one.kind, one.number), one) for one in asked.accounts)
        return TargetCheck(
            tuple(answers), self.taken, self.memory, self.disk, accounts, addresses, self.missing_labels,
            self.taken_terminals, disk_volatile=self.disk_volatile,
        )  # fmt: skip

    def plan(self) -> tuple[Plan, tuple[Obstacle, ...]]:
        """What comes of it."""
        return make_plan(self.source, self.target, self.tree, self.checked(), self.wishes)

    def obstacles(self) -> list[tuple[str, str]]:
        """id and host of what stops it."""
        return [(one.id, one.host) for one in self.plan()[1] if one.stops]


def host(name: str) -> HostFacts:
    """A good one."""
    return HostFacts(
        hostname=name, boot_id=f"boot of {name}", machine="x86_64", kernel="6.12.43+deb13-amd64", python="3.13.5",
        uid=0, criu_path="criu", criu_version="4.1.1", criu_check="", dirty_tracking=True, page_size=4096,
        pid_max=4_194_304, memory_available=4096 * MIB, systemd=True, cpuinfo="aW1hZ2U=", cpu_check="", rsync=True,
    )  # fmt: skip


def task(pid: int, **changes: object) -> TaskFacts:
    """One that leads its own session."""
    plain = TaskFacts(
        pid=pid, ppid=1, pgid=pid, sid=pid, tids=(pid,), name=f"name-{pid}", state="S", start_time=7, uid=0
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def file(path: str, *uses: str, kind: str = "regular", **changes: object) -> FileFacts:
    """A file as the source has it."""
    plain = FileFacts(path, kind, 1000, 0o644, 0, 0, 10**18, 0, tuple(sorted(uses)))
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


EXE = file("/usr/bin/app", "exe", "exec", "map", build_id="aa" * 20, mode=0o755)
LIBRARY = file("/usr/lib/libx.so.1", "exec", "map", build_id="bb" * 20)
DATA = file("/srv/data", "open")
NULL = file("/dev/null", "open", "write", kind="char", size=0, mode=0o666, rdev=os.makedev(1, 3))
CWD = file("/srv", "cwd", kind="directory", size=4096, mode=0o755)
ROOT = file("/", "root", kind="directory", size=4096, mode=0o755)
SHARED = file("/net/data", "open", "write", mount="nfs4 server:/export")
LOG = file("/var/log/app.log", "open", "write", size=500)

TREE = TreeFacts(
    root=100,
    tasks=(task(100, tids=(100, 101)), task(200, ppid=100, pgid=100, sid=100), task(201, ppid=100, state="Z")),
    files=(EXE, LIBRARY, DATA, NULL, CWD, ROOT),
    peculiarities=(),
    memory=256 * MIB,
)
PLAIN = World(host("alpha"), host("beta"), TREE)
SLOW = PLAIN.with_(tree=dataclasses.replace(TREE, no_throttle="no cgroups are mounted here"))


def test_a_plain_tree_has_no_obstacle() -> None:
    plan, obstacles = PLAIN.plan()
    assert obstacles == ()
    assert plan.tree is TREE
    assert (plan.precopy, plan.on_disk, plan.copy_files, plan.notes) == (True, False, (), ())
    assert plan.criu == dataclasses.replace(plan.criu, shell_job=False, ghost_limit=0, file_locks=False, extra=())
    assert TREE.memory < plan.memory < 2 * TREE.memory


def connected(world: World) -> World:
    """With IP sockets."""
    return world.odd("inet-socket", "IP sockets", "1")


# name: (world, id, host); the same name again in ABSENT is the world where it just does not come to that
PROVOKED: dict[str, tuple[World, str, str]] = {
    "no root here": (PLAIN.on_source(uid=1000), "no-root", "alpha"),
    "no root there": (PLAIN.on_target(uid=1000), "no-root", "beta"),
    "no criu": (PLAIN.on_target(criu_version=""), "criu-missing", "beta"),
    "no criu here": (PLAIN.on_source(criu_version="", dirty_tracking=False), "criu-missing", "alpha"),
    "old criu": (PLAIN.on_source(criu_version="3.16.1").on_target(criu_version="4.0"), "criu-old", "alpha"),
    "criu is not content": (PLAIN.on_target(criu_check="no vdso"), "criu-check", "beta"),
    "another architecture": (PLAIN.on_target(machine="aarch64"), "architecture", "beta"),
    "another CPU": (PLAIN.on_target(cpu_check="xsave sizes differ"), "cpu", "beta"),
    "other pages": (PLAIN.on_target(page_size=65536), "page-size", "beta"),
    "no tracking": (
        PLAIN.on_source(dirty_tracking=False).with_(wishes=Wishes(require_precopy=True)), "no-dirty-tracking", "alpha",
    ),
    "no cpu controller": (SLOW.with_(wishes=Wishes(throttle=True)), "no-throttle", "alpha"),
    "sockets on a new kernel": (connected(PLAIN).on_source(kernel="6.16.0-1"), "criu-kernel-sockets", "alpha"),
    "page servers": (PLAIN.on_target(criu_version="4.2"), "criu-stream", "beta"),
    "pidfd": (PLAIN.on_target(criu_version="4.0").odd("pidfd", "pidfd"), "pidfd", "beta"),
    "small PIDs": (PLAIN.on_target(pid_max=201), "pid-range", "beta"),
    "pid": (PLAIN.with_(taken=(task(200),)), "pid-taken", "beta"),
    "tid": (PLAIN.with_(taken=(task(7, tids=(7, 101)),)), "pid-taken", "beta"),
    "group": (PLAIN.with_(taken=(task(7, pgid=100),)), "pid-taken", "beta"),
    "no namespaces": (
        PLAIN.on_target(conditions=Conditions(pid_namespaces=False)).with_(wishes=Wishes(namespaces="always")),
        "no-namespaces", "beta",
    ),
    "memory": (PLAIN.with_(memory=300 * MIB), "no-room", "beta"),
    "disk": (PLAIN.with_(memory=500 * MIB, disk=100 * MIB), "no-room", "beta"),
    "zombie": (
        PLAIN.with_(tree=dataclasses.replace(TREE, tasks=(task(100, state="Z"),), files=())), "zombie", "alpha",
    ),
    "no executable": (PLAIN.with_(missing=("/usr/bin/app",)), "file-missing", "beta"),
    "no library": (PLAIN.with_(missing=("/usr/lib/libx.so.1",)), "file-missing", "beta"),
    "no library, though files are copied": (
        PLAIN.with_(missing=("/usr/lib/libx.so.1",), wishes=Wishes(copy_files=True)), "file-missing", "beta",
    ),
    "no data": (PLAIN.with_(missing=("/srv/data",)), "file-missing", "beta"),
    "no working directory": (PLAIN.with_(missing=("/srv",)), "file-missing", "beta"),
    "no device": (PLAIN.with_(missing=("/dev/null",)), "file-missing", "beta"),
    "another size": (PLAIN.with_(there=(dataclasses.replace(DATA, size=999),)), "file-size", "beta"),
    "another mode": (PLAIN.with_(there=(dataclasses.replace(DATA, mode=0o600),)), "file-mode", "beta"),
    "another mode of a directory": (PLAIN.with_(there=(dataclasses.replace(CWD, mode=0o700),)), "file-mode", "beta"),
    "another kind": (PLAIN.with_(there=(dataclasses.replace(DATA, kind="directory"),)), "file-kind", "beta"),
    "another device": (PLAIN.with_(there=(dataclasses.replace(NULL, rdev=os.makedev(1, 5)),)), "file-kind", "beta"),
    "another build": (PLAIN.with_(there=(dataclasses.replace(LIBRARY, build_id="cc" * 20),)), "library-build", "beta"),
    "another size of a library": (PLAIN.with_(there=(dataclasses.replace(LIBRARY, size=1),)), "file-size", "beta"),
    "written": (PLAIN.holding(LOG), "file-written", "beta"),
    "written and missing": (PLAIN.holding(LOG).with_(missing=(LOG.path,)), "file-written", "beta"),
    "written and run": (
        PLAIN.holding(file("/x", "exec", "map", "write")).with_(wishes=Wishes(copy_files=True)), "file-written", "beta",
    ),
    "written and different": (
        PLAIN.holding(LOG).with_(there=(dataclasses.replace(LOG, size=3),), wishes=Wishes(copy_files=True)),
        "file-differs", "beta",
    ),
    "written and older": (
        PLAIN.holding(LOG).with_(there=(dataclasses.replace(LOG, mtime_ns=3),), wishes=Wishes(copy_files=True)),
        "file-differs", "beta",
    ),
    "no directory to copy to": (
        PLAIN.holding(LOG).with_(missing=(LOG.path, "/var/log"), wishes=Wishes(copy_files=True)),
        "directory-missing", "beta",
    ),
    "kernel's file": (
        PLAIN.holding(file("/sys/x", "open", "write")).with_(missing=("/sys/x",), wishes=Wishes(copy_files=True)),
        "file-missing", "beta",
    ),
    "network file system": (
        PLAIN.holding(LOG).odd("network-file", LOG.path, "nfs4").with_(
            missing=(LOG.path,), wishes=Wishes(copy_files=True)), "file-missing", "beta",
    ),
    "used socket": (
        PLAIN.odd("unix-path", "/run/app/s").with_(there=(file("/run/app/s", "bind", "bound", kind="socket"),)),
        "socket-taken", "beta",
    ),
    "no socket": (
        PLAIN.odd("unix-path", "/run/app/s").with_(there=(file("/run/app/s", "bind"),)), "socket-taken", "beta",
    ),
    "no directory for a socket": (
        PLAIN.odd("unix-path", "/run/app/s").with_(missing=("/run/app",)), "directory-missing", "beta",
    ),
    "no syslog": (
        PLAIN.odd("external-unix", "/dev/log", "dgram").with_(missing=("/dev/log",)), "socket-missing", "beta",
    ),
    "leased": (
        PLAIN.holding(LOG).odd("file-lock", LOG.path, "LEASE WRITE").with_(
            missing=(LOG.path,), wishes=Wishes(copy_files=True)), "file-leased", "alpha",
    ),
    "no syslog running": (
        PLAIN.odd("external-unix", "/dev/log", "dgram").with_(there=(file("/dev/log", "connect", kind="socket"),)),
        "socket-missing", "beta",
    ),
    "tcp": (connected(PLAIN).odd("tcp-established", "a -> b", "established"), "tcp-established", "alpha"),
    "dbus": (PLAIN.odd("external-unix", "/run/dbus/system_bus_socket", "stream"), "external-unix", "alpha"),
    "nameless": (PLAIN.odd("external-unix", "sshd (pid 3)", "dgram"), "external-unix", "alpha"),
    "another content": (PLAIN.with_(
        tree=dataclasses.replace(TREE, files=(dataclasses.replace(DATA, digest="aa"),)),
        there=(dataclasses.replace(DATA, digest="bb"),)), "file-content", "beta",
    ),
    "not to be read here": (
        PLAIN.with_(there=(dataclasses.replace(DATA, digest="bb"),)), "file-content", "beta",
    ),
    "another storage": (
        PLAIN.holding(SHARED).odd("network-file", SHARED.path, "nfs4").with_(
            there=(dataclasses.replace(SHARED, mount="ext4 /dev/sda1"),)), "not-shared", "beta",
    ),
    "nothing to watch": (
        PLAIN.odd("watch", "/srv/spool", "inotify").with_(missing=("/srv/spool",)), "watch-missing", "beta",
    ),
}  # fmt: skip

ABSENT: dict[str, World] = {
    "criu of Debian 12": PLAIN.on_source(criu_version="3.17.1").on_target(criu_version="3.17"),
    "sockets on an older kernel": connected(PLAIN).on_source(kernel="6.15.9"),
    "sockets with a newer criu": connected(PLAIN)
    .on_source(kernel="6.18", criu_version="4.2")
    .on_target(criu_version="4.2.1"),
    "sockets on a new kernel of the target": connected(PLAIN).on_target(kernel="6.18"),
    "pidfd": PLAIN.odd("pidfd", "pidfd"),
    "no cpu controller, and none is asked for": SLOW,
    "a cpu controller": PLAIN.with_(wishes=Wishes(throttle=True)),
    "PIDs just fit": PLAIN.on_target(pid_max=202),
    "others have other numbers": PLAIN.with_(taken=(task(7, tids=(7, 8)),)),
    "no tracking, and it was not required": PLAIN.on_source(dirty_tracking=False),
    "older criu there": PLAIN.on_target(criu_version="4.0"),
    "a directory's size": PLAIN.with_(there=(dataclasses.replace(CWD, size=12288),)),
    "another owner": PLAIN.with_(there=(dataclasses.replace(DATA, uid=7, gid=7, mtime_ns=1),)),
    "deleted": PLAIN.holding(file("/tmp/gone", "open", "write", deleted=True)).with_(missing=("/tmp/gone",)),
    "its own /proc": PLAIN.holding(file("/proc/200/stat", "open")).with_(missing=("/proc/200/stat",)),
    "a terminal's name": PLAIN.holding(file("/dev/pts/3", "open", kind="char")).with_(missing=("/dev/pts/3",)),
    "a socket left behind": PLAIN.odd("unix-path", "/run/s").with_(there=(file("/run/s", "bind", kind="socket"),)),
    "network file system": PLAIN.holding(SHARED).odd("network-file", SHARED.path, "nfs4"),
    "network file system by another name of the server": PLAIN.holding(SHARED)
    .odd("network-file", SHARED.path, "nfs4")
    .with_(there=(dataclasses.replace(SHARED, mount="nfs4 192.0.2.1:/export", size=7),)),
    "a file that is watched is another kind": PLAIN.odd("watch", "/srv/spool", "inotify").with_(
        there=(file("/srv/spool", "watch"),)
    ),
    "the same content at another time": PLAIN.with_(
        tree=dataclasses.replace(TREE, files=(dataclasses.replace(DATA, digest="aa"),)),
        there=(dataclasses.replace(DATA, digest="aa", mtime_ns=1),),
    ),
    "kernel's file": PLAIN.holding(file("/proc/sys/x", "open", "write")),
    "leased but not copied": PLAIN.odd("file-lock", DATA.path, "LEASE READ"),
    "file locks": PLAIN.odd("file-lock", "/srv/data", "FLOCK WRITE"),
    "syslog": PLAIN.odd("external-unix", "/dev/log", "dgram"),
}


@pytest.mark.parametrize("name", PROVOKED)
def test_an_obstacle_is_named_alone_and_with_a_remedy(name: str) -> None:
    world, id_, where = PROVOKED[name]
    _, obstacles = world.plan()
    assert [(one.id, one.host) for one in obstacles if one.stops] == [(id_, where)]
    for one in obstacles:
        assert one.object
        assert one.problem
        assert one.remedy
        assert "{" not in one.problem + one.remedy


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_no_obstacle(name: str) -> None:
    assert ABSENT[name].obstacles() == []


def test_warnings_about_many_files_are_one() -> None:
    two = [file(f"/srv/{name}", "open", mount="ext4 /dev/sda1") for name in "ab"]
    there = tuple(dataclasses.replace(one, uid=33, gid=34, mount="tmpfs tmpfs") for one in two)
    _, obstacles = PLAIN.holding(*two).with_(there=there).plan()
    assert [(one.id, one.object, one.stops) for one in obstacles] == [
        ("file-system", "/srv/a (and 1 more)", False), ("file-owner", "/srv/a (and 1 more)", False),
    ]  # fmt: skip
    assert obstacles[1].remedy == "there: chown 0:0 /srv/a /srv/b"
    assert obstacles[1].problem == "belongs to 33:34 there, here to 0:0"
    assert obstacles[0].problem == "lies on tmpfs there, on ext4 here"


@pytest.mark.parametrize(("here", "there", "said"), [
    ("ext4 /dev/sda1", "xfs /dev/sdb1", False), ("tmpfs tmpfs", "devtmpfs udev", False), ("", "tmpfs tmpfs", False),
    ("tmpfs tmpfs", "ext4 /dev/sda1", True), ("overlay overlay", "ramfs x", True),
])  # fmt: skip
def test_disk_or_memory_is_what_matters_of_a_file_system(here: str, there: str, said: bool) -> None:
    one = file("/srv/a", "open", mount=here)
    _, obstacles = PLAIN.holding(one).with_(there=(dataclasses.replace(one, mount=there),)).plan()
    assert [one.id for one in obstacles] == ["file-system"] * said


@pytest.mark.parametrize(("room", "stops"), [(1499, ["files-room"]), (1500, []), (-1, [])])
def test_files_that_come_along_take_room_on_their_file_system(room: int, stops: list[str]) -> None:
    sparse = file("/var/log/other/sparse", "open", "write", size=1 << 40, allocated=1000)
    log = dataclasses.replace(LOG, allocated=500)
    parents = [
        file(path, "parent", kind="directory", mount="ext4 /dev/sda1", room=room)
        for path in ("/var/log", "/var/log/other")
    ]
    world = PLAIN.holding(log, sparse).with_(missing=(log.path, sparse.path), there=tuple(parents))
    for wishes, wanted in ((Wishes(copy_files=True), stops), (Wishes(), [])):
        found = [one for one in world.with_(wishes=wishes).plan()[1] if one.id == "files-room"]
        assert [one.id for one in found] == wanted
        for one in found:
            assert (one.host, one.object, one.stops) == ("beta", "/var/log", True)
            assert one.problem.endswith("the files that are to come along there take 1.5 KiB")
    apart = [parents[0], dataclasses.replace(parents[1], mount="xfs /dev/sdb1")]
    assert "files-room" not in [
        one.id for one in world.with_(there=tuple(apart), wishes=Wishes(copy_files=True)).plan()[1]
    ]


def test_criu_of_another_major_version_is_said() -> None:
    _, obstacles = PLAIN.on_source(criu_version="3.19").on_target(criu_version="4.1").plan()
    assert [(one.id, one.stops) for one in obstacles] == [("criu-newer", False)]
    assert PLAIN.on_source(criu_version="4.0").on_target(criu_version="4.1.1").plan()[1] == ()


@pytest.mark.parametrize(
    ("here", "there", "by_images"), [("4.1.1", "4.2", False), ("4.2.1", "4.1", True), ("3.19", "5.0", False)]
)
def test_criu_before_and_since_4_2_do_not_understand_each_other(here: str, there: str, by_images: bool) -> None:
    hosts = PLAIN.on_source(criu_version=here).on_target(criu_version=there)
    assert ("criu-stream", "beta") in hosts.obstacles()
    for wishes in (Wishes(rsync=True), Wishes(shared="/srv/shared")):
        found = [one for one in hosts.with_(wishes=wishes).plan()[1] if one.id == "criu-stream"]
        assert bool(found) is by_images, "an older one takes all of a newer one's memory for empty"
        assert all(one.stops and "does not read the images of criu 4.2.1 on alpha" in one.problem for one in found)


@pytest.mark.parametrize(("here", "there", "stops"), [
    ("nfs4 server:/export", "nfs4 server:/export", None), ("nfs4 server:/export", "nfs server:/export", None),
    ("nfs4 server:/export", "nfs4 server:/other", True), ("nfs4 server:/export", "cifs //server/export", True),
    ("nfs4 server:/export", "nfs4 10.0.0.7:/export", False), ("nfs4 [2001:db8::1]:/a", "nfs4 server:/a", False),
    ("9p share", "9p other", False), ("ocfs2 /dev/sdb", "ocfs2 /dev/sdc", False),
    ("ocfs2 /dev/sdb", "gfs2 /dev/sdb", True), ("fuse.sshfs me@server:/a", "fuse.sshfs me@server:/b", True),
])  # fmt: skip
def test_another_export_is_not_the_same_storage(here: str, there: str, stops: bool | None) -> None:
    ours, theirs = (dataclasses.replace(SHARED, mount=mount) for mount in (here, there))
    _, obstacles = PLAIN.holding(ours).odd("network-file", ours.path, "x").with_(there=(theirs,)).plan()
    assert [(one.id, one.stops) for one in obstacles] == ([] if stops is None else [("not-shared", stops)])
    assert all(here in one.problem and there in one.problem for one in obstacles)


REFUSED = [
    "zombie-leader", "tracer", "capability", "namespace", "link-remap", "device", "terminal", "sysv-shm",
    "io-uring", "anon-inode", "socket-kind", "external-pipe", "watch-lost", "mqueue",
    "eventfd-semaphore", "scheduling", "sysv-ipc", "pidfd-outside", "packet-pipe", "unix-waiting", "thread-apart",
    "uninterruptible",
]  # fmt: skip


def test_what_criu_leaves_behind() -> None:
    (found,) = PLAIN.odd("personality", "0x40000").plan()[1]
    assert (found.id, found.host, found.object, found.stops) == ("personality", "alpha", "pid 100", False)
    assert "0x40000" in found.problem


@pytest.mark.parametrize("kind", REFUSED)
def test_what_criu_cannot_carry(kind: str) -> None:
    (found,) = PLAIN.odd(kind, "7", "what it is").plan()[1]
    assert (found.id, found.host, found.stops) == (kind, "alpha", True)
    assert "7" in found.object or found.object == "pid 100"
    assert found.remedy
    assert "{" not in found.problem


@pytest.mark.parametrize("device", ["/dev/nvidia0", "/dev/nvidiactl", "/dev/dri/renderD128", "/dev/kfd"])
def test_a_gpu_is_called_one(device: str) -> None:
    (found,) = PLAIN.odd("device", device, "character device 195:0").plan()[1]
    assert (found.id, found.object) == ("gpu", device)


@pytest.mark.parametrize(
    ("kind", "id_"), [("self", "is-self"), ("ancestor", "is-ancestor"), ("init", "is-init"),
                      ("kernel-thread", "kernel-thread")],
)  # fmt: skip
def test_of_what_was_not_looked_into_only_that_is_said(kind: str, id_: str) -> None:
    tree = TreeFacts(1, (task(1, sid=0, pgid=0),), (), (Peculiarity(kind, 1, "1", "init"),), 0)
    _, obstacles = PLAIN.with_(tree=tree, taken=(task(1),), memory=0, disk=0).plan()
    assert [(one.id, one.object) for one in obstacles] == [(id_, "pid 1")]


def test_every_obstacle_is_named_at_once() -> None:
    world = PLAIN.on_target(uid=7, cpu_check="no", pid_max=100).holding(LOG).odd("tracer", "5", "gdb (pid 5)")
    world = world.with_(missing=("/usr/bin/app", "/srv"), taken=(task(100),), memory=0, disk=0)
    assert {one for one, _ in world.obstacles()} == {
        "no-root", "cpu", "pid-range", "file-written", "tracer", "file-missing", "pid-taken", "no-room",
    }  # fmt: skip
    assert len([one for one in world.plan()[1] if one.id == "file-missing"]) == 2


def connected_thrice() -> World:
    """Three connections; the last one nobody has accepted yet."""
    world = connected(PLAIN)
    for number in range(2):
        world = world.odd("tcp-established", f"a:80 -> b:{number}", "established")
    return world.odd("tcp-established", "a:80", "waits to be accepted")


def test_every_connection_is_named_with_its_peer() -> None:
    found = [one for one in connected_thrice().plan()[1] if one.id == "tcp-established"]
    assert [one.object for one in found] == ["a:80 -> b:0", "a:80 -> b:1", "a:80"]
    assert all(one.stops for one in found)


def test_or_is_closed_with_a_warning() -> None:
    plan, obstacles = connected_thrice().with_(wishes=Wishes(tcp="close")).plan()
    assert [(one.id, one.object, one.stops) for one in obstacles] == [
        ("tcp-closed", "a:80 -> b:0", False), ("tcp-closed", "a:80 -> b:1", False), ("tcp-closed", "a:80", False),
    ]  # fmt: skip
    assert plan.criu.tcp_close
    assert not plan.criu.tcp_established
    assert "--skip-in-flight" in plan.criu.for_dump
    assert "b:1" in plan.notes[1]


def test_hosts_without_a_name_or_with_the_same_one_are_told_apart() -> None:
    nameless = PLAIN.on_source(hostname="", uid=1).on_target(hostname="", uid=1)
    assert nameless.obstacles() == [("no-root", "source"), ("no-root", "target")]
    twins = PLAIN.on_source(hostname="db", uid=1).on_target(hostname="db", uid=1)
    assert twins.obstacles() == [("no-root", "db (source)"), ("no-root", "db (target)")]


def test_warnings_are_notes_as_well() -> None:
    plan, obstacles = PLAIN.on_source(dirty_tracking=False).on_target(criu_version="4.0").plan()
    assert [(one.id, one.stops) for one in obstacles] == [("criu-older", False), ("no-dirty-tracking", False)]
    assert not plan.precopy
    assert len(plan.notes) == 2
    assert "while the process is frozen" in plan.notes[1]
    assert "\n" not in "".join(plan.notes)


# --- the plan --------------------------------------------------------------------------------------------------------


def test_files_that_the_tree_writes_or_that_are_missing_are_copied() -> None:
    same = file("/srv/same", "map", "write")
    world = PLAIN.holding(LOG, same, DATA).with_(missing=(LOG.path, DATA.path), wishes=Wishes(copy_files=True))
    plan, obstacles = world.plan()
    assert obstacles == ()
    assert set(plan.copy_files) == {
        Incoming(LOG.path), Incoming(DATA.path), Incoming(same.path, True, same.size, same.mtime_ns),
    }  # fmt: skip


def test_without_being_asked_nothing_is_copied_and_the_option_is_named() -> None:
    plan, obstacles = PLAIN.holding(LOG).with_(missing=(DATA.path,)).plan()
    assert plan.copy_files == ()
    assert [one.object for one in obstacles] == [DATA.path, LOG.path]
    assert all("--copy-files" in one.remedy for one in obstacles)


def test_a_copy_is_never_promised_over_what_is_missing_its_directory() -> None:
    two = (file("/opt/x/1", "open", "write"), file("/opt/x/2", "open", "write"))
    world = PLAIN.holding(*two).with_(missing=("/opt/x/1", "/opt/x/2", "/opt/x"), wishes=Wishes(copy_files=True))
    plan, obstacles = world.plan()
    assert plan.copy_files == ()
    assert [(one.id, one.object) for one in obstacles] == [("directory-missing", "/opt/x")]


def test_options_follow_what_is_odd() -> None:
    world = (
        PLAIN.odd("file-lock", "/x", "FLOCK WRITE").odd("ghost", "/tmp/a", str(50 * MIB)).odd("ghost", "/tmp/b", "7")
    )
    world = world.odd("external-unix", "/dev/log", "dgram")
    plan, obstacles = world.plan()
    assert obstacles == ()
    assert plan.criu.file_locks
    assert plan.criu.ghost_limit > 50 * MIB
    assert plan.criu.extra == ("--ext-unix-sk",)
    assert plan.memory >= PLAIN.plan()[0].memory + 50 * MIB
    assert any("/dev/log" in note for note in plan.notes)


def test_a_shell_job_is_found_and_said() -> None:
    tasks = (task(100, sid=50, pgid=60), task(200, ppid=100, sid=50, pgid=60))
    world = PLAIN.with_(tree=dataclasses.replace(TREE, tasks=tasks)).odd("shell-job", "50", "bash (pid 50)")
    plan, obstacles = world.with_(taken=(task(7, sid=50, pgid=60),)).plan()
    assert obstacles == ()  # session and group stay behind, so they may be taken there
    assert plan.criu.shell_job
    (note,) = plan.notes
    assert "bash (pid 50)" in note


@pytest.mark.parametrize(("kind", "object_", "detail", "said"), [
    ("chroot", "/srv/jail", "app", True), ("external-unix", "/dev/log", "dgram", True), ("never heard", "x", "", False),
])  # fmt: skip
def test_what_is_worth_a_note(kind: str, object_: str, detail: str, said: bool) -> None:
    plan, obstacles = PLAIN.odd(kind, object_, detail).plan()
    assert obstacles == ()
    assert len(plan.notes) == said


def test_a_cpu_that_criu_cannot_describe_is_worth_a_note() -> None:
    plan, obstacles = PLAIN.on_source(machine="aarch64", cpuinfo="").on_target(machine="aarch64").plan()
    assert obstacles == ()
    assert "CPU" in plan.notes[0]


def test_images_go_to_disk_when_memory_does_not_hold_them_and_the_process() -> None:
    images = PLAIN.plan()[0].memory
    enough = images + TREE.memory + 64 * MIB
    assert not PLAIN.with_(memory=enough).plan()[0].on_disk
    plan, obstacles = PLAIN.with_(memory=enough - 1).plan()
    assert (plan.on_disk, obstacles) == (True, ())
    assert any("disk" in note for note in plan.notes)
    short = PLAIN.with_(memory=enough - 1, disk=images).plan()[1]
    assert [(one.id, one.object) for one in short] == [("no-room", "images")]
    none = PLAIN.with_(memory=TREE.memory, disk=0).plan()[1]
    assert [(one.id, one.object) for one in none] == [("no-room", "memory"), ("no-room", "images")]


def test_what_is_to_be_durable_goes_to_disk_and_says_what_is_missing() -> None:
    durable = PLAIN.with_(wishes=Wishes(durable=True))
    images = PLAIN.plan()[0].memory
    plan, obstacles = durable.plan()
    assert (plan.on_disk, plan.durable, obstacles) == (True, True, ())
    assert not any("disk" in note for note in plan.notes), "it was asked for"
    (short,) = durable.with_(disk=images).plan()[1]
    assert (short.id, short.object) == ("no-room", "images")
    assert "leave --durable" in short.remedy
    (short,) = durable.with_(memory=TREE.memory).plan()[1]
    assert (short.id, short.object) == ("no-room", "memory")
    (volatile,) = durable.with_(disk_volatile="tmpfs").plan()[1]
    assert (volatile.id, volatile.stops) == ("not-durable", True)
    assert "tmpfs" in volatile.problem
    assert PLAIN.with_(disk_volatile="tmpfs").plan()[1] == ()


# --- questions -------------------------------------------------------------------------------------------------------


def test_all_numbers_of_the_tree_must_be_free() -> None:
    tasks = (task(100, tids=(100, 101)), task(200, sid=150, pgid=160))
    asked = questions(dataclasses.replace(TREE, tasks=tasks))
    assert asked.ids == (100, 101, 150, 160, 200)


@pytest.mark.parametrize(("wish", "taken", "made", "stops"), [
    ("never", (), False, 0), ("auto", (), False, 0), ("always", (), True, 0),
    ("never", (task(200),), False, 1), ("auto", (task(200),), True, 0), ("always", (task(200),), True, 0),
    ("auto", (task(7, tids=(7, 101)),), True, 0), ("auto", (task(7, sid=100),), True, 0),
    ("auto", (task(7),), False, 0),
])  # fmt: skip
def test_a_namespace_is_made_where_it_was_asked_for_and_auto_where_an_id_is_taken(
    wish: str, taken: tuple[TaskFacts, ...], made: bool, stops: int
) -> None:
    world = PLAIN.with_(wishes=Wishes(namespaces=wish), taken=taken)
    plan, _ = world.plan()
    assert plan.namespaces is made
    assert [id_ for id_, _ in world.obstacles()] == ["pid-taken"] * stops
    assert len([note for note in plan.notes if "namespace" in note]) == (1 if made and taken else 0)


def test_a_tree_that_lives_in_a_namespace_is_asked_for_by_its_numbers_there_and_gets_one_again() -> None:
    inside = (Numbers(20, 20, 0, (20, 21)), Numbers(22, 20, 0, (22,)), Numbers(23, 23, 0, (23,)))
    world = PLAIN.with_(tree=dataclasses.replace(TREE, inside=inside), taken=(task(22),))
    assert questions(world.tree).ids == (20, 21, 22, 23)
    plan, _ = world.plan()
    assert (plan.namespaces, plan.numbers) == (True, inside)
    assert world.obstacles() == []
    assert any("pid 20 there" in note for note in plan.notes)
    assert world.on_target(pid_max=24).obstacles() == []
    assert world.on_target(pid_max=23).obstacles() == [("pid-range", "beta")]
    without = world.on_target(conditions=Conditions(pid_namespaces=False))
    assert without.obstacles() == [("no-namespaces", "beta")]


def test_the_number_of_a_dead_process_must_be_free_too() -> None:
    world = PLAIN.odd("dead-process", "/proc/4242/status")
    assert questions(world.tree).ids == (100, 101, 200, 201, 4242)
    assert world.obstacles() == []


def test_the_session_of_a_shell_stays_behind() -> None:
    tasks = (task(100, sid=50, pgid=60), task(200, sid=50, pgid=60), task(300, sid=50, pgid=300))
    assert questions(dataclasses.replace(TREE, tasks=tasks)).ids == (100, 200, 300)


def test_what_is_asked_of_files() -> None:
    world = PLAIN.holding(LOG, file("/tmp/gone", "open", deleted=True), file("/proc/100/maps", "open"))
    world = world.odd("unix-path", "/run/app/s").odd("external-unix", "/dev/log", "dgram")
    asked = questions(world.tree)
    paths = [one.path for one in asked.files]
    assert {"/usr/bin/app", "/srv/data", "/dev/null", "/srv", LOG.path} <= set(paths)
    assert not {"/tmp/gone", "/proc/100/maps"} & set(paths)
    uses = {one.path: one.uses for one in asked.files if one.kind in ("socket", "directory")}
    assert (uses["/run/app/s"], uses["/dev/log"]) == (("bind",), ("connect",))
    assert (uses["/run/app"], uses["/var/log"]) == (("parent",), ("parent",))
    assert "/usr/bin" not in paths  # nothing is ever copied there


@pytest.mark.parametrize("spoil", [
    lambda files: files[1:], lambda files: files[::-1], lambda files: (*files, files[0]), lambda files: (),
])  # fmt: skip
def test_answers_to_other_questions_are_refused(
    spoil: Callable[[tuple[FileFacts, ...]], tuple[FileFacts, ...]],
) -> None:
    good = PLAIN.checked()
    with pytest.raises(ValueError, match="other questions"):
        make_plan(PLAIN.source, PLAIN.target, TREE, dataclasses.replace(good, files=spoil(good.files)), Wishes())


# --- whatever is found -----------------------------------------------------------------------------------------------

text = st.text(max_size=12)
versions = st.one_of(text, st.sampled_from(["", "4.1.1", "3.17", "v4", "4.2-rc1", "..."]))
kinds = st.sampled_from([
    "journal", "namespace", "tcp-established", "external-unix", "external-pipe", "listen", "unix-path", "shell-job",
    "network-file", "inet-socket", "file-lock", "never heard of", *REFUSED,
])  # fmt: skip
paths = st.sampled_from(["/a", "/a/b", "/proc/100/x", "/dev/pts/1", "/sys/a", "/\udcff"])
found_files = st.builds(
    FileFacts, paths, st.sampled_from(["regular", "directory", "char", "fifo", "block", "link"]), st.integers(0, 9),
    st.sampled_from([0o644, 0o755]), st.just(0), st.just(0), st.integers(0, 3), st.integers(0, 3),
    st.lists(st.sampled_from(["exe", "exec", "map", "open", "write", "cwd"]), unique=True).map(
        lambda uses: tuple(sorted(uses))),
    st.booleans(), st.just(1), st.sampled_from(["", "ab"]),
)  # fmt: skip


@given(
    files=st.lists(found_files, max_size=6, unique_by=lambda one: one.path),
    oddities=st.lists(st.builds(Peculiarity, kinds, st.just(100), st.one_of(paths, text), text), max_size=6),
    source=versions, target=versions, kernel=versions, copy=st.booleans(), overwrite=st.booleans(), data=st.data(),
)  # fmt: skip
def test_whatever_is_found_there_is_a_plan_and_only_safe_copies(
    files: list[FileFacts], oddities: list[Peculiarity], source: str, target: str, kernel: str, copy: bool,
    overwrite: bool, data: st.DataObject,
) -> None:  # fmt: skip
    tree = dataclasses.replace(TREE, files=tuple(files), peculiarities=tuple(oddities))
    world = PLAIN.with_(tree=tree, wishes=Wishes(copy_files=copy, overwrite_files=overwrite))
    world = world.on_source(criu_version=source, kernel=kernel).on_target(criu_version=target)
    asked: Check = questions(tree)
    answers = []
    for one in asked.files:
        answers.append(dataclasses.replace(data.draw(found_files), path=one.path, uses=one.uses))
    check = TargetCheck(tuple(answers), (), 4096 * MIB, 0, asked.accounts, asked.addresses)
    plan, _ = make_plan(world.source, world.target, tree, check, world.wishes)
    by_path = {one.path: one for one in files}
    there = {one.path: one for one in answers if one.uses != ("parent",)}
    for copied in plan.copy_files:
        assert copy
        assert by_path[copied.path].kind == "regular"
        assert not by_path[copied.path].deleted
        assert not {"exe", "exec"} & set(by_path[copied.path].uses)
        assert there[copied.path].kind == ("regular" if copied.replace else "missing")
        if copied.replace and not overwrite:
            one = by_path[copied.path]
            assert (copied.size, copied.mtime_ns) == (one.size, one.mtime_ns)


@pytest.mark.parametrize(
    ("wish", "zstd", "compress", "said"),
    [("auto", "library", "auto", 0), ("zstd", "module", "zstd", 0), ("none", "library", "none", 0),
     ("auto", "", "none", 0), ("zstd", "", "none", 1)],
)  # fmt: skip
def test_a_target_without_zstd_gets_it_plain(wish: str, zstd: str, compress: str, said: int) -> None:
    plan, _ = PLAIN.on_target(zstd=zstd).with_(wishes=Wishes(compress=wish)).plan()
    assert plan.compress == compress
    assert sum("nothing is compressed" in note for note in plan.notes) == said


def ids_of(world: World) -> list[tuple[str, str]]:
    return [(one.id, one.host) for one in world.plan()[1]]


def test_rsync_has_to_be_on_both_hosts() -> None:
    rounds = PLAIN.with_(wishes=Wishes(rsync=True))
    files = PLAIN.with_(missing=(DATA.path,), wishes=Wishes(copy_files=True))
    for world in (rounds, files):
        assert ids_of(world.on_source(rsync=False)) == [("rsync-missing", "alpha")]
        assert ids_of(world.on_target(rsync=False)) == [("rsync-missing", "beta")]
        assert ids_of(world) == []
    nothing_to_copy = PLAIN.with_(wishes=Wishes(copy_files=True)).on_source(rsync=False).on_target(rsync=False)
    assert ids_of(nothing_to_copy) == []


def test_what_differs_on_the_target_is_replaced_when_it_is_told() -> None:
    program, data = file("/opt/bin/x", "exec", "map", build_id="ab"), dataclasses.replace(DATA, size=3, mtime_ns=2)
    log, mode = dataclasses.replace(LOG, size=3, mtime_ns=7), dataclasses.replace(file("/srv/mode"), mode=0o600)
    world = PLAIN.holding(LOG, file("/srv/mode"), program)
    world = world.with_(there=(data, log, mode, dataclasses.replace(program, size=3)))
    world = world.with_(wishes=Wishes(copy_files=True))
    assert sorted(ids_of(world)) == [
        ("file-differs", "beta"), ("file-mode", "beta"), ("file-size", "beta"), ("file-size", "beta"),
    ]  # fmt: skip
    told = world.with_(wishes=Wishes(copy_files=True, overwrite_files=True))
    plan, obstacles = told.plan()
    assert [(one.id, one.object) for one in obstacles] == [("file-size", program.path)], "never a program"
    assert set(plan.copy_files) == {
        Incoming(DATA.path, True, 3, 2), Incoming(LOG.path, True, 3, 7),
        Incoming("/srv/mode", True, mode.size, mode.mtime_ns),
    }  # fmt: skip


def test_what_is_only_older_is_replaced_if_its_content_differs() -> None:
    """The target digests what has the same size and another time; the source then knows its own of it."""
    older = dataclasses.replace(DATA, mtime_ns=DATA.mtime_ns - 1, digest="old")
    wishes = Wishes(copy_files=True, overwrite_files=True)
    assert questions(TREE, wishes).digests
    world = PLAIN.with_(there=(older,), wishes=wishes)
    files = tuple(dataclasses.replace(one, digest="new" if one.path == DATA.path else "") for one in world.tree.files)
    plan, obstacles = world.with_(tree=dataclasses.replace(world.tree, files=files)).plan()
    assert (plan.copy_files, obstacles) == ((Incoming(DATA.path, True, older.size, older.mtime_ns),), ())
    same = tuple(dataclasses.replace(one, digest="old" if one.path == DATA.path else "") for one in world.tree.files)
    assert world.with_(tree=dataclasses.replace(world.tree, files=same)).plan()[0].copy_files == ()
    assert ids_of(PLAIN.with_(wishes=Wishes(shared="/srv"))) == [], "nothing is sent"


def test_where_rounds_are_kept() -> None:
    both = PLAIN
    assert both.plan()[0].place == Place()
    plan, _ = both.with_(wishes=Wishes(rsync=True)).plan()
    assert plan.place == Place(True, 2 * plan.memory)
    short = both.on_source(memory_available=plan.memory).with_(wishes=Wishes(rsync=True))
    assert short.plan()[0].place == Place(True, 0), "on disk"
    named = both.with_(wishes=Wishes(rsync=True, images_directory="/srv/images"))
    assert named.plan()[0].place == Place(True, 0, "/srv/images")
    assert both.with_(wishes=Wishes(shared="/nfs")).plan()[0].place == Place(True, 0, "/nfs", True)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("4.1.1", (4, 1, 1)),
        ("6.12.43+deb13-amd64", (6, 12, 43)),
        ("", ()),
        ("v4", ()),
        ("4.²", (4,)),
        ("9" * 9999, (999999999,)),
    ],
)
def test_versions_as_hosts_tell_them(text: str, version: tuple[int, ...]) -> None:
    assert _version(text) == version
