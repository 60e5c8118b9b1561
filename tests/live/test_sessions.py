"""What shows a tree's new terminal on the target, for how long, and what becomes of it when that is lost.

Terminals are those of real SSH sessions (screen.py); so are the losses.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.live.lab_host import LabHost, until
from tests.live.screen import Screen, child, running, shell

pytestmark = pytest.mark.long_on("vm")

Open = Callable[[LabHost, str], Screen]


@pytest.fixture
def without(beta: LabHost) -> Iterator[Callable[[str], None]]:
    """Take programs away from the target for the test."""
    away: list[str] = []

    def take(name: str) -> None:
        away.append(beta.run(f"readlink -f $(command -v {name})").out.strip())
        beta.run(f"mv {away[-1]} {away[-1]}.away")

    yield take
    for path in away:
        beta.run(f"mv {path}.away {path}")


def detached(migrate: Any, pid: int, *options: str) -> tuple[str, int, str]:
    """Move a shell with --detach: the command that shows its terminal, its PID there, and the migration's name."""
    run = migrate(*options, "--detach", str(pid), "beta")
    assert run.status == 0, run.explain()
    return run.report["terminal"], run.report["target_pid"], run.report["id"]


def works(now: Screen, number: int) -> None:
    """A shell there hears what is typed, and says where it is."""
    now.type(f"echo sum $(({number} + 4)) of $(hostname)\r")
    now.expect(f"sum {number + 4} of beta")


def ends(beta: LabHost, pid: int) -> None:
    """It is told to go, and does."""
    beta.run(f"kill -HUP {pid}")
    until(lambda: not beta.alive(pid), "it does not end")


def test_in_tmux(screen: Open, alpha: LabHost, beta: LabHost, migrate: Any) -> None:
    """One leaves it and comes back, the screen is kept; the tree does not end with the session."""
    _, shells = shell(screen, alpha)
    way, pid, name = detached(migrate, shells)
    assert re.fullmatch(rf"ssh -t beta tmux -S /run/migrate/{name}\.terminal\.tmux attach", way)
    assert beta.run(f"tmux -S /run/migrate/{name}.terminal.tmux list-sessions").out.startswith(f"migrated-{pid}:")
    now = screen(alpha, way)
    works(now, 1)
    now.type("stty size\r")
    now.expect("40 120")
    now.type("\x02d")
    now.expect("detached")
    assert now.status == 0
    again = screen(alpha, way)
    again.expect("sum 5 of beta")  # as tmux remembers
    works(again, 2)
    beta.run(f"tmux -S /run/migrate/{name}.terminal.tmux kill-server")
    assert again.status in (0, 1)
    assert beta.alive(pid)
    recovered = migrate("recover", name)
    assert recovered.status == 0, recovered.explain()
    (event,) = recovered.of("recovered")
    assert re.search(r"^ssh -t beta \S+ .* terminal /run/migrate/", event["terminal"]), recovered.explain()
    assert not event["hangs_up_seconds"]
    last = screen(alpha, event["terminal"])
    works(last, 3)
    last.type("exit\r")
    last.expect("the terminal has ended")
    until(lambda: not beta.alive(pid), "it does not end")


def test_tmux_ends_with_the_tree(screen: Open, alpha: LabHost, beta: LabHost, migrate: Any) -> None:
    _, shells = shell(screen, alpha)
    way, pid, name = detached(migrate, shells)
    now = screen(alpha, way)
    works(now, 1)
    (event,) = migrate("recover", name).of("recovered")
    assert event["terminal"] == way
    now.type("exit\r")
    now.expect("exited")
    assert now.status == 0
    assert not beta.alive(pid)
    until(lambda: beta.run("pgrep tmux", check=False).status != 0, "an empty session stays")
    (event,) = migrate("recover", name).of("recovered")
    assert event["terminal"] == ""


def test_in_dtach(screen: Open, alpha: LabHost, beta: LabHost, migrate: Any, without: Any) -> None:
    """One leaves it and comes back; it keeps no screen, and a shell shows its prompt when it is typed to."""
    without("tmux")
    _, shells = shell(screen, alpha)
    way, pid, name = detached(migrate, shells)
    assert way == f"ssh -t beta dtach -a /run/migrate/{name}.terminal.dtach -r winch"
    for number in (1, 2):
        now = screen(alpha, way)
        works(now, number)
        now.type("stty size\r")
        now.expect("40 120")
        now.type("\x1c")
        now.expect("detached")
        assert now.status == 0
    assert beta.alive(pid)
    ends(beta, pid)
    until(lambda: beta.run("pgrep dtach", check=False).status != 0, "an empty session stays")


