"""The maker of a PID namespace and the tiny init in it: real ones, with a shell in criu's place."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import criu, init, inside, namespace, process
from agent.namespace import NamespaceError
from tests.children import until

_SUBREAPER = 36
ROOT = 102
"""Its number there: the shell in criu's place has the one before it."""


class Made:
    """A namespace in which a shell script was run where criu would be; it leaves the tree behind."""

    def __init__(self, directory: Path, script: str, last: int = ROOT - 2) -> None:
        self.directory = directory
        command = [*namespace.maker(directory, ROOT, last), "sh", "-c", script]
        self.maker = subprocess.Popen(command, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        until((directory / namespace.WORD).exists)
        self.init = namespace.init_of(directory)
        if self.init is None:
            self.maker.wait()
            if os.geteuid() == 0:
                raise AssertionError((directory / namespace.WORD).read_text())
            pytest.skip("needs root to make a PID namespace")

    @property
    def pid(self) -> int:
        """Of the init."""
        assert self.init is not None
        return self.init[0]

    @property
    def lives(self) -> bool:
        """The init."""
        assert self.init is not None
        return process.alive(*self.init)

    def end(self) -> None:
        """It, and what lives in it."""
        self.maker.kill()
        self.maker.communicate()
        if self.init is not None and self.lives:
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # seen by the test
            os.waitpid(self.pid, 0)

    def status(self) -> int:
        """How the init has ended. It is our child once the maker is gone."""
        self.maker.wait()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def root(self) -> int:
        """The root's PID out here."""
        until(lambda: namespace.outside(self.directory, [ROOT]))
        return namespace.outside(self.directory, [ROOT])[0]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Made]]:
    """Makes a namespace with a script in it. Whoever loses its parent becomes our child: so we learn how inits end."""
    libc = ctypes.CDLL(None)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    made: list[Made] = []

    def one(script: str) -> Made:
        made.append(Made(tmp_path, script))
        return made[-1]

    yield one
    for each in made:
        each.end()
    libc.prctl(_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", -9), ("kill -TERM $$", -15)]
)
def test_the_maker_ends_as_criu_does_and_an_empty_namespace_with_it(
    tmp_path: Path, make: Callable[[str], Made], script: str, status: int
) -> None:
    made = make(f"read -r go; {script}")
    time.sleep(0.1)
    assert made.lives, "an init that has not heard that criu is gone waits for its tree"
    assert made.maker.stdin is not None
    made.maker.stdin.write(b"go\n")
    made.maker.stdin.close()
    assert made.maker.wait() == status
    assert made.status() == 0


def test_criu_finds_the_numbers_free_its_own_proc_and_a_session(tmp_path: Path, make: Callable[[str], Made]) -> None:
    named = f"until [ $(cat /proc/1/comm) = {init.MARK} ]; do :; done"
    made = make(f"{named}; echo $$ $(cut -d' ' -f6 /proc/$$/stat) /proc/[1-9]* >seen")
    assert made.maker.wait() == 0
    assert (tmp_path / "seen").read_text().split() == [*2 * [str(ROOT - 1)], "/proc/1", f"/proc/{ROOT - 1}"]
    assert made.status() == 0


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -KILL $$", 128 + 9), ("exit 0", 0)])
def test_the_init_ends_with_the_tree_as_its_root_did(
    tmp_path: Path, make: Callable[[str], Made], script: str, status: int
) -> None:
    os.mkfifo(tmp_path / "go")
    made = make(f"sh -c 'read -r x <go; {script}' & exit 0")
    assert made.maker.wait() == 0
    root = made.root()
    assert process.read_stat(root).ppid == made.pid
    assert inside.home_of(root) == made.pid
    facts = inside.numbers(process.task_facts(root))
    assert (facts.pid, facts.tids, facts.sid) == (ROOT, (ROOT,), ROOT - 1)
    assert inside.Home.of(root).number(root) == ROOT
    (tmp_path / "go").write_text("\n")
    assert made.status() == status


