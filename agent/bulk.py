"""Bulk streams of one host: the agent's unix socket that they arrive at, and the relay that brings them there.

Owns the socket, the header line `STREAM <name>` and the moving of bytes, raw or unpacked; knows nothing of what they
mean. The end of a stream does not tell that all of it came, since a cut connection ends it just so: what it carries
must say itself where it ends (the page server's protocol, tar and frames do).

A stream's far end is the migrator: directly on the source, behind an SSH channel and `relay` on the target. sshd gives
a command pipes, criu's `--ps-socket` wants a socket: hence the relay. Refuses every connection of another user, and
never reads a byte past the header, because what follows belongs to whoever takes the stream.

Nothing heavy is imported here, not even protocol.py (30 ms): the relay is a process per stream, and its start counts.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct

TYPE_CHECKING = False  # what typing would give, without its 5 ms
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

PATH_LIMIT = 107
"""Bytes of a unix socket's path at most (unix(7): 108 with the closing zero)."""

HEADER_SECONDS = 30.0
"""A connection that has not named itself by then is closed."""

STREAM_HEADER = b"STREAM "
"""protocol.py's, with the space that follows it."""

HEADER_LIMIT = 256
"""Bytes of the header line at most."""

BUFFER = 1 << 20
"""Bytes that are moved at a time, and asked for as room in pipes and sockets."""

DAMAGED = "the stream is damaged"
"""protocol.py's."""

_SO_SNDBUFFORCE = 32
_F_SETPIPE_SZ = 1031


class BrokenStream(Exception):
    """A bulk stream did not come, or its socket can't be made."""


def name_of(connection: socket.socket, seconds: float) -> str:
    """What a connection is for, by its first line; "" for one that is not root's or ours, or does not say in time."""
    credentials = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    connection.settimeout(seconds)
    line = b""
    try:
        # no byte further: what follows is the client's first frame
        while credentials[1] in (0, os.geteuid()) and not line.endswith(b"\n") and len(line) < HEADER_LIMIT:
            byte = connection.recv(1)
            if not byte:
                break
            line += byte
    except OSError:
        return ""
    words = line[len(STREAM_HEADER) : -1] if line.startswith(STREAM_HEADER) and line.endswith(b"\n") else b""
    return words.decode("ascii", "replace")


def header(name: str) -> bytes:
    """The line that opens a stream. Raises ValueError for a name that is no single printable word."""
    line = STREAM_HEADER + name.encode("ascii", "replace") + b"\n"
    if not (name and name.isascii() and name.isprintable()) or " " in name or len(line) > HEADER_LIMIT:
        raise ValueError(f"{name!r} cannot name a stream: that takes one short word of printable ASCII")
    return line


