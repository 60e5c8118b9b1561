"""Bulk streams: names, owners and bytes; the relay as the process that sshd would start."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import bulk, protocol
from agent.frames import HEAD

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "s"


def dial(path: Path, *parts: bytes) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(str(path))
    for part in parts:
        sock.sendall(part)
    return sock


def close(*things: socket.socket | bulk.Streams) -> None:
    for thing in things:
        thing.close()


def mode(path: Path) -> int | None:
    return path.stat().st_mode & 0o777 if path.exists() else None


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


async def gone(sock: socket.socket) -> bool:
    """Whether the far end has closed this connection."""
    try:
        return await asyncio.to_thread(sock.recv, 1) == b""
    except ConnectionResetError:
        return True


class TestStreams:
    def test_the_header_is_the_protocols(self) -> None:
        assert bulk.header("pages-1") == f"{protocol.STREAM_HEADER} pages-1\n".encode()

    @pytest.mark.parametrize("name", ["", "two words", "new\nline", "tab\t", "ümlaut", "x" * 300, "\0"])
    def test_names_that_would_break_the_header_are_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="cannot name a stream"):
            bulk.header(name)

    async def test_not_a_byte_behind_the_header_is_swallowed(self, place: Path) -> None:
        streams = bulk.Streams(place)
        far = dial(place, b"STREAM pages-1\nSTREAM pages-1\n\n\0rest")
        near = await streams.take("pages-1", 5)
        assert near.getblocking(), "criu wants a blocking socket"
        assert near.recv(100) == b"STREAM pages-1\n\n\0rest"
        near.sendall(b"back")
        assert far.recv(100) == b"back"
        close(near, far, streams)

    async def test_a_header_may_come_in_pieces(self, place: Path) -> None:
        streams = bulk.Streams(place)
        far = dial(place)
        waiting = asyncio.create_task(streams.take("a", 5))
        for byte in b"STREAM a\nx":
            far.sendall(bytes([byte]))
            await asyncio.sleep(0.001)
        near = await waiting
        assert near.recv(10) == b"x"
        close(near, far, streams)

    async def test_streams_are_told_apart_by_name_in_any_order(self, place: Path) -> None:
        streams = bulk.Streams(place)
        late = asyncio.create_task(streams.take("c", 5))
        fars = [dial(place, bulk.header(name), name.encode()) for name in ("b", "a", "c")]
        for name, near in (("a", await streams.take("a", 5)), ("b", await streams.take("b", 5)), ("c", await late)):
            assert near.recv(10) == name.encode()
            near.close()
        again = dial(place, bulk.header("a"), b"second")
        near = await streams.take("a", 5)
        assert near.recv(10) == b"second", "a name is free again once its stream was taken"
        close(*fars, again, near, streams)

    @pytest.mark.parametrize("opening", [b"GET / HTTP/1.1\r\n", b"STREAM \n", b"STREAM a b\n", b"y" * 400])
    async def test_what_is_no_header_is_closed(self, place: Path, opening: bytes) -> None:
        streams = bulk.Streams(place)
        far = dial(place, opening)
        assert await gone(far)
        with pytest.raises(bulk.BrokenStream, match=r"did not come within 0\.05 s"):
            await streams.take("a", 0.05)
        close(far, streams)

    async def test_the_second_of_a_name_is_closed_and_the_first_stays(self, place: Path) -> None:
        streams = bulk.Streams(place)
        first = dial(place, bulk.header("a"), b"first")
        await asyncio.sleep(0.02)
        second = dial(place, bulk.header("a"), b"second")
        assert await gone(second)
        near = await streams.take("a", 5)
        assert near.recv(10) == b"first"
        close(first, second, near, streams)

    async def test_who_does_not_name_himself_is_closed(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bulk, "HEADER_SECONDS", 0.05)
        streams = bulk.Streams(place)
        far = dial(place, b"STREAM a")
        assert await gone(far)
        close(far, streams)

    async def test_another_user_is_closed(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        streams = bulk.Streams(place)
        uid = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
        far = dial(place, bulk.header("a"))
        assert await gone(far)
        close(far, streams)

    async def test_close_leaves_nothing(self, place: Path) -> None:
        before = descriptors()
        streams = bulk.Streams(place)
        fars = [dial(place, bulk.header("a")), dial(place, b"STREAM unfinished")]
        waiting = asyncio.create_task(streams.take("b", 5))
        await asyncio.sleep(0.02)
        streams.close()
        with pytest.raises(bulk.BrokenStream, match="closed"):
            await waiting
        with pytest.raises(bulk.BrokenStream, match="closed"):
            await streams.take("c", 5)
        for far in fars:
            assert await gone(far)
            far.close()
        streams.close()  # a second time is no error: undo stacks do that
        assert mode(place) is None
        assert descriptors() == before

    async def test_two_who_wait_for_one_stream_are_a_mistake(self, place: Path) -> None:
        streams = bulk.Streams(place)
        first = asyncio.create_task(streams.take("a", 5))
        await asyncio.sleep(0)
        with pytest.raises(bulk.BrokenStream, match="twice"):
            await streams.take("a", 5)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        far = dial(place, bulk.header("a"))
        (await streams.take("a", 5)).close()  # one who gave up is no hindrance
        close(far, streams)

    async def test_a_path_too_long_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(bulk.BrokenStream, match="107 bytes at most"):
            bulk.Streams(tmp_path / ("x" * 108))

    async def test_only_the_owner_may_connect(self, place: Path) -> None:
        streams = bulk.Streams(place)
        assert mode(place) == 0o600
        streams.close()


class Relay:
    """`relay` behind two pipes, as behind sshd, and the agent's end of its socket."""

    def __init__(self, place: Path, form: str = "plain") -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(place))
        listener.listen()
        code = "import sys; from agent.bulk import relay; sys.exit(relay(*sys.argv[1:]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(place), "pages-1", form],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=ROOT,
        )
        listener.settimeout(10)
        self.agent = listener.accept()[0]
        listener.close()
        self.agent.settimeout(10)
        opening = b""
        while not opening.endswith(b"\n"):
            opening += self.agent.recv(1)
        assert opening == b"STREAM pages-1\n"
        assert os.read(self.stdout, 100) == opening, "it says that it stands"

    @property
    def stdin(self) -> int:
        assert self.process.stdin
        return self.process.stdin.fileno()

    @property
    def stdout(self) -> int:
        assert self.process.stdout
        return self.process.stdout.fileno()

    def hang_up(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def stderr(self) -> bytes:
        assert self.process.stderr
        return self.process.stderr.read()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe
            pipe.close()
        self.agent.close()


@pytest.fixture
def relay(place: Path) -> Iterator[Relay]:
    it = Relay(place)
    yield it
    it.end()


class TestPacked:
    """What comes in frames."""

    @pytest.fixture
    def relay(self, place: Path) -> Iterator[Relay]:
        it = Relay(place, "packed")
        yield it
        it.end()

    def test_what_they_stand_for_goes_on_and_their_end_is_an_end(self, relay: Relay) -> None:
        os.write(relay.stdin, HEAD.pack(b"P", 3, 3) + b"abc" + HEAD.pack(b"0", 5, 0) + HEAD.pack(b".", 0, 0))
        relay.hang_up()
        assert b"".join(iter(lambda: relay.agent.recv(100), b"")) == b"abc" + bytes(5)
        relay.agent.close()
        assert relay.process.wait(10) == 0

    @pytest.mark.parametrize(
        ("stream", "why"),
        [
            (HEAD.pack(b"P", 9, 3) + b"abc", b"a piece of absurd size"),
            (HEAD.pack(b"Z", 100, 9) + b"no frames", b""),
            (b"a login shell's greeting", b"no known kind"),
        ],
        ids=["absurd", "damaged", "none"],
    )
    def test_a_damaged_one_ends_both_directions_and_is_told(self, relay: Relay, stream: bytes, why: bytes) -> None:
        os.write(relay.stdin, HEAD.pack(b"P", 3, 3) + b"abc" + stream)
        assert relay.agent.recv(3) == b"abc"
        assert relay.agent.recv(100) == b""
        assert os.read(relay.stdout, 100) == b""
        assert relay.process.wait(10) == 1
        said = relay.stderr()
        assert said.startswith(b"migrate relay pages-1: " + bulk.DAMAGED.encode())
        assert why in said

    def test_a_cut_one_is_told_from_one_that_ended(self, relay: Relay) -> None:
        os.write(relay.stdin, HEAD.pack(b"P", 3, 3) + b"abc")
        assert relay.agent.recv(3) == b"abc"
        relay.hang_up()
        assert relay.agent.recv(100) == b""
        assert relay.process.wait(10) == 1
        assert b"it ends in the middle" in relay.stderr()


class TestRelay:
    def test_64_mib_each_way_at_once(self, relay: Relay) -> None:
        there, back = os.urandom(64 * MIB), os.urandom(64 * MIB)
        seen = {"there": hashlib.sha256(), "back": hashlib.sha256()}

        def write_stdin() -> None:
            view = memoryview(there)
            while view:
                view = view[os.write(relay.stdin, view) :]
            relay.hang_up()

        def read_stdout() -> None:
            while data := os.read(relay.stdout, MIB):
                seen["back"].update(data)

        def write_agent() -> None:
            relay.agent.sendall(back)
            relay.agent.shutdown(socket.SHUT_WR)

        def read_agent() -> None:
            while data := relay.agent.recv(MIB):
                seen["there"].update(data)

        threads = [threading.Thread(target=work) for work in (write_stdin, read_stdout, write_agent, read_agent)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert relay.process.wait(10) == 0
        assert seen["there"].digest() == hashlib.sha256(there).digest()
        assert seen["back"].digest() == hashlib.sha256(back).digest()

    def test_a_byte_is_not_held_back(self, relay: Relay) -> None:
        os.write(relay.stdin, b"x")  # the first exchange may still wait for the process to start
        assert relay.agent.recv(10) == b"x"
        started = time.monotonic()
        for number in range(200):
            byte = bytes([number])
            os.write(relay.stdin, byte)
            assert relay.agent.recv(10) == byte
            relay.agent.sendall(byte)
            assert os.read(relay.stdout, 10) == byte
        assert time.monotonic() - started < 2, "200 exchanges take some 20 ms, not a timer each"

    def test_stdin_ends_first_and_the_agent_still_answers(self, relay: Relay) -> None:
        os.write(relay.stdin, b"question")
        relay.hang_up()
        assert relay.agent.recv(100) == b"question"
        assert relay.agent.recv(100) == b""
        relay.agent.sendall(b"answer")
        assert os.read(relay.stdout, 100) == b"answer"
        assert relay.process.poll() is None
        relay.agent.close()
        assert os.read(relay.stdout, 100) == b""
        assert relay.process.wait(10) == 0

    def test_the_agent_ends_first_and_still_listens(self, relay: Relay) -> None:
        relay.agent.sendall(b"status")
        relay.agent.shutdown(socket.SHUT_WR)
        assert os.read(relay.stdout, 100) == b"status"
        assert os.read(relay.stdout, 100) == b""
        os.write(relay.stdin, b"more")
        assert relay.agent.recv(100) == b"more"
        relay.hang_up()
        assert relay.agent.recv(100) == b""
        assert relay.process.wait(10) == 0

    def test_a_page_server_that_is_done_ends_it_though_stdin_stays_open(self, relay: Relay) -> None:
        os.write(relay.stdin, b"last")
        assert relay.agent.recv(100) == b"last"
        relay.agent.close()
        assert os.read(relay.stdout, 100) == b""
        assert relay.process.wait(10) == 0

    def test_an_agent_that_leaves_data_unread_is_an_error(self, relay: Relay) -> None:
        os.write(relay.stdin, b"never read")
        time.sleep(0.2)
        relay.agent.close()
        assert relay.process.wait(10) == 1
        assert b"migrate relay pages-1: " in relay.stderr()

    def test_an_agent_that_dies_under_the_flood_is_an_error(self, relay: Relay) -> None:
        os.set_blocking(relay.stdin, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(relay.stdin, bytes(MIB))
        relay.agent.close()
        assert relay.process.wait(10) == 1

    def test_nobody_who_reads_its_output_is_an_error_and_the_agent_sees_the_end(self, relay: Relay) -> None:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, relay.stdout)
        os.close(nothing)
        relay.agent.sendall(b"to nobody")
        assert relay.agent.recv(100) == b""
        assert relay.process.wait(10) == 1
        assert b"Broken pipe" in relay.stderr()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
    def test_signals_of_a_terminal_do_not_end_it(self, relay: Relay, number: int) -> None:
        os.write(relay.stdin, b"a")
        assert relay.agent.recv(10) == b"a"
        relay.process.send_signal(number)
        os.write(relay.stdin, b"b")
        assert relay.agent.recv(10) == b"b"

    def test_no_agent_is_one_clear_line(self, tmp_path: Path) -> None:
        code = "import sys; from agent.bulk import relay; sys.exit(relay(sys.argv[1], 'a'))"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "cannot reach the agent at" in done.stderr

    def test_it_starts_without_the_heavy_modules(self) -> None:
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import agent.bulk; print(*sorted(sys.modules))"
        done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
        assert not {"asyncio", "typing", "dataclasses", "agent.protocol", "re", "subprocess"} & set(done.stdout.split())
