"""Open files of all kinds. They lie in /srv/subject, which is on both hosts."""

from __future__ import annotations

import array as _array
import ctypes as _ctypes
import fcntl as _fcntl
import mmap as _mmap
import os as _os
import select as _select
import socket as _socket
import struct as _struct
import termios as _termios
from collections.abc import Iterator as _Iterator

_Found = _Iterator[dict[str, tuple[object, object]]]
_libc = _ctypes.CDLL(None, use_errno=True)
_PLACE = "/srv/subject"


def _others(path: str, how: int, kind: int) -> bool:
    """Whether another process gets this lock; `kind` is F_SETLK's, or -1 for flock(2)."""
    child = _os.fork()
    if child == 0:
        try:
            descriptor = _os.open(path, _os.O_RDWR)
            if kind < 0:
                _fcntl.flock(descriptor, how | _fcntl.LOCK_NB)
            else:
                _fcntl.fcntl(descriptor, kind, _struct.pack("<hhqqixxxx", how, 0, 0, 10, 0))
        except OSError:
            _os._exit(1)
        _os._exit(0)
    return _os.waitpid(child, 0)[1] == 0


def locks() -> _Found:
    """flock(2), fcntl(2) and the locks of open file descriptions."""
    paths = [f"{_PLACE}/{name}" for name in ("flock", "posix", "ofd")]
    held = [_os.open(path, _os.O_RDWR | _os.O_CREAT, 0o644) for path in paths]
    _fcntl.flock(held[0], _fcntl.LOCK_EX)
    _fcntl.fcntl(held[1], _fcntl.F_SETLK, _struct.pack("<hhqqixxxx", _fcntl.F_WRLCK, 0, 0, 10, 0))
    _fcntl.fcntl(held[2], _fcntl.F_OFD_SETLK, _struct.pack("<hhqqixxxx", _fcntl.F_WRLCK, 0, 0, 10, 0))
    while True:
        yield {
            "flock": (_others(paths[0], _fcntl.LOCK_SH, -1), False),
            "posix": (_others(paths[1], _fcntl.F_RDLCK, _fcntl.F_SETLK), False),
            "ofd": (_others(paths[2], _fcntl.F_RDLCK, _fcntl.F_OFD_SETLK), False),
        }


def appended_file() -> _Found:
    """A log: every line that was ever written is in it, once."""
    log = open(f"{_PLACE}/log", "a")  # noqa: SIM115 - it is held
    count = 0
    while True:
        count += 1
        print(count, file=log, flush=True)
        with open(f"{_PLACE}/log") as file:
            lines = file.read().split()
        yield {"lines": (lines, [str(number + 1) for number in range(count)])}


def positions_and_flags() -> _Found:
    """Two descriptors that share a position, one of its own, and what fcntl(2) sets."""
    with open(f"{_PLACE}/read", "w") as file:
        file.write("0123456789" * 100)
    first = _os.open(f"{_PLACE}/read", _os.O_RDONLY)
    copy, own = _os.dup(first), _os.open(f"{_PLACE}/read", _os.O_RDONLY | _os.O_NONBLOCK)
    _os.set_inheritable(own, True)
    _os.lseek(first, 13, 0)
    while True:
        yield {
            "shared": (_os.lseek(copy, 0, 1), 13),
            "own": (_os.lseek(own, 0, 1), 0),
            "close on exec": ([_os.get_inheritable(fd) for fd in (first, copy, own)], [False, False, True]),
            "non-blocking": (_os.get_blocking(own), False),
            "content": (_os.pread(first, 5, 500), b"01234"),
        }


def deleted_file() -> _Found:
    """Written, also beyond a hole, mapped, and without a name."""
    file = _os.open(f"{_PLACE}/deleted", _os.O_RDWR | _os.O_CREAT)
    _os.write(file, b"x" * 30000)
    _os.pwrite(file, b"end", 10 << 20)
    mapped = _mmap.mmap(file, 8192)
    _os.unlink(f"{_PLACE}/deleted")
    while True:
        mapped[0] = mapped[0]
        yield {
            "content": (_os.pread(file, 30000, 0), b"x" * 30000),
            "end": (_os.pread(file, 99, 10 << 20), b"end"),
            "size": (_os.fstat(file).st_size, (10 << 20) + 3),
            "mapping": (mapped[:8192], b"x" * 8192),
            "name": (_os.readlink(f"/proc/self/fd/{file}"), f"{_PLACE}/deleted (deleted)"),
        }


