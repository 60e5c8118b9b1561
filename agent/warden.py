"""Two processes that keep a filling memory safe: the pager fills, the warden watches; each replaces the other.

While a page is missing, the last descriptor of its userfaultfd must not close: the kernel would then let the tree read
zeros. So two processes hold every descriptor: they share one descriptor table (clone with CLONE_FILES), and what one
receives, a forked child's descriptor too, the other holds at that very instant. When one dies the tree is stopped
until its replacement stands, so that a second death can't meet a running tree. Both killed at the same instant is the
one loss that nothing here can prevent; the README says so.

The warden is the process that the agent has started. It speaks with the agent over its standard input, a socket: one
JSON object a line each way. Without an agent (it died, or it was replaced) the memory is filled all the same.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import math
import os
import platform
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Optional

from agent import instants, namespace, process
from agent.images import ImageError
from agent.pagemap import TooTorn
from agent.pager import Pager
from agent.record import Record

SOCKET = "lazy-pages.socket"
"""Where criu looks for a pager, in its work directory (criu/uffd.c)."""
LOCK = "pager.lock"
"""Held by both for as long as either lives: who gets it knows that nobody fills any more."""
UNFILLED = "pager.unfilled"
"""There until memory is whole. Made before the freeze, when there is room, and taken away: that needs none."""
STOPPED = "pager.stopped"
"""The tasks that are stopped while one of the two is being replaced."""
REPLACEMENTS = 20
"""Deaths without a page between them after which a pager is not replaced at once: the tree stays stopped meanwhile."""
REST = 10.0
"""Seconds until it is tried again then, and where the host has no room for another process. A tree that has ended is
found out that way, too, and nothing of us stays."""

SHORTAGE = 10.0
"""Seconds without memory for a single copy after which the operator hears of it."""

_CLONE_FILES = 0x400
_CLONE = {"x86_64": 56, "aarch64": 220, "ppc64le": 120}
_CONTROL = 0


def available() -> str:
    """Whether two processes can share descriptors here: "" when they can, else why not."""
    return "" if platform.machine() in _CLONE else f"the number of clone(2) on {platform.machine()} is not known"


def fork_sharing() -> int:
    """fork(2), but with one descriptor table for both. Only ever called by a process of one thread.

    The interpreter is told as os.fork would do it; the GIL is held throughout (PyDLL), so that the child has it too.
    """
    libc, python = ctypes.PyDLL(None, use_errno=True), ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid = int(libc.syscall(_CLONE[platform.machine()], _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0))
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, os.strerror(error))
    return pid


class Pair:
    """What both have in common, whoever of them is called."""

    def __init__(self, images: Path, journal: Path) -> None:
        self.images = images
        self._journal = journal
        self.stopped = journal / STOPPED
        self.unfilled = journal / UNFILLED
        self.unfilled.touch(mode=0o600)
        self.record = Record()
        self.lock = os.open(journal / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        path = images / SOCKET
        path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(1)

    # --- stopping the tree ---

    def stop_tree(self) -> None:
        """Stop every task that runs, while one of the two is being replaced. Before RESUMED none does."""
        if not self.record.filling:
            return
        tasks = namespace.outside(self._journal, self.record.tasks)  # criu names them as its own namespace does
        pids = {pid for task in tasks for pid in _tree(task) if _state(pid) in ("R", "S", "D")}
        # what a predecessor stopped, and died before it could continue it
        pids |= self._stopped()
        self.stopped.write_text("".join(f"{pid}\n" for pid in pids))
        for pid in pids:
            _signal(pid, signal.SIGSTOP)

    def continue_tree(self) -> None:
        """Undo `stop_tree`, also that of a predecessor; what had been stopped by somebody else stays so."""
        for pid in self._stopped():
            _signal(pid, signal.SIGCONT)
        self.stopped.unlink(missing_ok=True)

    def _stopped(self) -> set[int]:
        try:
            return {int(pid) for pid in self.stopped.read_text().split()}
        except FileNotFoundError:
            return set()

    # --- the warden ---

    def guard(self, pager: int, *, child: bool) -> int:
        """Watch the pager (a pidfd) and replace it when it dies; the exit status when there is nothing left to watch.

        Never leaves on an error of its own: the descriptors stay open, whatever happens.
        """
        try:
            return self._guard(pager, child=child)
        except BaseException:
            _say(traceback.format_exc())
            self.stop_tree()
            _tell_failing("its warden failed; the process is stopped, and nobody fills its memory")
            _give_up()

    def _guard(self, pager: int, *, child: bool) -> int:
        # a pager, whose child this may be, ignores it; and then there is nothing to wait for
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        deaths, progress = 0, self.record.progress
        while True:
            select.select([pager], [], [])
            if child:
                os.waitid(os.P_PIDFD, pager, os.WEXITED)
            os.close(pager)
            if self.record.finished:
                return 0
            deaths = deaths + 1 if progress == self.record.progress else 1
            progress = self.record.progress
            self.stop_tree()
            if deaths > REPLACEMENTS:
                if deaths == REPLACEMENTS + 1:
                    _tell_failing(
                        f"it dies again and again; the process is stopped, and it is tried every {REST:.0f} s"
                    )
                time.sleep(REST)
            pager = _persistently(lambda: start_pager(self, again=True))
            child = True


class Life:
    """One life of a pager, as a process."""

    def __init__(self, pair: Pair, warden: int, *, again: bool) -> None:
        """`warden` is a pidfd."""
        self._pair = pair
        self._record = pair.record
        self._pager = Pager(pair.images, pair.record, pair.listener)
        self._warden = warden
        self._control: Optional[socket.socket] = None
        self._again = again
        self._left = False
        self._short_since = 0.0

    def run(self) -> int:
        """Serve until memory is whole."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        pager = self._pager
        if self._again:
            pager.take_up()
            self._pair.continue_tree()
        pager.listen()
        pager.watch(self._warden)
        # a number, not an object: both lives read from the same descriptor
        self._control = socket.socket(fileno=os.dup(_CONTROL))
        pager.watch(self._control.fileno())
        while not (self._left or (pager.whole and self._record.filling)):
            control = self._control
            for descriptor in pager.serve(self._warden, control.fileno() if control else -1):
                if descriptor == self._warden:
                    self._replace_warden()
                else:
                    self._hear()
            self._look_for_shortage()
            if self._forsaken:
                break
        return self._leave()

    def _look_for_shortage(self) -> None:
        """Tell once, when the host has had no memory for a while: the tree waits, where it needs what is missing."""
        if not self._pager.short_of_memory:
            self._short_since = 0.0
        elif not self._short_since:
            self._short_since = time.monotonic()
        elif time.monotonic() - self._short_since >= SHORTAGE:
            _tell_failing("this host has no memory for what is still to come; the process waits wherever it needs that")
            self._short_since = math.inf

    @property
    def _forsaken(self) -> bool:
        """Whether there is no agent any more, and no tree, nor a criu that holds one."""
        if self._control is not None:
            return False
        if self._record.complete:
            # nobody will say that the tree runs: its images are not given back, but its memory is filled
            self._record.filling = 1
        return not self._record.complete and not self._pager.engaged

    def _leave(self) -> int:
        resumed = self._record.resumed_ns
        self._tell(
            done=True,
            bytes=self._record.copied,
            faults=self._record.faults,
            longest=self._record.longest_ns / 1e9,
            seconds=(time.monotonic_ns() - resumed) / 1e9 if resumed else 0.0,
        )
        if self._pager.whole:
            self._pair.unfilled.unlink(missing_ok=True)
        # said before it is so: who dies in between is replaced, and says it again
        self._record.finished = 1
        self._pager.leave()
        return 0

    def _replace_warden(self) -> None:
        self._pager.unwatch(self._warden)
        os.close(self._warden)
        self._pair.stop_tree()
        # open before there is a warden: it may be too late when that comes to it
        pager = os.pidfd_open(os.getpid())
        warden = _persistently(fork_sharing)
        if warden == 0:
            _to_the_end(lambda: self._pair.guard(pager, child=False))
        self._warden = os.pidfd_open(warden)
        self._pager.watch(self._warden)
        self._pair.continue_tree()

    # --- the agent ---

    def _hear(self) -> None:
        control = self._control
        if control is None:
            return
        try:
            data = control.recv(65536, socket.MSG_PEEK)
        except OSError:
            data = b""
        if not data:
            self._pager.unwatch(control.fileno())
            control.close()
            self._control = None
            return
        line, ended, _ = data.partition(b"\n")
        if ended:
            self._obey(json.loads(line))
            # taken only when it is carried out: a successor finds it again, and every order may be repeated
            control.recv(len(line) + 1, socket.MSG_WAITALL)

    def _obey(self, order: dict[str, Any]) -> None:
        number = order.get("order")
        try:
            if "round" in order:
                self._pager.add_round(int(order["round"]))
                self._tell(order=number)
            elif "mark" in order:
                self._tell(order=number, lazy=self._pager.mark())
            elif "resumed" in order:
                instants.at("fill")
                self._record.resumed_ns = self._record.resumed_ns or time.monotonic_ns()
                self._record.punching = 1
                self._record.filling = 1
            elif "leave" in order:
                self._left = True
        except (ImageError, OSError) as error:
            self._tell(order=number, error=str(error), torn=isinstance(error, TooTorn))

    def _tell(self, **words: object) -> None:
        try:
            if self._control is not None:
                self._control.sendall(json.dumps(words).encode() + b"\n")
        except OSError:
            return  # the agent is gone; its journal's readers look at the lock