def test_with_neither(screen: Open, alpha: LabHost, beta: LabHost, migrate: Any, without: Any) -> None:
    without("tmux")
    without("dtach")
    _, shells = shell(screen, alpha)
    way, pid, _ = detached(migrate, shells)
    assert "tmux" not in way
    assert "dtach" not in way
    now = screen(alpha, way)
    works(now, 1)
    now.close()
    assert beta.alive(pid)
    ends(beta, pid)


@pytest.mark.parametrize("absent", [(), ("tmux",), ("tmux", "dtach")], ids=["tmux", "dtach", "neither"])
def test_a_program_of_the_whole_screen_is_drawn(
    screen: Open, alpha: LabHost, beta: LabHost, migrate: Any, without: Any, absent: tuple[str, ...]
) -> None:
    """For whoever comes, also where nobody has kept its screen."""
    for name in absent:
        without(name)
    old, shells = shell(screen, alpha)
    old.type("top -d 1\r")
    old.expect("load average")
    pid = child(alpha, shells)
    way, _, _ = detached(migrate, pid)
    now = screen(alpha, way)
    now.expect("load average")
    now.type("q")
    until(lambda: not beta.alive(pid), "it does not hear its key")
    assert now.status in (0, 1)


def test_undone_there_is_no_session(screen: Open, alpha: LabHost, beta: LabHost, migrate: Any) -> None:
    """It is started when the tree runs, and not before."""
    old, pid = shell(screen, alpha)
    run = migrate("--detach", "--criu-option", "restore:ghost-limit", str(pid), "beta")
    assert run.status == 33, run.explain()
    assert beta.run("pgrep 'tmux|dtach'", check=False).status != 0
    old.type("echo still on $(hostname)\r")
    old.expect("still on alpha")


# --- with a PID namespace of its own ---------------------------------------------------------------------------------


def in_namespace(now: Screen, pid: int) -> int:
    """`migrate -n` says that it has arrived: its PID on the target."""
    return int(now.expect(rf"running on beta as pid (\d+) \({pid} in a PID namespace of its own\): down .*\n")[1])


def test_attached_in_a_namespace(screen: Open, alpha: LabHost, beta: LabHost) -> None:
    """A shell with jobs: who is in the foreground, Ctrl-C, Ctrl-Z, fg, new jobs; it ends, and its namespace with it."""
    old, pid = shell(screen, alpha)
    old.type("X=4; sleep 100000 & sleep 200000\r")
    until(lambda: len(alpha.run(f"pgrep -P {pid}", check=False).out.split()) == 2, "the jobs do not start")
    now = screen(alpha, f"migrate -n --attach {pid} beta")
    there = in_namespace(now, pid)
    now.type("\x03")  # for the job in the foreground
    now.type("echo X=${X}2 pid $$ on $(hostname); jobs\r")
    now.expect(f"X=42 pid {pid} on beta")
    now.expect(r"Running\s+sleep 100000")
    now.type("fg\r")
    now.expect("sleep 100000\r\n")
    now.type("\x1a")
    now.expect(r"Stopped\s+sleep 100000")
    now.type("kill %1; stty size; tty\r")
    now.expect("40 120")
    now.expect("/dev/pts/")
    assert beta.alive(there)
    now.type("exit\rexit\r")
    now.expect("its terminal has ended")
    assert now.status == 0
    until(lambda: beta.run("pgrep -x migrate-init", check=False).status != 0, "its namespace stays")


def test_a_stopped_job_goes_on_in_a_namespace(screen: Open, alpha: LabHost, beta: LabHost) -> None:
    old, _ = shell(screen, alpha)
    old.type('python3 -uc \'print("pid", __import__("os").getpid()); [print("heard", input()) for n in range(9)]\'\r')
    pid = int(old.expect(r"pid (\d+)\r\n")[1])
    old.type("\x1a")
    old.expect("Stopped")
    old.type(f"migrate -n --attach {pid} beta\r")
    there = in_namespace(old, pid)
    old.type("after\r")
    old.expect("heard after")
    old.type("\x1a")  # there is no shell to say fg at: it is continued at once
    old.type("again\r")
    old.expect("heard again")
    assert beta.alive(there)
    old.type("\x04")
    old.expect("its terminal has ended")


