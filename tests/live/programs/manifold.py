"""A process that has something of everything the kernel offers, and says what of it is right when it is asked.

    manifold.py DIRECTORY     writes DIRECTORY/ready; then, once DIRECTORY/ask is there, DIRECTORY/answer: JSON

Standard library only; x86-64 by its system call numbers. Each kind is a function that sets something up and gives back
the check of it.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

PLACE = Path(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
Check = Callable[[], bool]


def sure(result: int) -> int:
    """A system call that must succeed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def forever() -> None:
    while True:
        time.sleep(1000)


def epoll() -> Check:
    reading, writing = os.pipe()
    inner, outer = select.epoll(), select.epoll()
    inner.register(reading, select.EPOLLIN)
    outer.register(inner.fileno(), select.EPOLLIN)

    def check() -> bool:
        os.write(writing, b"x")
        return inner.poll(20) == [(reading, select.EPOLLIN)] and len(outer.poll(20)) == 1

    return check


def timerfd() -> Check:
    held = sure(libc.timerfd_create(1, 0))
    sure(libc.timerfd_settime(held, 0, struct.pack("=4q", 0, 200_000_000, 0, 200_000_000), None))
    return lambda: struct.unpack("=Q", os.read(held, 8))[0] > 0


def signalfd() -> Check:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    held = sure(libc.signalfd(-1, struct.pack("=Q", 1 << signal.SIGUSR2 - 1), 0))

    def check() -> bool:
        os.kill(os.getpid(), signal.SIGUSR2)
        return os.read(held, 128)[:4] == struct.pack("=I", signal.SIGUSR2)

    return check


def eventfd() -> Check:
    held = sure(libc.eventfd(7, 0))
    return lambda: os.read(held, 8) == struct.pack("=Q", 7)


def sealed_memfd() -> Check:
    held = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(held, b"abc")
    fcntl.fcntl(held, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW)
    return lambda: (
        fcntl.fcntl(held, fcntl.F_GET_SEALS) == fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW
        and os.pread(held, 3, 0) == b"abc"
    )


def inotify() -> Check:
    held = sure(libc.inotify_init1(0))
    sure(libc.inotify_add_watch(held, os.fsencode(PLACE), 0x100))

    def check() -> bool:
        (PLACE / "new").touch()
        return b"new\0" in os.read(held, 4096)

    return check


def netlink() -> Check:
    held = socket.socket(16, socket.SOCK_RAW, 0)  # AF_NETLINK, NETLINK_ROUTE
    held.bind((0, 1))

    def check() -> bool:
        held.send(struct.pack("=IHHII", 20, 18, 0x301, 1, 0) + bytes(4))
        return len(held.recv(1 << 16)) > 100

    return check


def packets_in_order() -> Check:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.send(b"one")
    one.send(b"two")
    left.send(b"three")
    return lambda: [other.recv(9), other.recv(9), right.recv(9)] == [b"one", b"two", b"three"]


def descriptor_under_way() -> Check:
    one, other = socket.socketpair()
    held = os.open(PLACE, os.O_RDONLY)
    socket.send_fds(one, [b"x"], [held])
    os.close(held)

    def check() -> bool:
        _, received, _, _ = socket.recv_fds(other, 9, 4)
        return os.readlink(f"/proc/self/fd/{received[0]}") == str(PLACE)

    return check


def full_pipe() -> Check:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.write(writing, bytes(900_000))

    def check() -> bool:
        count = 0
        while count < 900_000:
            count += len(os.read(reading, 1 << 20))
        return fcntl.fcntl(reading, fcntl.F_GETPIPE_SZ) == 1 << 20

    return check


def devices() -> Check:
    held = [os.open(f"/dev/{name}", os.O_RDONLY) for name in ("null", "zero", "full", "random", "urandom")]
    return lambda: [len(os.read(one, 3)) for one in held] == [0, 3, 3, 3, 3]


def path_descriptor() -> Check:
    held = os.open("/etc/passwd", os.O_PATH)
    return lambda: os.fstat(held).st_size == os.stat("/etc/passwd").st_size


