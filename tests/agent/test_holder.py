"""The holder of a terminal with real ptys, a program in the place of criu and of the tree."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import program
from agent.bulk import header

# leaves behind, as criu does, a program in a process group of its own, with the terminal that it found at 3
RESTORES = """
import os, sys
if os.fork(): os._exit(0)
os.setpgid(0, 0)
for number in (0, 1, 2): os.dup2(3, number)
os.closerange(3, 20)
os.execvp(sys.argv[1], sys.argv[1:])
"""
TALKS = """
import os, signal, sys, time
signal.signal(signal.SIGWINCH, lambda *_: print("size", *os.get_terminal_size(0), flush=True))
def hung_up(*_):
    open(sys.argv[1], "w").close()
    os._exit(0)
signal.signal(signal.SIGHUP, hung_up)
open(sys.argv[2], "w").write(str(os.getpid()))
while os.tcgetpgrp(0) != os.getpgrp(): time.sleep(0.01)
for line in sys.stdin:
    print("heard", line.strip(), flush=True)
"""


class Held:
    """A holder, the program in it, and one who shows the terminal."""

    def __init__(self, directory: Path, mode: str, *talks: str, taken: str = "") -> None:
        self.path = directory / "t"
        self.said = b""
        wrapper = [sys.executable, "-c", RESTORES, *talks]
        self.front = subprocess.Popen(program.command("holder", str(self.path), mode, taken, *wrapper))
        self.shows: socket.socket | None = None

    def tell(self, words: str) -> bytes:
        """Connect for these, and read to the end."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(30)
            connection.connect(str(self.path))
            connection.sendall(header(words))
            return connection.recv(1000)

    def show(self) -> None:
        """Become the one who shows it."""
        self.shows = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.shows.settimeout(30)
        self.shows.connect(str(self.path))
        self.shows.sendall(header("terminal"))

    def type(self, text: bytes) -> None:
        """Keys."""
        assert self.shows is not None
        self.shows.sendall(struct.pack("!cHH", b"T", len(text), 0) + text)

    def window(self, rows: int, columns: int) -> None:
        """Another size."""
        assert self.shows is not None
        self.shows.sendall(struct.pack("!cHH", b"W", rows, columns))

    def expect(self, pattern: bytes) -> None:
        """Until this has come."""
        assert self.shows is not None
        while not re.search(pattern, self.said):
            data = self.shows.recv(1000)
            assert data, f"{pattern!r} is not in {self.said!r}"
            self.said += data


def until(path: Path) -> None:
    """Until this is there."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} does not come"
        time.sleep(0.01)


@pytest.fixture
def talking(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Held, int]]:
    """A program that runs in a terminal, and its PID."""
    talks = (sys.executable, "-c", TALKS, str(tmp_path / "hung-up"), str(tmp_path / "pid"))
    held = Held(tmp_path, getattr(request, "param", "attach"), *talks)
    assert held.front.wait(60) == 0
    until(tmp_path / "pid")
    while not (text := (tmp_path / "pid").read_text()):
        time.sleep(0.01)
    pid = int(text)
    assert held.tell(f"foreground-{pid}") == b""
    assert held.tell(f"runs-{pid}") == b""
    yield held, pid
    if held.shows is not None:
        held.shows.close()
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        return


def test_keys_and_answers(talking: tuple[Held, int]) -> None:
    held, _ = talking
    held.show()
    held.window(30, 90)
    held.type(b"one\ntwo\n")
    held.expect(b"heard one\r\nheard two")


def test_the_size_of_the_window(talking: tuple[Held, int]) -> None:
    held, _ = talking
    held.show()
    held.window(30, 90)
    held.expect(b"size 90 30")
    held.window(31, 91)
    held.expect(b"size 91 31")


def test_who_comes_anew_is_drawn_for(talking: tuple[Held, int]) -> None:
    held, _ = talking
    held.show()
    held.window(30, 90)
    held.expect(b"size 90 30")
    held.said = b""
    first = held.shows
    held.show()  # takes the place of the first
    held.window(30, 90)
    held.expect(b"size 90 30")
    assert first is not None
    first.close()


def test_the_clients_end_hangs_up(talking: tuple[Held, int], tmp_path: Path) -> None:
    held, _ = talking
    held.show()
    held.type(b"one\n")
    held.expect(b"heard one")
    assert held.shows is not None
    held.shows.close()
    until(tmp_path / "hung-up")


@pytest.mark.parametrize("talking", ["detach"], indirect=True)
def test_a_holder_that_stays(talking: tuple[Held, int], tmp_path: Path) -> None:
    held, pid = talking
    held.show()
    held.type(b"one\n")
    held.expect(b"heard one")
    assert held.shows is not None
    held.shows.close()
    held.show()
    held.type(b"two\n")
    held.expect(b"heard two")
    os.kill(pid, 0)
    assert not (tmp_path / "hung-up").exists()


def test_the_roots_end_is_the_end(talking: tuple[Held, int]) -> None:
    held, pid = talking
    held.show()
    held.type(b"one\n")
    held.expect(b"heard one")
    os.kill(pid, 9)
    assert held.shows is not None
    while held.shows.recv(1000):
        pass
    assert not held.path.exists()


def test_nonsense_ends_the_client(talking: tuple[Held, int]) -> None:
    held, _ = talking
    held.show()
    assert held.shows is not None
    held.shows.sendall(b"nonsense")
    assert held.shows.recv(1000) == b""


@pytest.mark.parametrize("status", [0, 1, 125])
def test_it_ends_as_criu_did(tmp_path: Path, status: int) -> None:
    path = tmp_path / "t"
    command = program.command("holder", str(path), "attach", "", "sh", "-c", f"exit {status}")
    assert subprocess.run(command, check=False, timeout=60).returncode == status


def test_a_criu_that_was_killed(tmp_path: Path) -> None:
    command = program.command("holder", str(tmp_path / "t"), "attach", "", "sh", "-c", "kill -KILL $$")
    assert subprocess.run(command, check=False, timeout=60).returncode == -9


def test_the_way_to_criu_is_open_and_its_terminal_at_each_number(tmp_path: Path) -> None:
    says = tmp_path / "says"
    script = f'read -r word; for n in 3 4 9; do tty <&$n; done >{says}; echo "$word" >>{says}'
    command = program.command("holder", str(tmp_path / "t"), "attach", "", "bash", "-c", script)
    subprocess.run(command, check=True, timeout=60, input=b"go\n")
    *names, word = says.read_text().split()
    assert word == "go"
    assert len(names) == 3
    assert len(set(names)) == 1


def test_numbers_that_the_tree_brings_are_left_free(tmp_path: Path) -> None:
    """The next few numbers that a pty would get here."""
    master, slave = os.openpty()
    lowest = int(os.ttyname(slave).rpartition("/")[2])
    os.close(master)
    os.close(slave)
    says = tmp_path / "says"
    taken = ",".join(str(number) for number in range(lowest + 8))
    command = program.command("holder", str(tmp_path / "t"), "attach", taken, "sh", "-c", f"tty <&3 >{says}")
    subprocess.run(command, check=True, timeout=60)
    assert int(says.read_text().rpartition("/")[2]) >= lowest + 8
