"""Each obstacle provoked for real: found, rightly named, the remedy works, and the process goes on as if nothing was.

Where a case says that criu refuses it, criu itself is asked to, past migrate: the dump on alpha, or the restore on
beta. A case that criu carries must be no obstacle.
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.conftest import Run, Started
from tests.live.lab_host import LabHost

pytestmark = pytest.mark.long_on("vm")

PLACE = "/srv/obst"
"""A directory of the tests' own, on both hosts."""
HEAD = f"""
import ctypes, mmap, os, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def sure(result):
    if result < 0: sys.exit(os.strerror(ctypes.get_errno()))
    return result
def aside(work):
    # a process beside the tree, which does this and lives as long as the tree's root
    root, (reading, writing), (ready, go) = os.getpid(), os.pipe(), os.pipe()
    if os.fork() == 0:
        if os.fork(): os._exit(0)
        os.setsid(); os.read(ready, 1)  # no SIGCHLD is under way any more, which would stop one that is traced
        work(); os.write(writing, b'.')
        for one in reading, writing, ready, go: os.close(one)
        while open(f'/proc/{{root}}/stat').read().rpartition(')')[2].split()[0] not in 'ZX': time.sleep(0.1)
        os._exit(0)
    os.wait(); os.close(writing); os.write(go, b'.'); os.read(reading, 1)
    for one in reading, ready, go: os.close(one)
os.chdir('{PLACE}')
"""
TAIL = f"\nopen('{PLACE}/ready', 'w').close()\nwhile True: time.sleep(1000)\n"

DUMP, RESTORE, CARRIED = "dump", "restore", "carried"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is provoked, and what must be said."""

    id: str  # "" where nothing must be said
    program: str = ""
    here: str = ""  # commands on the source beforehand
    there: str = ""  # commands on the target beforehand
    where: str = "alpha"
    object: str = ""  # what the obstacle's object contains
    stops: bool = True
    options: str = ""
    criu: str = ""  # DUMP or RESTORE: criu by itself fails there; CARRIED: it does not
    remedy: str = ""  # `run`: the obstacle's own remedy is a command; otherwise what to do on the target
    after: str = ""  # on both hosts, to leave nothing behind
    on: str = ""  # the one backend where it can be provoked


def opened(mode: str = "r") -> str:
    """A program that holds PLACE/data open."""
    return f"held = open('{PLACE}/data', '{mode}')"


DATA = f"echo 12345 >{PLACE}/data; chmod 644 {PLACE}/data; touch -d @1000000000 {PLACE}/data"
BUILD = f"""python3 - <<'END'
import ctypes.util, glob, os, re
path = next(iter(glob.glob('/lib/*/libz.so.1') + glob.glob('/usr/lib/*/libz.so.1')))
data = bytearray(open(path, 'rb').read())
if os.uname().nodename == 'beta':
    at = data.index(b'GNU\\0', data.index(b'\\x03\\0\\0\\0GNU\\0')) + 4
    data[at] ^= 1