def test_detached_in_a_namespace_and_on_from_there(
    screen: Open, both_ways: None, alpha: LabHost, beta: LabHost, migrate: Any
) -> None:
    """It moves on as any other, by its PID on the host, and gets a namespace and a terminal again."""
    _, shells = shell(screen, alpha)
    way, pid, _ = detached(migrate, shells, "-n")
    now = screen(alpha, way)
    works(now, 1)
    now.type("X=5\r")
    back = screen(beta, f"migrate --attach {pid} alpha")
    here = int(back.expect(rf"running on alpha as pid (\d+) \({shells} in a PID namespace")[1])
    now.expect("exited")
    back.type("echo $((X + 1)) on $(hostname)\r")
    back.expect("6 on alpha")
    assert alpha.alive(here)
    until(lambda: beta.run("pgrep -x migrate-init", check=False).status != 0, "the first namespace stays")
    back.close()
    until(lambda: alpha.run("pgrep -x migrate-init", check=False).status != 0, "the second namespace stays")


# --- lost sessions ---------------------------------------------------------------------------------------------------


@pytest.fixture
def black_hole(alpha: LabHost) -> Iterator[Callable[[], None]]:
    """Nothing that alpha sends to an sshd arrives any more, and nobody is told."""

    def drop() -> None:
        chain = "'{ type filter hook output priority 0; }'"
        table = "inet black_hole"
        alpha.run(
            f"nft add table {table}; nft add chain {table} out {chain}; nft add rule {table} out tcp dport 22 drop"
        )

    yield drop
    alpha.run("nft delete table inet black_hole", check=False)


@pytest.mark.long
def test_a_link_that_is_silent(screen: Open, alpha: LabHost, beta: LabHost, black_hole: Callable[[], None]) -> None:
    """`migrate` hears nothing, and says so; two minutes without a heartbeat, and the tree there gets SIGHUP."""
    _, pid = shell(screen, alpha)
    now = screen(alpha, f"migrate --attach {pid} beta")
    running(now, pid)
    works(now, 1)
    black_hole()
    now.expect("the connection was lost: it gets SIGHUP there", 300)
    assert now.status == 0
    until(lambda: not beta.alive(pid), "it does not end", 600)


def test_a_link_that_is_closed(screen: Open, alpha: LabHost, beta: LabHost) -> None:
    """Both ends see it at once."""
    _, pid = shell(screen, alpha)
    now = screen(alpha, f"migrate --attach {pid} beta")
    running(now, pid)
    works(now, 1)
    alpha.run("ss -K dport = :22 >/dev/null")
    now.expect("the connection was lost: it gets SIGHUP there")
    until(lambda: not beta.alive(pid), "it does not end")


def lost(screen: Open, alpha: LabHost, phase: str, words: str) -> None:
    """`migrate` is killed with SIGKILL in that phase."""
    saboteur = f"/opt/migrate/bin/python /root/programs/saboteur.py --at {phase} --act kill-self --"
    now = screen(alpha, f"{saboteur} {words} beta")
    assert now.status != 0, now.text
    until(lambda: alpha.run("pgrep -f '[s]erve --build'", check=False).status != 0, "its agent stays")


def test_recovered_the_way_back_is_said(screen: Open, alpha: LabHost, beta: LabHost, migrate: Any) -> None:
    _, pid = shell(screen, alpha)
    lost(screen, alpha, "resume", f"--detach {pid}")
    until(lambda: not alpha.alive(pid), "it is still on the source")
    done = alpha.run("migrate recover")
    found = re.search(r"^its terminal: (.*)$", done.out, re.M)
    assert found, done.out
    now = screen(alpha, found[1])
    works(now, 1)
    now.type("exit\r")
    until(lambda: not beta.alive(pid), "it does not end")


def test_recovered_a_lost_session_may_be_shown(screen: Open, alpha: LabHost, beta: LabHost) -> None:
    """It gets the terminal that was ordered; with nobody to show it that will hang up, unless somebody comes."""
    _, pid = shell(screen, alpha)
    lost(screen, alpha, "resume", f"--attach {pid}")
    until(lambda: not alpha.alive(pid), "it is still on the source")
    done = alpha.run("migrate recover")
    found = re.search(r"^its terminal: (.*)$", done.out, re.M)
    assert found, done.out
    assert "it gets SIGHUP within 120 s" in done.out
    now = screen(alpha, found[1])
    works(now, 1)
    now.close()
    until(lambda: not beta.alive(pid), "it does not end with its session")


@pytest.mark.long
def test_recovered_a_lost_session_hangs_up(screen: Open, alpha: LabHost, beta: LabHost) -> None:
    _, pid = shell(screen, alpha)
    lost(screen, alpha, "resume", f"--attach {pid}")
    until(lambda: not alpha.alive(pid), "it is still on the source")
    alpha.run("migrate recover")
    assert beta.alive(pid)
    until(lambda: not beta.alive(pid), "it is never hung up", 1200)


