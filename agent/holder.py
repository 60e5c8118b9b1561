"""The process that holds a tree's terminal on the target, from before the freeze until the tree or its session ends.

It opens a pty, leads the session that has the slave for its controlling terminal, starts the waiting criu in it, and
carries bytes between the master and whoever shows the terminal: one client at a time, on a unix socket. It outlives
the agent. In the session it is what a shell would be:

- the tree's parent: a job that was stopped would else be an orphan when criu leaves it, and the kernel hangs it up;
- who continues a job that its terminal has stopped, since there is no prompt to say `fg` at;
- who hangs up, when the tree's root has ended, or the client has gone unless it was told to stay: the foreground gets
  SIGHUP, and the master is closed.

Two processes, since the agent waits for criu by waiting for its own child: that child, which ends as criu did, and the
holder itself, which stays. The whole tree is restored into the holder's session, as a shell's job is (agent/ttyimages):
only so do all its tasks have the controlling terminal, which is inherited and cannot be given (tty_ioctl(4)).

A tree that stays is shown in a tmux or dtach session as well, where there is one of the two (multiplexer.py).

A connection says what it is for in a first line, as bulk streams do. All but the first two are answered with the end of
the connection, and before that with what went wrong, or what was asked for:

- `STREAM terminal`: a client, whose frames protocol.py describes.
- `STREAM agent`: the migration's agent, which says one byte more when it loses contact. Then nobody is behind the
  client either, whose own connection may stand for hours. A tree without one hangs up after TERMINAL_GRACE.
- `STREAM foreground-PGID`: before the tree runs.
- `STREAM runs-PID`: as soon as it does.
- `STREAM shown`: what command shows the tree's session, once it is known; nothing where it has none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Container, Sequence
from typing import Optional

from agent.bulk import name_of
from agent.jobs import BY_TERMINAL, IGNORED, as_a_job, group_of, new_pty, signal_group
from agent.multiplexer import Multiplexer
from agent.protocol import (
    TERMINAL_DESCRIPTORS,
    TERMINAL_GRACE,
    TERMINAL_HEAD,
    TERMINAL_STREAM,
    TERMINAL_TYPED,
    TERMINAL_WINDOW,
)
from agent.tasks import adopt_orphans

BACKLOG = 1 << 16
"""Bytes that a tree has written and that are kept while nobody shows its terminal: the newest."""
PIECE = 1 << 16
"""Bytes that are read at a time, and that wait in either direction before the reading stops."""
PATIENCE = 5.0
"""Seconds for a connection to say what it is for, and for a client to take the last that the tree has written."""

_HEAD = struct.Struct(TERMINAL_HEAD)


def main(path: str, mode: str, taken: str, *command: str) -> int:
    """Start the holder with its socket at `path`, and `command` in its session; return when that has, as it did.

    The mode is "detach" for a holder that outlives its client, else "attach". `taken` are numbers of ptys that it
    leaves alone, with commas between.
    """
    told, report = os.pipe()
    if os.fork():
        os.close(report)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # criu is waited for, whatever happens
        status = int(os.read(told, 16) or b"125")
        if status < 0:
            signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
            os.kill(os.getpid(), -status)
        return status
    try:
        os.close(told)
        os.setsid()
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, TERMINAL_DESCRIPTORS.stop)
        avoid = {int(number) for number in taken.split(",") if number}
        Holder(path, mode == "detach", report, avoid).run(command)
    finally:
        os._exit(0)


class Holder:
    """The pty, and who shows it."""

    def __init__(self, path: str, stays: bool, report: int, avoid: Container[int]) -> None:
        self._path = path
        self._stays = stays
        self._report = report
        self._reported = False
        pair = new_pty(avoid)
        # out of the way of the numbers at which criu looks for the slave
        self._master, slave = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, TERMINAL_DESCRIPTORS.stop) for end in pair)
        for end in pair:
            os.close(end)  # a slave of our own would be one that never ends
        for number in TERMINAL_DESCRIPTORS:
            os.dup2(slave, number)
        os.close(slave)
        os.set_blocking(self._master, False)
        fcntl.ioctl(TERMINAL_DESCRIPTORS.start, termios.TIOCSCTTY, 0)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if os.path.exists(path):
            os.unlink(path)  # of a holder before this one, whose criu failed
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(4)
        self._client: Optional[socket.socket] = None
        self._came = bytearray()  # from the client, not taken apart yet
        self._typed = bytearray()  # on its way to the tree
        self._shown = bytearray()  # on its way to the client, or kept for the next one
        self._window: Optional[bytes] = None
        self._agent: Optional[socket.socket] = None
        self._deadline: Optional[float] = None
        self._multiplexer = Multiplexer(path)
        self._asking: list[socket.socket] = []  # who wants to know what shows it
        self._root = 0
        self._root_end = -1
        self._criu: Optional[subprocess.Popen[bytes]] = None
        self._children, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the wake-up descriptor is written
        signal.set_wakeup_fd(wake)
        adopt_orphans()
        self._over = False

    def run(self, command: Sequence[str]) -> None:
        """Until it is over. The slave is criu's alone, and then the tree's: when nobody has it, that is the end."""
        self._criu = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=TERMINAL_DESCRIPTORS,
            preexec_fn=as_a_job,
        )
        os.closerange(TERMINAL_DESCRIPTORS.start, TERMINAL_DESCRIPTORS.stop)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)  # the agent's way to criu
        try:
            while not self._over:
                self._step()
        finally:
            self._hang_up()

    def _step(self) -> None:
        """Wait for one of the ends, and serve those that are ready."""
        poll = select.poll()
        for descriptor, events in self._wanted().items():
            if events:
                poll.register(descriptor, events)
        client = self._client.fileno() if self._client is not None else -1
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        ready = poll.poll(left and left * 1000 + 1)
        self._over = self._over or left == 0
        agent = self._agent.fileno() if self._agent is not None else -1
        for descriptor, events in ready:
            if descriptor == self._children:
                os.read(self._children, PIECE)
                self._reap()
            elif descriptor == self._root_end:
                self._over = True
            elif descriptor == self._listener.fileno():
                self._accept()
            elif descriptor == agent:
                self._serve_agent()
            elif descriptor == self._master:
                self._serve_master(events)
            elif descriptor == client and self._client is not None and self._client.fileno() == client:
                self._serve_client(events)

    def _wanted(self) -> dict[int, int]:
        wanted = {self._listener.fileno(): select.POLLIN, self._children: select.POLLIN, self._root_end: select.POLLIN}
        if self._agent is not None:
            wanted[self._agent.fileno()] = select.POLLIN
        wanted.pop(-1, None)
        full = self._client is not None and len(self._shown) >= PIECE
        wanted[self._master] = (0 if full else select.POLLIN) | (select.POLLOUT if self._typed else 0)
        if self._client is not None:
            reads = select.POLLIN if len(self._typed) < PIECE else 0
            wanted[self._client.fileno()] = reads | (select.POLLOUT if self._shown else 0)
        return wanted

    def _serve_master(self, events: int) -> None:
        if events & select.POLLOUT and self._typed:
            try:
                del self._typed[: os.write(self._master, self._typed)]
            except BlockingIOError:
                pass
        if events & (select.POLLIN | select.POLLHUP):
            self._over = not self._read_master() or self._over

    def _read_master(self) -> bool:
        """Take what the tree has written. False: nobody has the slave any more."""
        try:
            self._shown += os.read(self._master, PIECE)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        if self._client is None:
            del self._shown[:-BACKLOG]  # the tree is never made to wait for somebody who is not there
        return True

    def _serve_client(self, events: int) -> None:
        assert self._client is not None
        try:
            if events & select.POLLOUT and self._shown:
                del self._shown[: self._client.send(self._shown)]
            if events & (select.POLLIN | select.POLLHUP):
                data = self._client.recv(PIECE)
                if not data:
                    self._lose_client()
                    return
                self._came += data
                self._take_apart()
        except BlockingIOError:
            return
        except OSError:
            self._lose_client()

    def _serve_agent(self) -> None:
        assert self._agent is not None
        try:
            contact_lost = bool(self._agent.recv(1))
        except OSError:
            contact_lost = False
        self._agent.close()
        self._agent = None
        if self._client is None:
            self._deadline = time.monotonic() + TERMINAL_GRACE
        elif contact_lost:
            self._lose_client()

    def _take_apart(self) -> None:
        """Frames into what they say. What is none ends the client."""
        while len(self._came) >= _HEAD.size:
            kind, first, second = _HEAD.unpack_from(self._came)
            if kind == TERMINAL_TYPED:
                if len(self._came) < _HEAD.size + first:
                    return
                self._typed += self._came[_HEAD.size : _HEAD.size + first]
                del self._came[: _HEAD.size + first]
            elif kind == TERMINAL_WINDOW:
                self._resize(struct.pack("HHHH", first, second, 0, 0))
                del self._came[: _HEAD.size]
            else:
                self._lose_client()
                return

    def _resize(self, window: bytes) -> None:
        before = fcntl.ioctl(self._master, termios.TIOCGWINSZ, bytes(8))
        self._window = window
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, window)  # the kernel says SIGWINCH where it is another size
        if before[:4] == window[:4]:
            signal_group(self._foreground(), signal.SIGWINCH)  # who says it anew has nothing on the screen yet

    def _lose_client(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None
        self._came.clear()
        # before the tree runs, whoever lost it may come back; the tree has not seen this terminal yet
        self._over = self._over or bool(self._root and not self._stays)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        name = name_of(connection, PATIENCE)
        word, _, number = name.partition("-")
        if name == TERMINAL_STREAM:
            if self._client is not None:
                self._client.close()
            self._came.clear()
            self._client, self._deadline = connection, None
            connection.setblocking(False)
            return
        if name == "agent":
            if self._agent is not None:
                self._agent.close()
            self._agent = connection
            connection.setblocking(False)
            return
        if name == "shown":
            self._asking.append(connection)
            self._answer()
            return
        if word == "foreground" and number.isdigit():
            try:
                # from the master's side it is the slave's (drivers/tty/tty_jobctrl.c, tiocspgrp)
                fcntl.ioctl(self._master, termios.TIOCSPGRP, struct.pack("i", int(number)))
            except OSError as error:
                connection.sendall(str(error).encode())
        elif word == "runs" and number.isdigit():
            self._runs(int(number))
        connection.close()
        if word == "runs" and self._stays and not self._over:
            window = fcntl.ioctl(self._master, termios.TIOCGWINSZ, bytes(8))
            self._multiplexer.start(self._root, *struct.unpack("HHHH", window)[:2])

    def _answer(self) -> None:
        """Tell those who asked what shows the tree's session, if that is known."""
        while self._asking and not self._multiplexer.launcher:
            with self._asking.pop() as connection:
                try:
                    connection.sendall(self._multiplexer.way.encode())
                except OSError:
                    continue

    def _runs(self, pid: int) -> None:
        """The tree runs: its end is the end, and where it was stopped by its terminal it is continued, as by `fg`."""
        self._root = pid
        if self._window is not None:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, self._window)  # criu has set that of the old one
        try:
            self._root_end = os.pidfd_open(pid)
            with open(f"/proc/{pid}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
            if state == b"T":
                signal_group(group_of(pid), signal.SIGCONT)
        except (ProcessLookupError, FileNotFoundError):
            self._over = True

    def _reap(self) -> None:
        """Children that have ended or were stopped: criu, the tree's root, and what it has left without a parent."""
        assert self._criu is not None
        what = os.WEXITED | os.WSTOPPED | os.WNOHANG
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, what | os.WNOWAIT)
                if found is None:
                    return
                if found.si_pid == self._criu.pid and found.si_code != os.CLD_STOPPED:
                    self._criu_ended(self._criu.wait())
                    continue
                if found.si_pid == self._multiplexer.launcher:
                    self._multiplexer.launcher_ended()
                    self._answer()
                    continue
                os.waitid(os.P_PID, found.si_pid, what)
            except ChildProcessError:
                return
            if found.si_pid == self._root and found.si_code == os.CLD_STOPPED and found.si_status in BY_TERMINAL:
                signal_group(group_of(self._root), signal.SIGCONT)

    def _criu_ended(self, status: int) -> None:
        self._reported = True
        if status != 0:
            # whoever restores once more finds nothing of this one in the way
            self._over = True
            os.unlink(self._path)
        os.write(self._report, str(status).encode())
        os.close(self._report)

    def _foreground(self) -> int:
        return int(struct.unpack("i", fcntl.ioctl(self._master, termios.TIOCGPGRP, bytes(4)))[0])

    def _hang_up(self) -> None:
        """The last of the tree's output to the client; then what a terminal's end is to the tree."""
        if self._criu is not None and not self._reported:
            self._criu_ended(self._criu.wait())
        if os.path.exists(self._path):
            os.unlink(self._path)
        self._multiplexer.forget()
        if self._client is not None:
            try:
                while len(self._shown) < BACKLOG and select.select([self._master], [], [], 0)[0]:
                    if not self._read_master():
                        break
                self._client.settimeout(PATIENCE)
                self._client.sendall(self._shown)
            except OSError:
                pass  # it has gone; that may be why it is over
        for group in {self._foreground(), self._root and group_of(self._root)}:
            signal_group(group, signal.SIGHUP)
            signal_group(group, signal.SIGCONT)
        # the end of this process closes the master, and its session