def deleted_name_of_two() -> _Found:
    """Its other name is still there."""
    file = _os.open(f"{_PLACE}/one", _os.O_RDWR | _os.O_CREAT)
    _os.write(file, b"content")
    _os.link(f"{_PLACE}/one", f"{_PLACE}/two")
    _os.unlink(f"{_PLACE}/one")
    while True:
        yield {"content": (_os.pread(file, 99, 0), b"content"), "names": (_os.fstat(file).st_nlink, 1)}


def deleted_directory() -> _Found:
    """The directory that it stands in is gone."""
    _os.mkdir(f"{_PLACE}/gone")
    directory = _os.open(f"{_PLACE}/gone", _os.O_RDONLY)
    _os.rmdir(f"{_PLACE}/gone")
    while True:
        yield {"names": (_os.listdir(directory), [])}


def mapped_file() -> _Found:
    """A shared mapping that it writes to, and a private one with changes of its own."""
    with open(f"{_PLACE}/mapped", "wb") as file:
        file.write(b"m" * 8192)
    shared_file = _os.open(f"{_PLACE}/mapped", _os.O_RDWR)
    shared = _mmap.mmap(shared_file, 8192)
    private = _mmap.mmap(shared_file, 8192, _mmap.MAP_PRIVATE)
    private[4096:4100] = b"mine"
    count = 0
    while True:
        count += 1
        shared[0:4] = _struct.pack("<I", count)
        yield {
            "shared": (_os.pread(shared_file, 4, 0), _struct.pack("<I", count)),
            "private": (private[4096:4101], b"minem"),
            "file": (_os.pread(shared_file, 5, 4096), b"mmmmm"),
        }


def pipes() -> _Found:
    """With data in them, one enlarged, one whose writer is gone."""
    reading, writing = _os.pipe()
    _fcntl.fcntl(writing, 1031, 1 << 18)
    orphan, gone = _os.pipe()
    _os.close(gone)
    _os.write(writing, b"d" * 100_000)
    while True:
        yield {
            "data": (_os.read(reading, 100_000), b"d" * 100_000),
            "size": (_fcntl.fcntl(reading, 1032), 1 << 18),
            "ended": (_os.read(orphan, 1), b""),
        }
        _os.write(writing, b"d" * 100_000)


def fifo() -> _Found:
    """A named pipe with both ends inside, and data in it; it is there on both hosts."""
    reading = _os.open(f"{_PLACE}/fifo", _os.O_RDONLY | _os.O_NONBLOCK)
    writing = _os.open(f"{_PLACE}/fifo", _os.O_WRONLY)
    _os.write(writing, b"waiting")
    while True:
        yield {"data": (_os.read(reading, 99), b"waiting")}
        _os.write(writing, b"waiting")


def unix_sockets() -> _Found:
    """A pair with data under way, another with a descriptor in its queue, a listening one that answers."""
    left, right = _socket.socketpair()
    left.sendall(b"under way")
    datagrams = _socket.socketpair(type=_socket.SOCK_DGRAM)
    for word in (b"one", b"two"):
        datagrams[0].send(word)
    path = f"{_PLACE}/listening"
    server = _socket.socket(_socket.AF_UNIX)
    server.bind(path)
    server.listen()
    while True:
        client = _socket.socket(_socket.AF_UNIX)
        client.connect(path)
        accepted, _ = server.accept()
        client.sendall(b"hello")
        yield {
            "stream": (right.recv(99), b"under way"),
            "datagrams": ([datagrams[1].recv(99) for _ in range(2)], [b"one", b"two"]),
            "listening": (accepted.recv(99), b"hello"),
        }
        client.close()
        accepted.close()
        left.sendall(b"under way")
        for word in (b"one", b"two"):
            datagrams[0].send(word)


def renamed_socket() -> _Found:
    """Bound to one path, and found at another; one beside it whose file is gone, as one may be carried."""
    server, other = (_socket.socket(_socket.AF_UNIX) for _ in range(2))
    server.bind(f"{_PLACE}/first")
    server.listen()
    _os.rename(f"{_PLACE}/first", f"{_PLACE}/then")
    other.bind(f"{_PLACE}/gone")
    other.listen()
    _os.unlink(f"{_PLACE}/gone")
    while True:
        with _socket.socket(_socket.AF_UNIX) as client:
            client.connect(f"{_PLACE}/then")
            accepted, _ = server.accept()
            accepted.close()
        yield {}


