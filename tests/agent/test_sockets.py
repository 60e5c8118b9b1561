"""agent/sockets.py: the kernel's tables as text and as real sockets."""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent import sockets

HEAD = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LINE = b"   0: %s:1F90 %s:0000 %s 00000000:00000000 00:00000000 00000000     0        0 %d 1 0000000000000000 100 0 0\n"


def words(address: str, family: int) -> bytes:
    """An address as the kernel prints it: words of its own byte order."""
    packed = socket.inet_pton(family, address)
    return b"".join(b"%08X" % word for word in struct.unpack(f"={len(packed) // 4}I", packed))


def test_a_table_is_read_and_sockets_without_owner_are_passed_over() -> None:
    for address, any_, family in (("192.0.2.1", "0.0.0.0", socket.AF_INET), ("2001:db8::1", "::", socket.AF_INET6)):
        here, there = words(address, family), words(any_, family)
        table = HEAD + LINE % (here, there, b"0A", 4711) + LINE % (here, there, b"06", 0) + b"garbage\n"
        (found,) = sockets.parse_inet(table)
        shown = [f"[{each}]" if ":" in each else each for each in (address, any_)]
        assert found == sockets.Inet(4711, f"{shown[0]}:8080", f"{shown[1]}:0", sockets.LISTEN)


@given(st.binary(max_size=300))
def test_a_garbage_table_is_no_table(data: bytes) -> None:
    for found in sockets.parse_inet(data):
        assert found.inode


def test_a_real_connection_is_seen_from_both_sides() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            table = sockets.inet(os.getpid(), "tcp")
            inode = os.fstat(client.fileno()).st_ino
            here = f"127.0.0.1:{client.getsockname()[1]}"
            there = f"127.0.0.1:{server.getsockname()[1]}"
            assert (table[inode].local, table[inode].remote) == (here, there)
            assert sockets.TCP_STATES[table[inode].state] == "established"
            assert table[os.fstat(accepted.fileno()).st_ino].local == there
            assert table[os.fstat(server.fileno()).st_ino].state == sockets.LISTEN


def test_the_kernel_names_a_socket_that_no_table_lists() -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        assert sockets.protocol_name(os.getpid(), tcp.fileno()) == "TCP"
        assert sockets.protocol_name(os.getpid(), unix.fileno()).startswith("UNIX")
    assert sockets.protocol_name(os.getpid(), 9999) == ""


def test_unix_sockets_are_seen_with_peer_and_name(tmp_path: Path) -> None:
    path = str(tmp_path / "a b")
    left, right = socket.socketpair()
    with left, right, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound, \
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:  # fmt: skip
        bound.bind(path)
        sender.connect(path)
        known = sockets.unix()
        inodes = [os.fstat(each.fileno()).st_ino for each in (left, right, bound, sender)]
        assert known[inodes[0]].peer == inodes[1]
        assert known[inodes[1]].peer == inodes[0]
        assert (known[inodes[2]].name, known[inodes[2]].peer) == (path, 0)
        assert (known[inodes[3]].type, known[inodes[3]].peer) == (socket.SOCK_DGRAM, inodes[2])


def test_those_that_wait_to_be_accepted_are_known_to_the_one_that_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "sock"))
        server.listen()
        client.connect(str(tmp_path / "sock"))
        assert sockets.unix()[os.fstat(server.fileno()).st_ino].waiting == (os.fstat(client.fileno()).st_ino,)


def test_an_abstract_name_is_shown_with_an_at() -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"\0migrate test {os.getpid()}")
        assert sockets.unix()[os.fstat(bound.fileno()).st_ino].name == f"@migrate test {os.getpid()}"


@given(st.binary(max_size=300))
def test_garbage_from_sock_diag_ends(data: bytes) -> None:
    more, found = sockets.parse(data)
    assert isinstance(more, bool)
    assert len(found) <= len(data) // 16
    for message in (data, *found):
        assert len(list(sockets.parse_unix(message))) <= 1
        assert len(list(sockets.parse_only_ipv6(message))) <= 1


def test_sock_diag_says_when_it_is_done() -> None:
    body = struct.pack("=BBBBI8x", 1, socket.SOCK_STREAM, 1, 0, 77)
    body += struct.pack("=HHI", 8, 2, int.from_bytes((88).to_bytes(4, sys.byteorder), sys.byteorder))
    body += struct.pack("=HH", 4 + 3, 0) + b"/a\0" + b"\0"
    one = struct.pack("=IHHII", 16 + len(body), 20, 2, 1, 0) + body
    done = struct.pack("=IHHIII", 20, 3, 2, 1, 0, 0)
    expected = sockets.Unix(77, socket.SOCK_STREAM, 1, 88, "/a")
    assert sockets.parse(one) == (True, [body])
    assert sockets.parse(one + done) == (False, [body])
    assert list(sockets.parse_unix(body)) == [expected]


def test_the_kernel_says_which_sockets_leave_ipv4_alone() -> None:
    for kind, protocol in ((socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")):
        with socket.socket(socket.AF_INET6, kind) as only, socket.socket(socket.AF_INET6, kind) as both:
            for bound, flag in ((only, 1), (both, 0)):
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, flag)
                bound.bind(("::", 0))
                if protocol == "tcp":
                    bound.listen()
            inodes = [os.fstat(bound.fileno()).st_ino for bound in (only, both)]
            assert sockets.only_ipv6(protocol).intersection(inodes) == {inodes[0]}


def test_who_holds_a_pipe_is_found_but_for_those_left_out() -> None:
    reading, writing = os.pipe()
    try:
        link = os.readlink(f"/proc/self/fd/{reading}")
        assert sockets.holders({link}, ()) == {link: [os.getpid()]}
        assert sockets.holders({link}, {os.getpid()}) == {}
    finally:
        os.close(reading)
        os.close(writing)
