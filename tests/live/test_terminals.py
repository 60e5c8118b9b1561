"""A process that somebody types to goes on in another terminal: that of `migrate`, or one that stays on the target.

Old terminals and new ones are those of real SSH sessions. What is typed is seen by what the programs answer.
"""

from __future__ import annotations

import re
import shlex
import time
from typing import Any

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LabHost, until
from tests.live.screen import child, running, shell

slow = pytest.mark.long_on("vm")
"""Emulated, a minute or more; one is always tried there, with its own kernel and criu."""


LINES = """
import sys
print("pid", __import__("os").getpid(), flush=True)
for line in sys.stdin:
    print("heard", line.strip().upper(), flush=True)
"""

HANGS_UP = """
import os, signal, sys, time
def hung_up(number, frame):
    with open("/run/hung-up", "w") as file:
        print("hup", file=file)
    os._exit(0)
signal.signal(signal.SIGHUP, hung_up)
print("pid", os.getpid(), flush=True)
while True:
    time.sleep(1)
"""


def test_a_shell_and_its_jobs(screen: Any, alpha: LabHost, beta: LabHost) -> None:
    """A session's leader: its variables, its jobs and who is in the foreground, new jobs, and the window's size."""
    old, pid = shell(screen, alpha)
    old.type("X=4; sleep 100000 & sleep 200000\r")
    until(lambda: len(alpha.run(f"pgrep -P {pid}", check=False).out.split()) == 2, "the jobs do not start")
    now = screen(alpha, f"migrate --attach {pid} beta")
    running(now, pid)
    now.type("\x03")  # for the job in the foreground
    now.type("echo X=${X}2 on $(hostname); jobs\r")
    now.expect("X=42 on beta")
    now.expect(r"Running\s+sleep 100000")
    now.type("fg\r")
    now.expect("sleep 100000\r\n")
    now.type("\x1a")
    now.expect(r"Stopped\s+sleep 100000")
    now.resize(33, 77)
    now.type("kill %1; stty size\r")
    now.expect("33 77")
    now.type("bash --norc --noprofile\r")  # a shell in it has its own jobs
    now.type("sleep 300000\r")
    until(lambda: beta.run("pgrep -fx 'sleep 300000'", check=False).status == 0, "no job of the inner shell")
    now.type("\x03echo inner $?\r")
    now.expect("inner 130")
    now.type("exit\rexit\r")
    now.expect("its terminal has ended")
    assert now.status == 0
    assert not beta.alive(pid)
    assert not alpha.alive(pid)


@slow
def test_top_below_a_shell(screen: Any, alpha: LabHost, beta: LabHost) -> None:
    """No session's leader; it draws on the new terminal, and hears a single key."""
    old, shells = shell(screen, alpha)
    old.type("top -d 1\r")
    old.expect("load average")
    pid = child(alpha, shells)
    now = screen(alpha, f"migrate --attach {pid} beta")
    running(now, pid)
    now.expect("top - .*load average")
    now.expect(r"sshd")
    assert beta.alive(pid)
    old.expect("Killed")  # by its shell, which has its terminal again
    old.type("echo still $((40 + 2))\r")
    old.expect("still 42")
    now.type("q")
    now.expect("its terminal has ended")
    assert now.status == 0
    assert not beta.alive(pid)


@slow
def test_a_stopped_job_goes_on(screen: Any, alpha: LabHost, beta: LabHost) -> None:
    """From the very terminal that it was stopped in, as one moves it at the end of a day."""
    old, _ = shell(screen, alpha)
    old.type(f"python3 -u -c {shlex.quote(LINES)}\r")
    pid = int(old.expect(r"pid (\d+)\r\n")[1])
    old.type("before\r")
    old.expect("heard BEFORE")
    old.type("\x1a")
    old.expect("Stopped")
    old.type(f"migrate --attach {pid} beta\r")
    running(old, pid)
    old.type("after\r")
    old.expect("heard AFTER")
    assert beta.alive(pid)
    old.type("\x04")
    old.expect("its terminal has ended")
    old.type("echo back $?\r")
    old.expect("back 0")
    old.type("stty -a\r")
    old.expect(r" icanon .* echo ")


@slow
def test_what_is_typed_meanwhile_arrives(screen: Any, alpha: LabHost) -> None:
    old, shells = shell(screen, alpha)
    old.type(f"exec python3 -u -c {shlex.quote(LINES)}\r")
    old.expect(r"pid (\d+)\r\n")
    now = screen(alpha, f"migrate --attach {shells} beta")
    now.type("early\r")
    running(now, shells)
    now.expect("heard EARLY")
    now.type("late\r")
    now.expect("heard LATE")