open('{PLACE}/libz.so', 'wb').write(data)
END
chmod 644 {PLACE}/libz.so"""
LISTENER = (
    'python3 -c \'import socket,time\ns=socket.socket(type=socket.SOCK_{kind});s.bind(("0.0.0.0",8099))\n'
    '{listen}\nopen("/srv/obst/up","w").close()\ntime.sleep(600)\' >/dev/null 2>&1 </dev/null & '
    "echo $! >/srv/obst/pid; for i in $(seq 100); do test -e /srv/obst/up && break; sleep 0.05; done"
)
TCP = LISTENER.replace("{kind}", "STREAM").replace("{listen}", "s.listen()")
UDP = LISTENER.replace("{kind}", "DGRAM").replace("{listen}", "")
BOUND = TCP.replace(
    'socket.socket(type=socket.SOCK_STREAM);s.bind(("0.0.0.0",8099))', 'socket.socket(1);s.bind("/srv/obst/s")'
)
TERMINAL = (
    'python3 -c \'import pty,time\nends=pty.openpty()\nopen("/srv/obst/up","w").close()\ntime.sleep(600)\' '
    ">/dev/null 2>&1 </dev/null & echo $! >/srv/obst/pid; "
    "for i in $(seq 100); do test -e /srv/obst/up && break; sleep 0.05; done"
)
END = f"kill $(cat {PLACE}/pid)"
SHARED = "s = socket.socket(); s.setsockopt(1, 15, 1); s.bind(('0.0.0.0', 8099)); s.listen()"
NAMED = BOUND.replace("/srv/obst/s", "\\0obst").replace('"\\0obst"', 'chr(0)+"obst"')
THREAD = f"""
import threading
def work():
    sure(libc.unshare({{flags}})); open('{PLACE}/apart', 'w').close(); time.sleep(1e6)