def test_the_init_stays_while_children_of_its_root_do(tmp_path: Path, make: Callable[[str], Made]) -> None:
    os.mkfifo(tmp_path / "go")
    made = make("sh -c '(read -r x <go) & exit 4' & exit 0")
    assert made.maker.wait() == 0
    until(lambda: not namespace.outside(tmp_path, [ROOT]))
    time.sleep(0.1)
    assert made.lives
    (tmp_path / "go").write_text("\n")
    assert made.status() == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1,
                                    signal.SIGUSR2, signal.SIGWINCH, signal.SIGRTMIN])  # fmt: skip
def test_signals_to_the_init_reach_the_root(tmp_path: Path, make: Callable[[str], Made], number: int) -> None:
    # no shell: what one starts in the background ignores INT and QUIT, and none traps a real-time signal
    program = f"import os, signal; open('ready', 'w'); signal.sigwait({{{int(number)}}}); os._exit(5)"
    block = f"import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, {{{int(number)}}})"
    (tmp_path / "root.py").write_text(f"{block}\n{program}\n")
    made = make("python3 -IS root.py & exit 0")
    until((tmp_path / "ready").exists)
    os.kill(made.pid, number)
    assert made.status() == 5


def test_a_signal_reaches_what_is_left_when_the_root_is_gone(tmp_path: Path, make: Callable[[str], Made]) -> None:
    (tmp_path / "loop").write_text("trap 'exit 0' TERM; : >ready; while :; do sleep 0.01; done")
    made = make("sh -c '(sh loop) & exit 6' & exit 0")
    until(lambda: (tmp_path / "ready").exists() and not namespace.outside(tmp_path, [ROOT]))
    os.kill(made.pid, signal.SIGTERM)
    assert made.status() == 6


def test_a_killed_maker_leaves_what_runs(tmp_path: Path, make: Callable[[str], Made]) -> None:
    """It is gone before the tree is left to the init: that must not take the namespace for an empty one."""
    os.mkfifo(tmp_path / "go")
    made = make("read -r x <go; exit 0")
    (shell,) = namespace.outside(tmp_path, [ROOT - 1])
    made.maker.kill()
    made.maker.wait()
    time.sleep(0.1)
    assert made.lives
    (tmp_path / "go").write_text("\n")
    os.waitpid(shell, 0)  # ours now, so nobody tells the init
    assert made.status() == 0


def test_a_killed_init_takes_everything_along(tmp_path: Path, make: Callable[[str], Made]) -> None:
    made = make("sleep 1000 & exit 0")
    assert made.maker.wait() == 0
    root = made.root()
    os.kill(made.pid, signal.SIGKILL)
    assert made.status() == -9
    until(lambda: not os.path.exists(f"/proc/{root}"))


def test_numbers_are_those_given_where_no_namespace_was_made(tmp_path: Path) -> None:
    assert namespace.init_of(tmp_path) is None
    assert namespace.outside(tmp_path, [4711, 1]) == [4711, 1]
    (tmp_path / "pid").write_text("4711")
    assert namespace.restored(tmp_path, tmp_path / "pid") == 4711
    assert namespace.restored(tmp_path, tmp_path / "none") == 0


async def test_why_there_is_none_is_said(tmp_path: Path) -> None:
    running = await criu.spawn_waiting("criu", ["restore"], tmp_path / "log", wrapper=["false"])
    with pytest.raises(NamespaceError, match="has ended"):
        await namespace.made(tmp_path, running)
    (tmp_path / namespace.WORD).write_text("unshare: Operation not permitted\n")
    with pytest.raises(NamespaceError, match="unshare: Operation not permitted"):
        await namespace.made(tmp_path, running)


def test_a_host_without_the_right_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *_: object) -> None:
        raise PermissionError(1, f"{name}: not for you")

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(namespace, "_call", refuse)
    assert namespace.main(tmp_path, ROOT, 1, ["true"]) == 1
    assert (tmp_path / namespace.WORD).read_text() == "unshare: not for you\n"
    assert not (tmp_path / f"{namespace.WORD}.new").exists()


def test_the_init_is_nothing_but_the_first_process(tmp_path: Path) -> None:
    done = subprocess.run(
        ["python3", "-IS", init.__file__, init.MARK, "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "first process" in done.stderr