def make_room(sock: socket.socket) -> None:
    """Give a unix socket room for `BUFFER` bytes on their way out; where we are not root, up to the system's limit."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)


class Streams:
    """The listening socket of an agent, and the streams that have come but were not taken yet.

    Made inside a running event loop. The socket's directory must be the agent's own (0700).
    """

    def __init__(self, path: Path) -> None:
        """Listen at `path`. Raises BrokenStream when it is too long for a socket, OSError as bind does."""
        import asyncio  # not above: the relay shares this file and must start fast

        length = len(os.fsencode(path))
        if length > PATH_LIMIT:
            raise BrokenStream(f"{path}: a socket's path has {PATH_LIMIT} bytes at most, this one has {length}")
        self.path = path
        self._loop = asyncio.get_running_loop()
        self._unnamed: dict[socket.socket, asyncio.TimerHandle] = {}
        self._ready: dict[str, socket.socket] = {}
        self._wanted: dict[str, asyncio.Future[socket.socket]] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.setblocking(False)
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(64)
        except OSError:
            self._listener.close()
            raise
        self._loop.add_reader(self._listener, self._accept)

    async def take(self, name: str, seconds: float) -> socket.socket:
        """The blocking socket of the stream `name`, waited for up to `seconds`; from now on it is the caller's.

        Raises BrokenStream when it does not come, when somebody else waits for it, or when the streams are closed.
        """
        sock = self._ready.pop(name, None)
        if sock is None:
            sock = await self._wait_for(name, seconds)
        sock.setblocking(True)
        return sock

    def close(self) -> None:
        """Close what was not taken, stop listening and remove the socket; whoever waits gets BrokenStream."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            try:
                self.path.unlink()
            except FileNotFoundError:
                pass
        for sock in list(self._unnamed):
            self._forget(sock).close()
        for sock in self._ready.values():
            sock.close()
        self._ready.clear()
        for name, future in self._wanted.items():
            _fail(future, f"stream {name} did not come before streams were closed")

    async def _wait_for(self, name: str, seconds: float) -> socket.socket:
        if name in self._wanted:
            raise BrokenStream(f"stream {name} is waited for twice")
        if self._listener.fileno() < 0:
            raise BrokenStream(f"stream {name} is asked for, but streams are closed")
        future: asyncio.Future[socket.socket] = self._loop.create_future()
        self._wanted[name] = future
        timer = self._loop.call_later(seconds, _fail, future, f"stream {name} did not come within {seconds:g} s")
        try:
            return await future
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().close()  # it came in the very instant in which we were cancelled
            raise
        finally:
            timer.cancel()
            del self._wanted[name]

    def _accept(self) -> None:
        try:
            sock = self._listener.accept()[0]
        except OSError:
            return  # whoever it was has gone again
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", credentials)[1] != os.getuid():
            sock.close()
            return
        sock.setblocking(False)
        make_room(sock)
        self._unnamed[sock] = self._loop.call_later(HEADER_SECONDS, lambda: self._forget(sock).close())
        self._loop.add_reader(sock, self._read_header, sock, bytearray())

    def _forget(self, sock: socket.socket) -> socket.socket:
        self._unnamed.pop(sock).cancel()
        self._loop.remove_reader(sock)
        return sock

    def _read_header(self, sock: socket.socket, seen: bytearray) -> None:
        """Look first, then take no more than the header: what is behind its newline is not ours."""
        try:
            ahead = sock.recv(HEADER_LIMIT - len(seen), socket.MSG_PEEK)
            end = ahead.find(b"\n") + 1
            seen += sock.recv(end or len(ahead)) if ahead else b""
        except BlockingIOError:
            return
        except OSError:
            self._forget(sock).close()
            return
        if not end and ahead and len(seen) < HEADER_LIMIT:
            return
        self._forget(sock)
        name = _name(bytes(seen))
        if name is None or name in self._ready:
            sock.close()
            return
        future = self._wanted.get(name)
        if future is not None and not future.done():
            future.set_result(sock)
        else:
            self._ready[name] = sock


def _fail(future: asyncio.Future[socket.socket], why: str) -> None:
    if not future.done():
        future.set_exception(BrokenStream(why))


def _name(line: bytes) -> str | None:
    name = line[len(STREAM_HEADER) : -1].decode("ascii", "replace")
    try:
        return name if header(name) == line else None
    except ValueError:
        return None