def _persistently(start: Callable[[], int]) -> int:
    """Start one of the two for the other, however long the host has no room for another process: the tree is stopped,
    and whoever gave up here would let it read zeros."""
    told = False
    while True:
        try:
            return start()
        except OSError as error:
            if not told:
                _tell_failing(
                    f"no process can be started ({error.strerror}); the moved one is stopped, "
                    f"and it is tried every {REST:.0f} s"
                )
            told = True
            time.sleep(REST)


def _tell_failing(text: str) -> None:
    """Let the agent, and so the operator, know that memory is not being filled, and the log."""
    _say(f"pager: {text}")
    try:
        with socket.socket(fileno=os.dup(_CONTROL)) as control:
            control.sendall(json.dumps({"failing": text}).encode() + b"\n", socket.MSG_DONTWAIT)
    except OSError:
        return  # there is no agent any more, or it does not listen


def _give_up() -> NoReturn:
    """Nobody fills any more. The descriptors stay open, and the tree stays stopped: no zero is ever read."""
    while True:
        time.sleep(3600)


def start_pager(pair: Pair, *, again: bool) -> int:
    """A pager that watches us in turn; its pidfd."""
    # open before there is a pager: we may be dead when that comes to it
    warden = os.pidfd_open(os.getpid())
    try:
        pager = fork_sharing()
    except OSError:
        os.close(warden)
        raise
    if pager == 0:
        _to_the_end(lambda: Life(pair, warden, again=again).run())
    return os.pidfd_open(pager)


def _to_the_end(act: Callable[[], int]) -> NoReturn:
    """Run and exit: a process that was forked here must never go on with what its parent was at."""
    try:
        os._exit(act())
    except BaseException:
        # from in here: behind this clause whatever `act` had is tidied away, and its sockets are closed, criu's too, in
        # the one descriptor table, where the replacement looks for them
        try:
            _say(traceback.format_exc())
        finally:
            os._exit(1)


def _tree(root: int) -> list[int]:
    try:
        return process.tree_pids(root)
    except process.NoSuchProcess:
        return []


def _state(pid: int) -> str:
    try:
        return process.read_stat(pid).state
    except process.NoSuchProcess:
        return "X"


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise


def _say(text: str) -> None:
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:
        return


def main(images: Path, journal: Path) -> int:
    """Be the warden of a new pager. Standard input is the agent's socket."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    pair = Pair(images, journal)
    return pair.guard(start_pager(pair, again=False), child=True)