def descriptor_under_way() -> _Found:
    """A descriptor in the queue of a socket (SCM_RIGHTS)."""
    left, right = _socket.socketpair()
    reading, writing = _os.pipe()
    _os.write(writing, b"inside")

    def send() -> None:
        left.sendmsg([b"x"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, _array.array("i", [reading]))])

    send()
    while True:
        _, ancillary, _, _ = right.recvmsg(1, 99)
        (descriptor,) = _array.array("i", ancillary[0][2])
        yield {"pipe": (_os.read(descriptor, 99), b"inside")}
        _os.close(descriptor)
        _os.write(writing, b"inside")
        send()


def ip_sockets() -> _Found:
    """A listening TCP socket of each family, and a UDP socket with options."""
    six = _socket.create_server(("::1", 8095), family=_socket.AF_INET6)
    servers = [_socket.create_server(("127.0.0.1", 8095)), six]
    datagrams = _socket.socket(type=_socket.SOCK_DGRAM)
    datagrams.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, 100_000)
    datagrams.bind(("127.0.0.1", 8096))
    while True:
        said = []
        for server in servers:
            with _socket.create_connection(server.getsockname()[:2]) as client:
                accepted, _ = server.accept()
                with accepted:
                    client.sendall(b"hi")
                    said.append(accepted.recv(99))
        with _socket.socket(type=_socket.SOCK_DGRAM) as client:
            client.sendto(b"datagram", ("127.0.0.1", 8096))
            said.append(datagrams.recv(99))
        yield {
            "answers": (said, [b"hi", b"hi", b"datagram"]),
            "buffer": (datagrams.getsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF), 200_000),
        }


def connection_inside() -> _Found:
    """A TCP connection with both ends in the tree."""
    with _socket.create_server(("127.0.0.1", 8095)) as server:
        client = _socket.create_connection(("127.0.0.1", 8095))
        accepted, _ = server.accept()
    while True:
        client.sendall(b"hi")
        yield {"data": (accepted.recv(9), b"hi")}


def terminals() -> _Found:
    """A pseudo-terminal with both ends inside: settings, size, and a line under way."""
    master, slave = _os.openpty()
    settings = _termios.tcgetattr(slave)
    settings[3] &= ~_termios.ECHO
    _termios.tcsetattr(slave, _termios.TCSANOW, settings)
    _fcntl.ioctl(slave, _termios.TIOCSWINSZ, _struct.pack("<HHHH", 33, 77, 0, 0))
    while True:
        _os.write(master, b"typed\n")
        rows, columns = _struct.unpack("<HHHH", _fcntl.ioctl(slave, _termios.TIOCGWINSZ, bytes(8)))[:2]
        yield {
            "size": ((rows, columns), (33, 77)),
            "echo": (bool(_termios.tcgetattr(slave)[3] & _termios.ECHO), False),
            "line": (_os.read(slave, 99), b"typed\n"),
            "echoed": (_select.select([master], [], [], 0)[0], []),
        }


def working_directory() -> _Found:
    _os.chdir(f"{_PLACE}/standing")
    while True:
        yield {"directory": (_os.getcwd(), f"{_PLACE}/standing")}


def lease() -> _Found:
    """A read lease on a file that nobody writes to."""
    with open(f"{_PLACE}/leased", "w") as file:
        file.write("leased")
    held = _os.open(f"{_PLACE}/leased", _os.O_RDONLY)
    _fcntl.fcntl(held, _fcntl.F_SETLEASE, _fcntl.F_RDLCK)
    while True:
        yield {"lease": (_fcntl.fcntl(held, _fcntl.F_GETLEASE), _fcntl.F_RDLCK)}


def asynchronous_io() -> _Found:
    """io_setup(2), nothing under way: a read by it."""
    context = _ctypes.c_ulong()
    if _libc.syscall(206, 8, _ctypes.byref(context)):
        raise OSError(_ctypes.get_errno(), "io_setup")
    file = _os.memfd_create("read")
    _os.write(file, b"asynchronous")
    while True:
        buffer, events = _ctypes.create_string_buffer(12), _ctypes.create_string_buffer(32)
        request = _struct.pack("<QIiHhIQQqQII", 7, 0, 0, 0, 0, file, _ctypes.addressof(buffer), 12, 0, 0, 0, 0)
        control = _ctypes.create_string_buffer(request)
        pointer = _ctypes.c_void_p(_ctypes.addressof(control))
        submitted = _libc.syscall(209, context, 1, _ctypes.byref(pointer))
        done = _libc.syscall(208, context, 1, 1, events, _struct.pack("<qq", 60, 0)) if submitted == 1 else 0
        yield {
            "done": ((submitted, done, _struct.unpack("<QQqq", events.raw)[2]), (1, 1, 12)),
            "content": (buffer.raw, b"asynchronous"),
        }