def test_killed_while_it_is_attached_leaves_the_local_terminal_to_reset(
    screen: Open, alpha: LabHost, beta: LabHost
) -> None:
    """No program can put back a terminal when it is killed; `reset` does."""
    _, pid = shell(screen, alpha)
    other, _ = shell(screen, alpha)
    other.type(f"migrate --attach {pid} beta\r")
    running(other, pid)
    works(other, 1)
    alpha.run(f"pkill -KILL -f 'migrate --attach {pid} beta'")
    until(lambda: not beta.alive(pid), "it does not end")
    other.expect("Killed")
    other.type("\x15reset -Q\r")
    other.type("stty -a\r")
    other.expect(r" icanon .* echo ")


# --- programs --------------------------------------------------------------------------------------------------------


def test_vim(screen: Open, alpha: LabHost, beta: LabHost) -> None:
    """A buffer that was never written, the place of the cursor, undo; then it is written on the other host."""
    old, _ = shell(screen, alpha)
    old.type("TERM=xterm vim.tiny -n -u NONE\r")
    old.expect("~")
    old.type("ione two\x1b")
    pid = int(alpha.run("until pgrep -x vim.tiny; do sleep 0.1; done").out)
    old.expect("two")
    now = screen(alpha, f"migrate --attach {pid} beta")
    running(now, pid)
    now.expect("one two")  # it has drawn itself
    now.type("a three\x1b:w /run/edited\r")
    now.expect("written")
    assert beta.read("/run/edited") == "one two three\n"
    now.type("u:w! /run/edited\r")
    until(lambda: beta.read("/run/edited") == "one two\n", "it can't undo")
    now.type(":q!\r")
    now.expect("its terminal has ended")
    assert now.status == 0
    beta.run("rm /run/edited")


def test_less(screen: Open, alpha: LabHost, beta: LabHost) -> None:
    """It reads its text from a pipe, and its keys from /dev/tty."""
    old, _ = shell(screen, alpha)
    old.type("seq 100000 | TERM=xterm less\r")
    old.expect("39\r\n")
    pid = int(alpha.run("until pgrep -x less; do sleep 0.1; done").out)
    old.type("500g")
    old.expect("538")
    old.type("G")
    old.expect("100000")
    now = screen(alpha, f"migrate --attach {pid} beta")
    running(now, pid)
    now.expect("100000")
    now.type("700g")
    now.expect("701")
    now.type("q")
    now.expect("its terminal has ended")
    assert now.status == 0
    assert not beta.alive(pid)


SEVERAL = """
import os, sys
opened = [open("/dev/tty", "r+b", buffering=0), open(os.ttyname(0), "r+b", buffering=0), os.fdopen(os.dup(1), "wb", 0)]
print("pid", os.getpid(), flush=True)
for number, line in enumerate(sys.stdin):
    for one in opened:
        one.write(b"%d heard %s" % (one.fileno(), line.encode()))
    anew = open("/dev/tty", "r+b", buffering=0)
    anew.write(b"anew, %d, %s\\n" % (os.tcgetpgrp(anew.fileno()) == os.getpgrp(), os.ttyname(0).encode()))
"""


def test_several_descriptors_of_it(screen: Open, alpha: LabHost) -> None:
    """By its own name, by /dev/tty, by both at once; and opened once more, there."""
    old, _ = shell(screen, alpha)
    old.type(f"python3 -uc {shlex.quote(SEVERAL)}\r")
    pid = int(old.expect(r"pid (\d+)\r\n")[1])
    old.type("before\r")
    old.expect("anew, 1")
    now = screen(alpha, f"migrate --attach {pid} beta")
    running(now, pid)
    now.type("after\r")
    heard = {now.expect(r"(\d) heard after")[1] for _ in range(3)}
    assert heard == {"3", "4", "5"}
    now.expect(r"anew, 1, /dev/pts/\d+")


@pytest.mark.parametrize("option", ["--attach", "--detach"])
def test_by_way_of_a_user_who_becomes_root(
    screen: Open, alpha: LabHost, beta: LabHost, migrate: Any, option: str
) -> None:
    _, pid = shell(screen, alpha)
    if option == "--attach":
        now = screen(alpha, f"migrate --sudo --attach {pid} admin@beta")
        now.expect(rf"running on admin@beta as pid {pid}: down .*\n")
    else:
        run = migrate("--sudo", "--detach", str(pid), "admin@beta")
        assert run.status == 0, run.explain()
        assert run.report["terminal"].startswith("ssh -t admin@beta sudo tmux -S "), run.report
        now = screen(alpha, run.report["terminal"])
    works(now, 1)
    now.type("\x04")
    now.expect("ended|exited")
    assert now.status == 0
    assert not beta.alive(pid)