def relay(socket_path: str, name: str, form: str = "plain") -> int:
    """Join stdin and stdout to the stream `name` of the agent at `socket_path`; return the exit code.

    With the form "packed" stdin brings frames (see `frames`), and the agent gets what they stand for; the other
    direction is plain. What is no such frame ends both directions, and stderr says `DAMAGED`.

    The first line on stdout is the header again: the stream stands, and what a login shell printed before is no part of
    it. Either direction ends on its own (half-close); all ends when both have, or when the agent's side has gone
    altogether (a page server leaves first, and nobody would close our stdin). 0: everything went through. 1: not all.
    Where sudo stands in between it keeps stdout open, and the far end sees the end only when the relay leaves.

    Two threads with blocking calls, so that a byte goes on the moment it comes. Bytes are read into one buffer again
    and again (readv, recv_into) instead of into new objects. `python3` 3.11 on 2 busy cores, 1 GiB from a pipe into a
    unix socket: read/sendall 0.67-0.89 GiB/s; readv/sendall 1.9 GiB/s, with 1 MiB of pipe and socket 2.1-2.6 GiB/s;
    os.splice with the same 1.7-2.9 GiB/s. Not worth a second way: splice is missing from 3.9, blocks when it reads from
    the socket, and sshd in front gives less than 0.7 GiB/s anyway.
    """
    import _thread
    import signal

    # the ends of the stream decide when the relay leaves, not a terminal's Ctrl-C or hangup
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        opening = header(name)
        sock.connect(socket_path)
        sock.sendall(opening)
        make_room(sock)
        os.write(1, opening)
    except (OSError, ValueError) as error:
        return _complain(name, f"cannot reach the agent at {socket_path}", error)
    _widen(0)
    _widen(1)
    failed: list[int] = []
    sending = _thread.allocate_lock()
    bad, pass_on = _inwards(form)

    def inwards() -> None:
        incoming = select.poll()
        incoming.register(0, select.POLLIN)
        while incoming.poll():
            with sending:
                try:
                    if not pass_on(sock):
                        return
                except (OSError, bad) as error:
                    why = DAMAGED if isinstance(error, bad) else "towards the agent"
                    failed.append(_complain(name, why, error))
                    _shut(sock, socket.SHUT_RDWR)  # half a stream is of no use: end the other direction as well
                    return

    _thread.start_new_thread(inwards, ())
    try:
        _socket_to_stdout(sock)
        end = select.poll()
        end.register(sock, 0)
        end.poll()  # hung up: both directions are shut, by whomever
        with sending:  # what was on its way in has gone through by now, or failed
            end.unregister(sock)
            end.register(0, select.POLLIN)
            if not failed and end.poll(0):
                pass_on(sock)  # what still waits can't be delivered, its end can
    except (OSError, bad) as error:
        _shut(sock, socket.SHUT_RDWR)
        return _complain(name, "the agent has left", error)
    return 1 if failed else 0


def _inwards(form: str) -> tuple[type[Exception], Callable[[socket.socket], bool]]:
    """What passes on what waits on stdin, returning False when that was its end; and what it raises beside OSError."""
    if form == "packed":
        from agent import frames, zstd

        coming = frames.Frames(zstd.find()[1])

        def unpacked(sock: socket.socket) -> bool:
            count = os.readv(0, [coming.room()])
            for piece in coming.took(count):
                sock.sendall(piece)
            if not count:
                _shut(sock, socket.SHUT_WR)
            return bool(count)

        return frames.BadFrames, unpacked

    buffer = bytearray(BUFFER)

    def plain(sock: socket.socket) -> bool:
        count = os.readv(0, [buffer])
        if count:
            sock.sendall(memoryview(buffer)[:count])
        else:
            _shut(sock, socket.SHUT_WR)
        return bool(count)

    return BrokenStream, plain  # raised by nothing here: any bytes are a plain stream


def _socket_to_stdout(sock: socket.socket) -> None:
    buffer = bytearray(BUFFER)
    view = memoryview(buffer)
    while True:
        count = sock.recv_into(buffer)
        if not count:
            break
        done = 0
        while done < count:
            done += os.write(1, view[done:count])
    nothing = os.open(os.devnull, os.O_WRONLY)
    # closes the pipes and keeps the numbers taken; both, since sshd passes the end on only when stderr has ended, too
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.close(nothing)


def _widen(fd: int) -> None:
    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, BUFFER)
    except OSError:
        pass  # no pipe, or the user's share of pipe memory is used up: it is only slower


def _shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        pass  # the agent's side is gone already


def _complain(name: str, what: str, error: Exception) -> int:
    try:
        os.write(2, f"migrate relay {name}: {what}: {error}\n".encode("utf-8", "replace"))
    except OSError:
        pass  # nobody listens any more
    return 1