threading.Thread(target=work, daemon=True).start()
while not os.path.exists('{PLACE}/apart'): time.sleep(0.01)
"""

CASES = {
    "nothing odd": Case("", criu=CARRIED),
    "a library of another build": Case(
        "library-build", f"ctypes.CDLL('{PLACE}/libz.so')", BUILD, BUILD, "beta", "libz.so", criu=RESTORE,
    ),
    "a file that is missing": Case(
        "file-missing", opened(), DATA, where="beta", object="data", criu=RESTORE, remedy=DATA),
    "a file that is a directory there": Case(
        "file-kind", opened(), DATA, f"mkdir -m 644 {PLACE}/data", "beta", "data", criu=RESTORE,
        remedy=f"rmdir {PLACE}/data; {DATA}",
    ),
    "a file of another size": Case(
        "file-size", opened(), DATA, f"{DATA}; echo more >>{PLACE}/data", "beta", "data", criu=RESTORE, remedy=DATA,
    ),
    "a file of another mode": Case(
        "file-mode", opened(), DATA, f"{DATA}; chmod 600 {PLACE}/data", "beta", "data", criu=RESTORE, remedy="run",
    ),
    "a file of another owner": Case(
        "file-owner", opened(), DATA, f"{DATA}; chown 33:34 {PLACE}/data", "beta", "data", False, criu=CARRIED,
        remedy="run",
    ),
    "a file of another content": Case(
        "file-content", opened(), DATA, f"echo 54321 >{PLACE}/data; chmod 644 {PLACE}/data", "beta", "data",
        options="--verify hash", criu=CARRIED, remedy=DATA,
    ),
    "the same, and nobody looks at the content": Case(
        "", opened(), DATA, f"echo 54321 >{PLACE}/data; chmod 644 {PLACE}/data"),
    "a file that is in memory there": Case(
        "file-system", opened(), DATA, f"mount -t tmpfs -o mode=777 obst {PLACE}; {DATA}", "beta", "data", False,
        criu=CARRIED, remedy=f"umount {PLACE}; {DATA}", after=f"umount {PLACE} 2>/dev/null; true",
    ),
    "a file that it writes to": Case("file-written", opened("a"), DATA, DATA, "beta", "data"),
    "a file that would be overwritten": Case(
        "file-differs", opened("a"), DATA, f"echo 1 >{PLACE}/data", "beta", "data", options="--copy-files",
        remedy=f"rm {PLACE}/data",
    ),
    "no room for a file that comes along": Case(
        "files-room", f"{opened('a')}\nheld.write('x' * (2 << 20)); held.flush()", "",
        f"mount -t tmpfs -o mode=777,size=1m obst {PLACE}", "beta", PLACE, options="--copy-files",
        remedy=f"umount {PLACE}", after=f"umount {PLACE} 2>/dev/null; true",
    ),
    "a directory that is missing": Case(
        "file-missing", f"os.mkdir('{PLACE}/d'); os.chmod('{PLACE}/d', 0o750); os.chdir('{PLACE}/d')", where="beta",
        object=f"{PLACE}/d", criu=RESTORE, remedy="run",
    ),
    "a PID that is taken": Case("pid-taken", where="beta", criu=RESTORE, there="TAKE", remedy=END),
    "a user that is missing": Case(
        "user-missing", "os.setuid(7777)", "useradd --uid 7777 -M obst", where="beta", object="7777", stops=False,
        remedy="run", after="userdel obst 2>/dev/null; groupdel obst 2>/dev/null; true",
    ),
    "a supplementary group that is missing": Case(
        "group-missing", "os.setgroups([7778])", "groupadd --gid 7778 obst", where="beta", object="7778", stops=False,
        criu=CARRIED, remedy="run", after="groupdel obst 2>/dev/null; true",
    ),
    "a group of another name": Case(
        "group-differs", "os.setgroups([7778])", "groupadd --gid 7778 obst", "groupadd --gid 7778 other", "beta",
        "7778", False, criu=CARRIED, after="groupdel obst 2>/dev/null; groupdel other 2>/dev/null; true",
    ),
    "a unix socket whose other end stays": Case(
        "external-unix", "ours, theirs = socket.socketpair()\naside(lambda: ours.close())\ntheirs.close()", criu=DUMP,
    ),
    "a pipe to outside": Case("external-pipe", "reading, writing = os.pipe()\naside(lambda: os.close(writing))\n"
                              "os.close(reading)"),
    "a pipe inside": Case("", "ends = os.pipe()", criu=CARRIED),
    "a TCP port that is taken": Case(
        "address-taken", "s = socket.socket(); s.bind(('0.0.0.0', 8099)); s.listen()", there=TCP, where="beta",
        object="tcp 0.0.0.0:8099", criu=RESTORE, remedy=END,
    ),
    "a TCP port of IPv6 that is taken by IPv4": Case(
        "address-taken", "s = socket.create_server(('::', 8099), family=socket.AF_INET6, dualstack_ipv6=True)",
        there=TCP, where="beta", object="tcp [::]:8099", criu=RESTORE, remedy=END,
    ),
    "a UDP port that is taken": Case(
        "address-taken", "s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 8099))", there=UDP,
        where="beta", object="udp 127.0.0.1:8099", criu=RESTORE, remedy=END,
    ),
    "a port of another address": Case(
        "", "s = socket.socket(); s.bind(('127.0.0.1', 8099)); s.listen()",
        there=TCP.replace("0.0.0.0", "127.0.0.2"), criu=CARRIED,
    ),
    "an address that is missing": Case(
        "address-missing", "s = socket.socket(); s.bind(('10.99.0.1', 8099)); s.listen()",
        "ip address add 10.99.0.1/32 dev lo", where="beta", object="tcp 10.99.0.1:8099", criu=RESTORE, remedy="run",
        after="ip address del 10.99.0.1/32 dev lo 2>/dev/null; true",
    ),
    "an IPv6 address that is missing": Case(
        "address-missing", "s = socket.create_server(('fd99::1', 8099), family=socket.AF_INET6)",
        "ip address add fd99::1/128 dev lo nodad", where="beta", object="[fd99::1]:8099", stops=False,
        criu=CARRIED, remedy="run", after="ip address del fd99::1/128 dev lo 2>/dev/null; true",
    ),
    "an established connection": Case(
        "tcp-established", "s = socket.create_connection(('127.0.0.1', 22))", object="127.0.0.1:22", criu=DUMP,
    ),
    "a packet socket": Case("", "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)", criu=CARRIED),
    "a vsock socket": Case("socket-kind", "s = socket.socket(40, 1)", object="VSOCK", criu=DUMP),
    "an MPTCP socket": Case(
        "socket-kind", "s = socket.socket(2, 1, 262); s.bind(('', 8099)); s.listen()", object="MPTCP", criu=DUMP,
    ),
    "a terminal": Case(
        "terminal", "import pty\nmaster, slave = pty.openpty()\naside(lambda: os.close(slave))\nos.close(master)",
        object="/dev/pts/", criu=DUMP,
    ),
    "a terminal with both its ends": Case("", "import pty\nends = pty.openpty()", criu=CARRIED),
    "a terminal whose number is taken": Case(
        "terminal-taken", "import pty\nends = pty.openpty()", there=TERMINAL, where="beta", object="/dev/pts/",
        criu=RESTORE, remedy=END,
    ),
    "io_uring": Case("io-uring", "sure(libc.syscall(425, 4, ctypes.create_string_buffer(120)))", criu=DUMP),
    "a perf event": Case(
        "anon-inode", "sure(libc.syscall(298, struct.pack('<IIQ', 1, 112, 0) + bytes(96), 0, -1, -1, 0))",
        object="perf_event", criu=DUMP,
    ),
    "a userfaultfd": Case("anon-inode", "sure(libc.syscall(323, 0))", object="userfaultfd", criu=DUMP),
    "asynchronous I/O": Case("", "sure(libc.syscall(206, 16, ctypes.byref(ctypes.c_ulong())))", criu=CARRIED),
    "a filter of system calls": Case(
        "", "sure(libc.prctl(38, 1, 0, 0, 0))\nallow = struct.pack('<HBBI', 6, 0, 0, 0x7fff0000)\n"
        "code = ctypes.create_string_buffer(allow)\n"
        "sure(libc.prctl(22, 2, struct.pack('<HxxxxxxQ', 1, ctypes.addressof(code)), 0, 0))", criu=CARRIED,
    ),
    "a memfd": Case("", "os.write(os.memfd_create('x'), b'abc')", criu=CARRIED),
    "System V shared memory": Case(
        "sysv-shm", "libc.shmat.restype = ctypes.c_void_p\nsegment = sure(libc.shmget(0, 4096, 0o1600))\n"
        "libc.shmat(segment, 0, 0)\nlibc.shmctl(segment, 0, 0)", object="SYSV", criu=DUMP,
    ),
    "a message queue": Case(
        "mqueue", "sure(libc.mq_open(b'/obst', 0o102, 0o600, None))", object="/obst", criu=DUMP,
        after="rm -f /dev/mqueue/obst",
    ),
    "a device": Case("device", "held = os.open('/dev/fuse', os.O_RDWR)", object="/dev/fuse", criu=DUMP),
    "a tracer": Case(
        "tracer", "root = os.getpid()\nlibc.prctl(0x59616d61, -1, 0, 0, 0)\n"
        "aside(lambda: sure(libc.ptrace(0x4206, root, 0, 0)))", criu=DUMP,
    ),
    "a namespace": Case("namespace", "sure(libc.unshare(0x40000000))", object="net"),
    "a deleted file": Case(
        "", opened("w") + "\nheld.write('x' * 5000); held.flush(); os.unlink(held.name)", criu=CARRIED,
    ),
    "a deleted name of two": Case(
        "link-remap", opened() + f"\nos.link(held.name, '{PLACE}/other'); os.unlink(held.name)", DATA, object="data",
        criu=DUMP,
    ),
    "another root": Case(
        "file-missing", f"os.mkdir('{PLACE}/jail'); os.chroot('{PLACE}/jail'); os.chdir('/')\n"
        "os.mkdir('/srv'); os.mkdir('/srv/obst')", where="beta", object=f"{PLACE}/jail", remedy="run",
    ),
    "what it watches is missing": Case(
        "watch-missing", f"os.mkdir('{PLACE}/w')\n"
        f"sure(libc.inotify_add_watch(libc.inotify_init1(0), b'{PLACE}/w', 0xfff))",
        where="beta", object=f"{PLACE}/w", criu=RESTORE, remedy=f"mkdir {PLACE}/w",
    ),
    "what fanotify watches is missing": Case(
        "watch-missing", f"os.mkdir('{PLACE}/w')\nmarked = sure(libc.fanotify_init(0, 0))\n"
        f"sure(libc.fanotify_mark(marked, 1, ctypes.c_uint64(0x20), -100, b'{PLACE}/w'))",
        where="beta", object=f"{PLACE}/w", criu=RESTORE, remedy=f"mkdir {PLACE}/w",
    ),
    "what it watches is deleted": Case(
        "watch-lost", f"{opened()}\nsure(libc.inotify_add_watch(libc.inotify_init1(0), b'{PLACE}/data', 0xfff))\n"
        "os.unlink(held.name)", DATA,  # criu would take the number of its inode for the same file there
    ),
    "a unix socket that is used there": Case(
        "socket-taken", f"s = socket.socket(1); s.bind('{PLACE}/s'); s.listen()", there=BOUND, where="beta",
        object=f"{PLACE}/s", remedy=END,
    ),
    "the directory of a unix socket": Case(
        "directory-missing", f"os.mkdir('{PLACE}/d')\ns = socket.socket(1); s.bind('{PLACE}/d/s')", where="beta",
        object=f"{PLACE}/d", criu=RESTORE, remedy="run",
    ),
    "a TCP port that both share": Case(
        "address-taken", SHARED, there=TCP.replace(";s.bind", ";s.setsockopt(1,15,1);s.bind"), where="beta",
        object="tcp 0.0.0.0:8099", stops=False, criu=CARRIED, remedy=END,
    ),
    "a TCP port that only the other one shares": Case(
        "address-taken", SHARED.replace("s.setsockopt(1, 15, 1); ", ""), where="beta", object="tcp 0.0.0.0:8099",
        there=TCP.replace(";s.bind", ";s.setsockopt(1,15,1);s.bind"), remedy=END,
    ),
    "a TCP port of IPv6 alone": Case(
        "", "s = socket.create_server(('::', 8099), family=socket.AF_INET6)", there=TCP, criu=CARRIED,
    ),
    "a connection with itself": Case(
        "tcp-established", "s = socket.create_server(('127.0.0.1', 8099))\n"
        "c = socket.create_connection(s.getsockname())\n"
        "a, _ = s.accept()", object="127.0.0.1:8099", criu=DUMP,
    ),
    "a TCP connection that nobody accepts": Case(
        "tcp-established", "s = socket.create_server(('127.0.0.1', 8099))\ndef work():\n    global c\n    s.close()\n"
        "    c = socket.create_connection(('127.0.0.1', 8099))\naside(work)", object="127.0.0.1:8099", criu=DUMP,
    ),
    "a unix connection that nobody accepts": Case(
        "unix-waiting", f"s = socket.socket(1); s.bind('{PLACE}/s'); s.listen()\n"
        f"c = socket.socket(1); c.connect('{PLACE}/s'); c.send(b'abc')", object=f"{PLACE}/s", criu=DUMP,
    ),
    "a name of a unix socket that is used there": Case(
        "socket-taken", "s = socket.socket(1); s.bind('\\0obst'); s.listen()", there=NAMED, where="beta",
        object="@obst", criu=RESTORE, remedy=END,
    ),
    "a pipe in packet mode": Case("packet-pipe", "ends = os.pipe2(os.O_DIRECT)", criu=DUMP),
    "a pidfd of a process outside": Case("pidfd-outside", "held = os.pidfd_open(1)", object="pid 1", criu=DUMP),
    "a pidfd of a child": Case(
        "", "child = os.fork()\nif child == 0:\n    while True: time.sleep(1000)\nheld = os.pidfd_open(child)",
        criu=CARRIED,
    ),
    "a BPF map": Case(
        "anon-inode", "sure(libc.syscall(321, 0, struct.pack('<5I', 2, 4, 4, 4, 0) + bytes(100), 72))",
        object="bpf-map", criu=DUMP,
    ),
    "a System V segment that nobody has attached": Case(
        "sysv-ipc", "segment = sure(libc.shmget(0, 4096, 0o1600))", criu=CARRIED, after="ipcrm -a",
    ),
    "a thread with descriptors of its own": Case(
        "thread-apart", THREAD.format(flags="0x400"), object="thread", criu=CARRIED,
    ),
    "a thread in a namespace of its own": Case(
        "thread-apart", THREAD.format(flags="0x40000000"), object="thread", criu=CARRIED,
    ),
    "a parent that waits for its vforked child": Case(
        "uninterruptible", "if os.fork() == 0:\n    if libc.vfork() == 0: libc.pause()\ntime.sleep(0.5)",
        object="thread", criu=DUMP,
    ),
    "a lease": Case(
        "file-leased", f"import fcntl\n{opened('w')}\nfcntl.fcntl(held, 1024, 1)", object="data",
        options="--copy-files",
    ),
    "limits that the login there does not have": Case(
        "limit-lower", there="cp -a ~/.bashrc ~/bashrc.kept; sed -i '1i ulimit -n 400' ~/.bashrc", where="beta",
        object="open files", stops=False, remedy="mv ~/bashrc.kept ~/.bashrc", on="netns",
        after="test -e ~/bashrc.kept && mv ~/bashrc.kept ~/.bashrc; true",
    ),
    "more descriptors than the kernel there allows": Case(
        "limit-files", "import resource\nresource.setrlimit(7, (1024, 600000))", there="sysctl -qw fs.nr_open=524288",
        where="beta", object="600000", stops=False, criu=CARRIED, remedy="sysctl -qw fs.nr_open=1048576", on="vm",
        after="sysctl -qw fs.nr_open=1073741816",
    ),
    "no room in the memory there": Case(
        "no-room", "held = [os.urandom(1 << 20) for _ in range(300)]",
        there="mount -o remount,size=90% /dev/shm; head -c 800M /dev/urandom >/dev/shm/fill",
        where="beta", object="memory", on="vm", remedy="rm /dev/shm/fill",
        after="rm -f /dev/shm/fill; mount -o remount,size=50% /dev/shm",
    ),
    "a limit of cgroup version 1": Case(
        "cgroup-limits", f"open('{PLACE}/cg/obst/tasks', 'w').write('0')", f"mkdir {PLACE}/cg && "
        f"mount -t cgroup -o memory none {PLACE}/cg && mkdir {PLACE}/cg/obst && "
        f"echo 1G >{PLACE}/cg/obst/memory.limit_in_bytes", object="/obst", stops=False, on="netns",
        after=f"rmdir {PLACE}/cg/obst; umount {PLACE}/cg; true",
    ),
    "ten thousand mappings": Case(
        "", f"held = os.open('{PLACE}/data', os.O_RDONLY); both = 1, 5\n"
        "kept = [mmap.mmap(held, 4096, flags=2, prot=both[at % 2]) for at in range(10000)]",
        f"head -c 4096 /dev/zero >{PLACE}/data", f"head -c 4096 /dev/zero >{PLACE}/data", criu=CARRIED,
    ),
    "no criu": Case("criu-missing", options="--criu /nowhere/criu"),
}  # fmt: skip


@pytest.fixture
def place(nothing_behind: None, lab: tuple[LabHost, LabHost]) -> Iterator[None]:
    """An empty PLACE on both hosts, gone afterwards."""
    for host in lab:
        host.run(f"rm -rf {PLACE}; mkdir -m 777 {PLACE}")
    yield
    for host in lab:
        host.run(f"test -e {PLACE}/pid && {END}; sleep 0.5; rm -rf {PLACE}", check=False)


def begin(started: Started, alpha: LabHost, program: str) -> int:
    """PID of a process that has come to what it shall do."""
    pid = started.launch("python3", "-c", HEAD + program + TAIL, output="/dev/null")
    deadline = time.monotonic() + 20 * alpha.slow
    while alpha.run(f"test -e /proc/{pid}/root/{PLACE}/ready", check=False).status:
        assert time.monotonic() < deadline, "it does not get that far"
        assert alpha.alive(pid), "it has ended"
        time.sleep(0.05)
    return pid


def start_time(host: LabHost, pid: int) -> str:
    """When it started, which names it together with its PID."""
    return host.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[19]


def named(run: Run, case: Case) -> list[dict[str, Any]]:
    """The obstacles of the case's kind, of what it is about."""
    found = [one for one in run.of("obstacle") if one["id"] == case.id]
    return [one for one in found if case.object in one["object"] and one["host"] == case.where]