def nameless_file() -> Check:
    held = os.open(PLACE, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(held, b"abc")
    return lambda: os.pread(held, 3, 0) == b"abc"


def deleted_directory() -> Check:
    (PLACE / "gone").mkdir()
    held = os.open(PLACE / "gone", os.O_RDONLY)
    (PLACE / "gone").rmdir()
    return lambda: os.listdir(held) == []


def mapped_deleted_file() -> Check:
    (PLACE / "mapped").write_bytes(b"abc" * 4000)
    with (PLACE / "mapped").open("r+b") as file:
        held = mmap.mmap(file.fileno(), 0)
    (PLACE / "mapped").unlink()
    return lambda: held[:3] == b"abc" and len(held) == 12000


def shared_memory() -> Check:
    anonymous = mmap.mmap(-1, 8192)
    zero = os.open("/dev/zero", os.O_RDWR)
    named = mmap.mmap(zero, 8192)
    os.close(zero)
    anonymous[:3] = named[:3] = b"abc"
    if os.fork() == 0:
        while True:
            time.sleep(0.1)
            anonymous[4096] = (anonymous[4096] + 1) % 256

    def check() -> bool:
        before, deadline = anonymous[4096], time.monotonic() + 60
        while anonymous[4096] == before and time.monotonic() < deadline:
            time.sleep(0.1)
        return anonymous[:3] == named[:3] == b"abc" and anonymous[4096] != before

    return check


def kinds_of_memory() -> Check:
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    held = [mmap.mmap(-1, 1 << 16, flags=private | more) for more in (0, 0x100, 0x2000)]  # GROWSDOWN, LOCKED
    held[0].madvise(mmap.MADV_DONTFORK)
    held[0].madvise(18)  # MADV_WIPEONFORK
    for one in held:
        one[:3] = b"abc"
    return lambda: [one[:3] for one in held] == [b"abc"] * 3


def pidfds() -> Check:
    child = os.fork()
    if child == 0:
        forever()
    held = [os.pidfd_open(child), os.pidfd_open(os.getpid())]

    def check() -> bool:
        for one in held:
            signal.pidfd_send_signal(one, 0)
        return True

    return check


def children() -> Check:
    stopped = os.fork()
    if stopped == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        forever()
    os.waitpid(stopped, os.WUNTRACED)
    zombie = os.fork()
    if zombie == 0:
        os._exit(5)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)

    def check() -> bool:
        state = Path(f"/proc/{stopped}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T" and os.waitpid(zombie, 0) == (zombie, 5 << 8)

    return check


def sessions() -> Check:
    """A child in a session whose leader has ended, and one in such a group; they fall to us, a subreaper."""
    sure(libc.prctl(36, 1, 0, 0, 0))
    made = []
    for lead in (os.setsid, lambda: os.setpgid(0, 0)):
        reading, writing = os.pipe()
        leader = os.fork()
        if leader == 0:
            lead()
            child = os.fork()
            if child == 0:
                forever()
            os.write(writing, str(child).encode())
            os._exit(0)
        os.waitpid(leader, 0)
        made.append((int(os.read(reading, 20)), leader))
        os.close(reading)
        os.close(writing)
    (one, session), (other, group) = made
    return lambda: (os.getsid(one), os.getpgid(other)) == (session, group)


def signals() -> Check:
    signal.pthread_sigmask(signal.SIG_BLOCK, [40])
    for number in (1, 2, 3):
        sure(libc.sigqueue(os.getpid(), 40, number))

    def check() -> bool:
        return all(signal.sigtimedwait([40], 1) for _ in range(3)) and signal.sigtimedwait([40], 0) is None

    return check


def timers() -> Check:
    hits: list[int] = []
    for number in (signal.SIGALRM, signal.SIGUSR1):
        signal.signal(number, lambda caught, _: hits.append(caught))
    signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
    timer = ctypes.c_void_p()
    sure(libc.timer_create(1, struct.pack("=QiiQ40x", 0, signal.SIGUSR1, 0, 0), ctypes.byref(timer)))
    sure(libc.timer_settime(timer, 0, struct.pack("=4q", 0, 300_000_000, 0, 300_000_000), None))

    def check() -> bool:
        hits.clear()
        deadline = time.monotonic() + 60
        while len(set(hits)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        libc.timer_delete(timer)
        return set(hits) == {signal.SIGALRM, signal.SIGUSR1}

    return check


def own_files_of_proc() -> Check:
    held = [os.open(f"/proc/{name}", os.O_RDONLY) for name in ("self/status", "meminfo", "self/task", "self/ns/net")]
    return lambda: (
        os.pread(held[0], 5, 0) == b"Name:" and os.fstat(held[3]).st_ino == os.stat("/proc/self/ns/net").st_ino
    )


def unix_sockets() -> Check:
    """One whose path is gone, one at a path from where we no longer are, one that has only a name."""
    gone, near, named = (socket.socket(socket.AF_UNIX) for _ in range(3))
    gone.bind(str(PLACE / "gone-socket"))
    (PLACE / "gone-socket").unlink()
    here = Path.cwd()
    os.chdir(PLACE)
    near.bind("near")
    os.chdir(here)
    named.bind("\0manifold")
    for one in (gone, near, named):
        one.listen()
        one.settimeout(20)

    def check() -> bool:
        for one, address in ((near, str(PLACE / "near")), (named, "\0manifold")):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(address)
                one.accept()[0].close()
        return str(gone.getsockname()) == str(PLACE / "gone-socket")

    return check


def ip_sockets() -> Check:
    lite = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)
    lite.bind(("127.0.0.1", 8097))
    connected = socket.socket(type=socket.SOCK_DGRAM)
    connected.connect(("127.0.0.1", 8098))
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    plain = socket.socket()

    def check() -> bool:
        names = [one.getsockname() for one in (lite, plain)]
        return connected.getpeername() == ("127.0.0.1", 8098) and raw.type == socket.SOCK_RAW and names == [
            ("127.0.0.1", 8097), ("0.0.0.0", 0),
        ]  # fmt: skip

    return check


def locks() -> Check:
    (PLACE / "locked").touch()
    held = [(PLACE / "locked").open("r+b") for _ in range(2)]
    fcntl.flock(held[0], fcntl.LOCK_EX)
    fcntl.lockf(held[1], fcntl.LOCK_EX)

    def check() -> bool:
        taken = 0
        for act in (fcntl.flock, fcntl.lockf):
            child = os.fork()
            if child == 0:
                with (PLACE / "locked").open("r+b") as other:
                    try:
                        act(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except OSError:
                        os._exit(1)
                os._exit(0)
            taken += os.waitpid(child, 0)[1] == 1 << 8
        return taken == len(held)

    return check


def scheduling() -> Check:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.nice(7)
    Path("/proc/self/oom_score_adj").write_text("123")
    return lambda: (
        (os.sched_getscheduler(0), os.nice(0), Path("/proc/self/oom_score_adj").read_text())
        == (
            os.SCHED_BATCH,
            7,
            "123\n",
        )
    )


def settings() -> Check:
    os.umask(0o027)
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    libc.prctl(24, 13, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_NET_RAW

    def check() -> bool:
        return (os.umask(0), libc.prctl(3, 0, 0, 0, 0), libc.prctl(39, 0, 0, 0, 0), libc.prctl(23, 13, 0, 0, 0)) == (
            0o027, 0, 1, 0,
        )  # fmt: skip

    return check


def threads() -> Check:
    for _ in range(50):
        threading.Thread(target=forever, daemon=True).start()
    return lambda: len(os.listdir("/proc/self/task")) >= 51


def deleted_place_to_stand() -> Check:
    (PLACE / "stand").mkdir()
    os.chdir(PLACE / "stand")
    (PLACE / "stand").rmdir()
    return lambda: os.readlink("/proc/self/cwd").endswith(" (deleted)")


KINDS = (
    epoll, timerfd, signalfd, eventfd, sealed_memfd, inotify, netlink, packets_in_order, descriptor_under_way,
    full_pipe, devices, path_descriptor, nameless_file, deleted_directory, mapped_deleted_file, shared_memory,
    kinds_of_memory, pidfds, children, sessions, signals, timers, own_files_of_proc, unix_sockets, ip_sockets, locks,
    scheduling, threads, settings, deleted_place_to_stand,
)  # fmt: skip


def asked(check: Check) -> object:
    """What a check says; what it raises, in words."""
    try:
        return check()
    except Exception as error:
        return repr(error)


def main() -> None:
    checks = {kind.__name__: kind() for kind in KINDS}
    (PLACE / "ready").touch()
    while not (PLACE / "ask").exists():
        time.sleep(0.05)
    (PLACE / "written").write_text(json.dumps({name: asked(check) for name, check in checks.items()}))
    (PLACE / "written").rename(PLACE / "answer")
    forever()


if __name__ == "__main__":
    main()