@slow
@pytest.mark.parametrize("end", ["window", "kill"])
def test_the_sessions_end_hangs_up(screen: Any, alpha: LabHost, beta: LabHost, end: str) -> None:
    """The window is closed, or `migrate` itself is killed."""
    beta.run("rm -f /run/hung-up")
    old, _ = shell(screen, alpha)
    old.type(f"python3 -u -c {shlex.quote(HANGS_UP)}\r")
    pid = int(old.expect(r"pid (\d+)\r\n")[1])
    now = screen(alpha, f"migrate --attach {pid} beta")
    running(now, pid)
    now.type("here\r")
    now.expect("here")
    if end == "window":
        now.close()
    else:
        alpha.run(f"pkill -KILL -f 'migrate --attach {pid} beta'")
    until(lambda: not beta.alive(pid), "it does not end")
    assert beta.run("cat /run/hung-up; rm /run/hung-up").out == "hup\n"


@slow
def test_detached_it_stays(screen: Any, alpha: LabHost, beta: LabHost, migrate: Any) -> None:
    """`migrate` has gone, and takes no terminal for it; the way back in works, again and again."""
    _, pid = shell(screen, alpha)
    run = migrate("--detach", str(pid), "beta")
    assert run.status == 0, run.explain()
    words = run.report["terminal"].split()
    assert words[:3] == ["ssh", "-t", "beta"], run.report
    assert beta.alive(pid)
    for number in (1, 2):
        now = screen(alpha, " ".join(words))
        now.type(f"echo time $(({number} + 4)) of $(hostname)\r")
        now.expect(f"time {number + 4} of beta")
        now.type("stty size\r")
        now.expect("40 120")
        now.close()
    time.sleep(1)
    assert beta.alive(pid)
    beta.run(f"kill -HUP {pid}")
    until(lambda: not beta.alive(pid), "it does not end")


@slow
def test_detached_it_never_waits_for_a_reader(screen: Any, alpha: LabHost, beta: LabHost, migrate: Any) -> None:
    old, shells = shell(screen, alpha)
    old.type("yes long lines of text & sleep 100000\r")
    old.expect("long lines")
    run = migrate("--detach", str(shells), "beta")
    assert run.status == 0, run.explain()
    talker = int(beta.run(f"pgrep -P {shells} yes").out)

    def written() -> int:
        return int(re.search(r"wchar: (\d+)", beta.read(f"/proc/{talker}/io"))[1])  # type: ignore[index]

    before = written()
    until(lambda: written() > before + (1 << 20), "it stands still")
    beta.run(f"kill -KILL {talker} {shells}")


@slow
def test_and_back(screen: Any, both_ways: None, alpha: LabHost, beta: LabHost) -> None:
    """From the terminal of the first session to one on its old host."""
    _, pid = shell(screen, alpha)
    there = screen(alpha, f"migrate --attach {pid} beta")
    running(there, pid)
    there.type("X=5; echo on $(hostname)\r")
    there.expect("on beta")
    back = screen(beta, f"migrate --attach {pid} alpha")
    back.expect(rf"running on alpha as pid {pid}: down .*\n")
    there.expect("its terminal has ended")
    back.type("echo $((X + 1)) on $(hostname)\r")
    back.expect("6 on alpha")
    assert alpha.alive(pid)
    assert not beta.alive(pid)


@slow
def test_a_restore_that_fails_leaves_it_where_it_was(screen: Any, alpha: LabHost, beta: LabHost) -> None:
    old, pid = shell(screen, alpha)
    old.type("X=7\r")
    now = screen(alpha, f"migrate --attach --criu-option restore:ghost-limit {pid} beta")
    assert now.status == 33, now.text
    old.type("echo X=${X} on $(hostname); sleep 100000\r")
    old.expect("X=7 on alpha")
    old.type("\x1a")
    old.expect("Stopped")
    assert not beta.alive(pid)


@slow
def test_a_rehearsal_leaves_it_where_it_was(screen: Any, alpha: LabHost, beta: LabHost, migrate: Any) -> None:
    old, pid = shell(screen, alpha)
    run = migrate("rehearse", "--attach", str(pid), "beta")
    assert run.status == 2, run.explain()
    run = migrate("rehearse", "--detach", str(pid), "beta")
    assert run.status == 0, run.explain()
    old.type("echo still on $(hostname)\r")
    old.expect("still on alpha")


@slow
def test_without_either_it_is_an_obstacle_that_names_both(screen: Any, alpha: LabHost, migrate: Any) -> None:
    _, pid = shell(screen, alpha)
    run = migrate("check", str(pid), "beta")
    (found,) = [one for one in run.of("obstacle") if one["stops"]]
    assert (run.status, found["id"]) == (20, "terminal"), run.explain()
    assert f"bash (pid {pid})" in found["problem"]
    assert re.search(r"--attach.*--detach", found["remedy"])
    assert migrate("check", "--detach", str(pid), "beta").status == 0


@slow
def test_without_a_terminal(nothing_behind: None, alpha: LabHost, started: Started, migrate: Any) -> None:
    """Neither `migrate` without one of its own, nor a process that has none."""
    pid = started.launch("sleep", "100000")
    done = alpha.run(f"migrate --attach {pid} beta </dev/null", check=False)
    assert done.status == 2, done.err
    run = migrate("--detach", str(pid), "beta")
    assert run.status == 20, run.explain()
    assert [one["id"] for one in run.of("obstacle") if one["stops"]] == ["no-terminal"]
    assert alpha.state(pid) == "S"
