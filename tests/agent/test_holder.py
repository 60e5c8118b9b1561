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


# a holder that is not as patient
HURRIED = """
import sys
from agent import holder
holder.TERMINAL_GRACE = 0.2
sys.exit(holder.main(*sys.argv[1:]))
"""
# stands for tmux: says what it was called with, and has the socket until that is removed
TMUX = f"""#!{sys.executable}
import os, socket, sys, time
with open(os.environ["SAYS"], "w") as file:
    file.write("\\n".join(sys.argv[1:]))
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[2])
listener.listen()
if os.fork() == 0:
    while os.path.exists(sys.argv[2]): time.sleep(0.01)
    os._exit(0)
sys.exit(int(os.environ["STATUS"]))
"""


class Held:
    """A holder, the program in it, and one who shows the terminal."""

    def __init__(self, directory: Path, mode: str, *talks: str, hurried: bool = False, **says: str) -> None:
        self.path = directory / "t"
        self.said = b""
        arguments = [str(self.path), mode, "", sys.executable, "-c", RESTORES, *talks]
        command = [sys.executable, "-c", HURRIED, *arguments] if hurried else program.command("holder", *arguments)
        # of the programs that may show a terminal it finds those that the test has put there
        path = directory / "bin"
        path.mkdir(exist_ok=True)
        environment = {"PATH": str(path), "PYTHONPATH": str(Path(program.__file__).parents[1]), **says}
        self.front = subprocess.Popen(command, env=environment)
        self.shows: socket.socket | None = None

    def tell(self, words: str) -> bytes:
        """Connect for these, and read to the end."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(30)
            connection.connect(str(self.path))
            connection.sendall(header(words))
            return connection.recv(1000)

    def agent(self) -> socket.socket:
        """The agent's connection."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(self.path))
        connection.sendall(header("agent"))
        return connection

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


def until(path: Path, there: bool = True) -> None:
    """Until this is there, or is not any more."""
    deadline = time.monotonic() + 60
    while path.exists() != there:
        assert time.monotonic() < deadline, f"{path.name} does not {'come' if there else 'go'}"
        time.sleep(0.01)


@pytest.fixture
def talking(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Held, int]]:
    """A program that runs in a terminal, and its PID."""
    talks = (sys.executable, "-c", TALKS, str(tmp_path / "hung-up"), str(tmp_path / "pid"))
    mode, *others = getattr(request, "param", "attach").split()
    if others[:1] == ["tmux"]:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/tmux").write_text(TMUX)
        (tmp_path / "bin/tmux").chmod(0o755)
    says = {"SAYS": str(tmp_path / "says"), "STATUS": others[1] if others[1:] else "0"}
    held = Held(tmp_path, mode, *talks, hurried=others == ["hurried"], **says)
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
    until(tmp_path / "t", there=False)  # nobody has the terminal any more, and so the holder ends


def gone(pid: int) -> bool:
    """Whether it has ended; one that nobody waits for counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_contact_lost_ends_a_session_whose_connection_stands(talking: tuple[Held, int], tmp_path: Path) -> None:
    held, _ = talking
    with held.agent() as agent:
        held.show()
        held.type(b"one\n")
        held.expect(b"heard one")
        agent.sendall(b"!")
    until(tmp_path / "hung-up")


@pytest.mark.parametrize("talking", ["attach hurried"], indirect=True)
def test_an_agent_that_is_killed_ends_no_session(talking: tuple[Held, int], tmp_path: Path) -> None:
    held, pid = talking
    with held.agent():
        held.show()
        held.type(b"one\n")
        held.expect(b"heard one")
    time.sleep(1)
    held.type(b"two\n")
    held.expect(b"heard two")
    assert not (tmp_path / "hung-up").exists()
    assert not gone(pid)


@pytest.mark.parametrize("talking", ["attach hurried"], indirect=True)
def test_nobody_comes_when_the_agent_has_gone(talking: tuple[Held, int], tmp_path: Path) -> None:
    held, _ = talking
    with held.agent():
        time.sleep(1)
        assert not (tmp_path / "hung-up").exists()
    until(tmp_path / "hung-up")


def test_somebody_comes_when_the_agent_has_gone(talking: tuple[Held, int], tmp_path: Path) -> None:
    held, _ = talking
    held.agent().close()
    held.show()
    held.type(b"one\n")
    held.expect(b"heard one")
    assert not (tmp_path / "hung-up").exists()


@pytest.mark.parametrize("talking", ["attach tmux", "detach", "detach tmux 1"], indirect=True)
def test_no_session_shows_it(talking: tuple[Held, int]) -> None:
    """One that does not stay, one without a program for that, and one that did not start."""
    held, _ = talking
    assert held.tell("shown") == b""


@pytest.mark.parametrize("talking", ["detach tmux"], indirect=True)
def test_a_session_shows_it(talking: tuple[Held, int], tmp_path: Path) -> None:
    """By its command, for as long as it is there."""
    held, pid = talking
    socket_path = Path(f"{held.path}.tmux")
    assert held.tell("shown").decode() == f"tmux -S {socket_path} attach"
    called = (tmp_path / "says").read_text().split("\n")
    assert called[: called.index("-s") + 2][-2:] == ["-s", f"migrated-{pid}"]
    assert called[-2:] == ["terminal", str(held.path)]
    socket_path.unlink()
    assert held.tell("shown") == b""
    socket_path.touch()  # as tmux leaves it
    os.kill(pid, 9)
    deadline = time.monotonic() + 60
    while socket_path.exists():
        assert time.monotonic() < deadline, "it leaves the socket behind"
        time.sleep(0.01)