def carried(alpha: LabHost, beta: LabHost, pid: int) -> str:
    """What criu by itself makes of it: CARRIED, or where it fails. The process stays on alpha, running."""
    options = "--manage-cgroups=ignore --file-locks --ghost-limit 10M -v4"
    for host in (alpha, beta):
        host.run("rm -rf /root/obst-images; mkdir /root/obst-images")
    try:
        dump = f"cd /root/obst-images && criu dump -t {pid} -D . -o dump.log --leave-running {options}"
        if alpha.run(dump, check=False).status:
            return DUMP
        alpha.run("cd /root/obst-images && tar cf - . | ssh beta tar xf - -C /root/obst-images")
        restore = f"cd /root/obst-images && setsid --wait criu restore -d -D . -o restore.log {options}"
        failed = beta.run(restore, check=False, seconds=60).status
        beta.run(f"test {failed} = 0 && kill -KILL {pid}", check=False)
        return RESTORE if failed else CARRIED
    finally:
        for host in (alpha, beta):
            host.run("rm -rf /root/obst-images")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.backends(case.on) if case.on else ()) for name, case in CASES.items()]
)
def test_an_obstacle_is_found_and_the_process_goes_on(
    name: str, place: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    case = CASES[name]
    try:
        if case.here:
            alpha.run(case.here)
        if case.there and case.there != "TAKE":
            beta.run(case.there)
        pid = begin(started, alpha, case.program)
        if case.there == "TAKE":
            beta.run(
                f"echo {pid - 1} >/proc/sys/kernel/ns_last_pid; "
                f"sleep 600 </dev/null >/dev/null 2>&1 & echo $! >{PLACE}/pid"
            )
            assert int(beta.read(f"{PLACE}/pid")) == pid
        began = start_time(alpha, pid)
        run = migrate("check", case.options, str(pid), "beta")
        judge(case, run)
        if case.criu:
            assert carried(alpha, beta, pid) == case.criu
        if case.remedy:
            (one, *_) = named(run, case)
            command = one["remedy"].removeprefix("there: ") if case.remedy == "run" else case.remedy
            beta.run(command.replace("INTERFACE", "lo"))
            again = migrate("check", case.options, str(pid), "beta")
            assert not named(again, case), again.explain()
        assert alpha.alive(pid)
        assert start_time(alpha, pid) == began
        assert alpha.state(pid) in "SR"
    finally:
        started.end()
        for host in (alpha, beta):
            host.run(case.after or "true")


def judge(case: Case, run: Run) -> None:
    """The obstacle is there and rightly named, or there is none, but for what is so on every host of the lab."""
    if not case.id:
        assert run.status == 0, run.explain()
        warned = {one["id"] for one in run.of("obstacle")} - {"no-dirty-tracking"}
        assert not warned, run.explain()
        return
    found = named(run, case)
    assert found, run.explain()
    for one in found:
        assert one["stops"] is case.stops
        assert one["problem"]
        assert one["remedy"]
    if case.stops:
        assert run.status == 20, run.explain()
        assert "was not touched" in run.err


def test_what_migrate_runs_under_and_what_never_moves(nothing_behind: None, alpha: LabHost) -> None:
    for command, id_ in (("sh -c 'migrate check $$ beta; true'", "is-ancestor"), ("migrate check 1 beta", "is-init")):
        assert id_ in alpha.run(command, check=False).out, command


def test_a_pid_above_the_targets_highest(
    place: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    highest = beta.read("/proc/sys/kernel/pid_max").strip()
    pid = begin(started, alpha, "")
    try:
        beta.run(f"echo {pid} >/proc/sys/kernel/pid_max")
        if alpha.read("/proc/sys/kernel/pid_max").strip() != highest:
            alpha.run(f"echo {highest} >/proc/sys/kernel/pid_max")
            pytest.fail("the hosts of this lab share one pid_max: their kernel is older than 6.14")
        (one,) = [one for one in migrate("check", str(pid), "beta").of("obstacle") if one["stops"]]
        assert (one["id"], one["host"]) == ("pid-range", "beta")
    finally:
        beta.run(f"echo {highest} >/proc/sys/kernel/pid_max")
    assert migrate("check", str(pid), "beta").status == 0


def test_names_with_odd_bytes_are_said_and_never_reach_the_terminal(
    place: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """A newline, an escape sequence, a byte that is no UTF-8, and an end that looks like the kernel's mark."""
    name = b"a\n b\x1b[31m\xff (deleted)"
    pid = begin(started, alpha, f"held = os.open({name!r}, os.O_RDWR | os.O_CREAT, 0o644)")
    run = migrate("check", str(pid), "beta")
    (one,) = [one for one in run.of("obstacle") if one["stops"]]
    assert (one["id"], one["object"].encode(errors="surrogateescape")) == ("file-written", f"{PLACE}/".encode() + name)
    channel = alpha.start(f"migrate check {pid} beta", pty=True)
    said = b""
    while data := channel.recv(1 << 16):
        said += data
    assert b"\\x0a b\\x1b[31m\\xff (deleted)" in said
    assert b"\x1b[31m" not in said
    assert migrate("--copy-files", str(pid), "beta").status == 0
    assert beta.run(f"ls -b {PLACE}").out.strip() == "a\\n\\ b\\033[31m\\377\\ (deleted)"
    started.end()


def test_explain_says_what_check_named(alpha: LabHost) -> None:
    said = alpha.run(f"migrate explain {shlex.quote('library-build')}").out
    assert "build id" in said
    unknown = alpha.run("migrate explain library-bild", check=False)
    assert (unknown.status, "library-build" in unknown.err) == (2, True)


def test_a_rehearsal_finds_no_more_than_the_check(
    place: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """A tree with a connection of its own, both ends: named, not tried; nothing pauses."""
    case = CASES["a connection with itself"]
    pid = begin(started, alpha, case.program)
    run = migrate("rehearse", str(pid), "beta")
    judge(case, run)
    assert run.report["outcome"] == "undone"
    assert "freeze" not in [event["phase"] for event in run.of("phase")]
    assert alpha.alive(pid)


@pytest.mark.parametrize("when", ["connect", "preflight"])
def test_a_tree_that_ends_while_it_is_checked(
    nothing_behind: None, alpha: LabHost, started: Started, sabotage: Any, when: str
) -> None:
    """An answer that was right when it was looked at, or one clear line."""
    pid = started.launch("sleep", "100000")
    run = sabotage(pid, when, "kill-tree", options="", command="check")
    assert "Traceback" not in run.out + run.err, run.explain()
    assert run.status in (0, 20, 21), run.explain()
    said = [event["message"] for event in run.of("error")]
    assert len(said) == (run.status != 0), run.explain()
    assert all(str(pid) in line for line in said), run.explain()
    assert not alpha.alive(pid)
