"""Targets as people write them; lines and bytes of a channel; the pump between two of them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.channel import TAIL, Channel, Tail, Target, parse_target, pump
from migrator.errors import UsageError
from migrator.local import _Pipe

MIB = 1 << 20


class TestTarget:
    @pytest.mark.parametrize(
        ("text", "target"),
        [
            ("db2", Target("db2")),
            ("root@db2", Target("db2", "root")),
            ("db2:2222", Target("db2", "", 2222)),
            ("root@db2.example.org:22", Target("db2.example.org", "root", 22)),
            ("10.0.0.2", Target("10.0.0.2")),
            ("::1", Target("::1")),
            ("[::1]", Target("::1")),
            ("[::1]:2222", Target("::1", "", 2222)),
            ("root@[fe80::1%eth0]:22", Target("fe80::1%eth0", "root", 22)),
            ("root@fe80::1%eth0", Target("fe80::1%eth0", "root")),
            ("ssh://root@db2:22/", Target("db2", "root", 22)),
            ("ssh://[::1]:22", Target("::1", "", 22)),
            ("me@corp@db2", Target("db2", "me@corp")),
            ("my_alias-2", Target("my_alias-2")),
        ],
    )
    def test_what_people_write(self, text: str, target: Target) -> None:
        assert parse_target(text) == target
        assert parse_target(str(target)) == target

    @pytest.mark.parametrize(
        "text",
        [
            "", "@db2", "root@", ":22", "db2:", "db2:ssh", "db2:0", "db2:65536", "db2:-1", "db2:\uff11",
            "[::1", "[::1]22", "[]:22", "[f:5]", "db2:22:22", "::1%", "1:2:3",
            "-oProxyCommand=x", "-l@db2", "a b", "db2;reboot", "db2\n", "$(x)", "db2/x", "ssh://",
        ],
    )  # fmt: skip
    def test_nonsense_is_named(self, text: str) -> None:
        with pytest.raises(UsageError, match="is no host: ") as caught:
            parse_target(text)
        assert repr(text) in caught.value.message

    @given(st.text(max_size=30))
    def test_nothing_else_than_a_usage_error_comes_out(self, text: str) -> None:
        try:
            target = parse_target(text)
        except UsageError:
            return
        assert parse_target(str(target)) == target

    def test_how_to_reach_it_by_hand(self) -> None:
        assert Target("db2").ssh_command() == "ssh db2"
        assert Target("::1", "root", 2222).ssh_command() == "ssh -p 2222 root@::1"


class TestTail:
    def test_the_end_is_kept_and_lines_are_logged_whole(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "migrator.agent")
        tail = Tail("db2")
        for data in (b"first li", b"ne\nsecond\nthi", b"x" * 2 * TAIL, b"rd\n\xff\n"):
            tail.feed(data)
        assert caplog.messages[:2] == ["db2: first line", "db2: second"]
        assert caplog.messages[-1] == "db2: \ufffd"
        assert len(tail.text()) == TAIL
        assert tail.text().endswith("xrd\n\ufffd\n")


class Scripted(Channel):
    """A channel that gives the pieces it was made of, then waits or ends."""

    def __init__(self, *pieces: bytes, ends: bool = True) -> None:
        super().__init__()
        self.pieces = list(pieces)
        self.ends = ends
        self.written = b""
        self.closed = False

    async def _receive(self, size: int) -> bytes:
        await asyncio.sleep(0)
        if self.pieces:
            piece = self.pieces.pop(0)
            if len(piece) > size:
                self.pieces.insert(0, piece[size:])
            return piece[:size]
        if not self.ends:
            await asyncio.Event().wait()
        return b""

    async def write(self, data: bytes) -> None:
        self.written += data

    async def write_eof(self) -> None:
        self.written += b"<end>"

    async def close(self) -> None:
        self.closed = True

    async def wait(self) -> int | None:
        return None


class TestReading:
    async def test_lines_and_bytes_may_be_mixed(self) -> None:
        channel = Scripted(b"one\ntw", b"o\n\nraw", b"bytes", b"last")
        assert [await channel.readline(100) for _ in range(3)] == [b"one\n", b"two\n", b"\n"]
        assert await channel.read(2) == b"ra"
        assert await channel.read(100) == b"w"
        assert await channel.read(100) == b"bytes"
        assert await channel.readline(100) == b"last"
        assert await channel.readline(100) == b""
        assert await channel.read() == b""

    @given(st.lists(st.binary(min_size=1, max_size=20)))
    async def test_lines_are_found_however_bytes_come(self, pieces: list[bytes]) -> None:
        channel = Scripted(*pieces)
        *lines, rest = b"".join(pieces).split(b"\n")
        for line in lines:
            assert await channel.readline(10000) == line + b"\n"
        assert await channel.readline(10000) == rest

    @pytest.mark.parametrize("pieces", [[b"x" * 11 + b"\n"], [b"xxxx"] * 5, [b"x" * 100]])
    async def test_a_line_has_a_limit(self, pieces: list[bytes]) -> None:
        with pytest.raises(ValueError, match="more than 11 bytes"):
            await Scripted(*pieces).readline(11)
        assert await Scripted(b"x" * 10 + b"\n").readline(11) == b"x" * 10 + b"\n"

    async def test_a_time_limit_loses_nothing(self) -> None:
        channel = Scripted(b"half a li", ends=False)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await channel.readline(100)
        channel.pieces.append(b"ne\n")
        assert await channel.readline(100) == b"half a line\n"


class Ends:
    """Two channels to be coupled, and the raw sockets at their far ends."""

    def __init__(self, a: Channel, b: Channel, far_a: socket.socket, far_b: socket.socket) -> None:
        self.a, self.b, self.far_a, self.far_b = a, b, far_a, far_b

    async def send(self, sock: socket.socket, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(sock, data)

    async def receive(self, sock: socket.socket, size: int = MIB) -> bytes:
        return await asyncio.get_running_loop().sock_recv(sock, size)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    near_a, far_a = socket.socketpair()
    near_b, far_b = socket.socketpair()
    far_a.setblocking(False)
    far_b.setblocking(False)
    both = Ends(await _Pipe.of(near_a), await _Pipe.of(near_b), far_a, far_b)
    yield both
    await both.a.close()
    await both.b.close()
    far_a.close()
    far_b.close()
    await asyncio.sleep(0)


class TestPump:
    async def test_both_ways_at_once_with_counting(self, ends: Ends) -> None:
        there, back = os.urandom(8 * MIB), os.urandom(5 * MIB)
        counted: list[int] = []
        pumping = asyncio.create_task(pump(ends.a, ends.b, counted.append))

        async def send(sock: socket.socket, data: bytes) -> None:
            await ends.send(sock, data)
            sock.shutdown(socket.SHUT_WR)

        async def receive(sock: socket.socket) -> bytes:
            parts = []
            while data := await ends.receive(sock):
                parts.append(data)
            return b"".join(parts)

        _, _, at_b, at_a = await asyncio.gather(
            send(ends.far_a, there), send(ends.far_b, back), receive(ends.far_b), receive(ends.far_a)
        )
        await asyncio.wait_for(pumping, 10)
        assert at_b == there
        assert at_a == back
        assert sum(counted) == len(there)

    async def test_a_byte_is_not_held_back(self, ends: Ends) -> None:
        pumping = asyncio.create_task(pump(ends.a, ends.b, lambda size: None))
        for number in range(50):
            await ends.send(ends.far_a, bytes([number]))
            assert await asyncio.wait_for(ends.receive(ends.far_b), 1) == bytes([number])
            await ends.send(ends.far_b, bytes([number]))
            assert await asyncio.wait_for(ends.receive(ends.far_a), 1) == bytes([number])
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)

    async def test_an_end_is_passed_on_and_the_other_way_stays_open(self, ends: Ends) -> None:
        pumping = asyncio.create_task(pump(ends.a, ends.b, lambda size: None))
        ends.far_a.shutdown(socket.SHUT_WR)
        assert await asyncio.wait_for(ends.receive(ends.far_b), 1) == b""
        await ends.send(ends.far_b, b"status")
        assert await asyncio.wait_for(ends.receive(ends.far_a), 1) == b"status"
        assert not pumping.done()
        ends.far_b.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(pumping, 1)

    async def test_who_does_not_read_stops_who_writes(self, ends: Ends) -> None:
        counted: list[int] = []
        pumping = asyncio.create_task(pump(ends.a, ends.b, counted.append))
        sending = asyncio.create_task(ends.send(ends.far_a, bytes(64 * MIB)))
        await asyncio.sleep(0.3)
        assert not sending.done()
        assert sum(counted) < 16 * MIB
        sending.cancel()
        pumping.cancel()
        await asyncio.gather(pumping, sending, return_exceptions=True)

    async def test_a_side_that_breaks_ends_the_other(self, ends: Ends) -> None:
        pumping = asyncio.create_task(pump(ends.a, ends.b, lambda size: None))
        await asyncio.sleep(0.01)
        await ends.a.write(b"never read")
        ends.far_a.close()  # with bytes unread: a reset
        with pytest.raises(OSError, match="reset"):
            await asyncio.wait_for(pumping, 1)
        assert await asyncio.wait_for(ends.receive(ends.far_b), 1) == b""

    async def test_cancelling_leaves_both_open(self, ends: Ends) -> None:
        pumping = asyncio.create_task(pump(ends.a, ends.b, lambda size: None))
        await asyncio.sleep(0.01)
        pumping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pumping
        await ends.a.write(b"still here")
        assert await ends.receive(ends.far_a) == b"still here"
        assert len(asyncio.all_tasks()) == 1, "no task is left behind"
