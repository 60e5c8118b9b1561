"""A plan on two real hosts: what it lists leaves, in its order, and all comes back; one with mistakes moves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LabHost, until
from tests.live.screen import Screen
from tests.migrator import exposition
from tests.migrator.test_runbook import example

PLAN = "/root/plan.toml"
PIDFILE = "/run/witness.pid"
FILES = {"report": "json", "metrics": "prom", "plot": "txt", "log-file": "log"}
SLEEPER = "import time; kept = bytes(8 << 20)\nwhile True: time.sleep(0.1)"


@pytest.fixture
def tidy(alpha: LabHost) -> Iterator[None]:
    """No plan and nothing kept of one afterwards."""
    yield
    alpha.run(f"rm -rf {PLAN} {PIDFILE} /root/drained.* /run/lingers /var/lib/migrate/drains")


@pytest.mark.long_on("vm")
def test_a_plan_leaves_and_comes_back(
    nothing_behind: None, tidy: None, alpha: LabHost, beta: LabHost, started: Started
) -> None:
    first, second = (started.launch("python3", "-c", SLEEPER) for _ in "12")
    alpha.put(PIDFILE, f"{first}\n".encode())
    alpha.put(
        PLAN,
        f'target = "beta"\n[[move]]\nname = "later"\npid = {second}\nafter = ["sooner"]\n'
        f'[[move]]\nname = "sooner"\npidfile = "{PIDFILE}"\n'.encode(),
    )
    table = alpha.run(f"migrate drain {PLAN} --dry-run").out
    assert [line.split()[0] for line in table.splitlines()] == ["move", "later", "sooner"]
    assert alpha.alive(first)
    assert alpha.alive(second)
    files = " ".join(f"--{name} /root/drained.{end}" for name, end in FILES.items())
    out = alpha.run(f"migrate drain {PLAN} --parallel 2 {files}").out
    assert out.index("sooner") < out.index("later")
    assert "2 of 2 moved" in out
    processes = json.loads(alpha.read("/root/drained.json"))["processes"]
    assert {(each["move"], each["stage"], each["target_pid"]) for each in processes} == {
        ("sooner", "moved", first), ("later", "moved", second),
    }  # fmt: skip
    figures = exposition.read(alpha.read("/root/drained.prom"))
    assert figures["migrate_drain_processes", "moved"] == 2
    assert figures["migrate_drain_exit_code", ""] == 0
    assert figures["migrate_drain_bytes", ""] > 1 << 20
    picture = alpha.read("/root/drained.txt").splitlines()
    assert picture[0].startswith("drain plan.toml: 2 migrations in ")
    assert [line.split()[0] for line in picture if "░" in line] == ["sooner", "later", "█"]
    log = alpha.read("/root/drained.log").splitlines()
    assert len([line for line in log if "phase=freeze" in line]) == 2
    assert [line.split("move=")[1].split()[0] for line in log if "event=ended" in line and "move=" in line] == [
        "sooner", "later",
    ]  # fmt: skip
    assert "event=ended" in log[-1]
    assert "exit=0" in log[-1]
    for pid in (first, second):
        assert beta.alive(pid)
        assert not alpha.alive(pid)
    assert "already on beta" in alpha.run(f"migrate drain {PLAN}").out
    assert "2 of 2 moved" in alpha.run(f"migrate return {PLAN}").out
    for pid in (first, second):
        assert alpha.alive(pid)
        assert not beta.alive(pid)


@pytest.mark.long_on("vm")
def test_a_plan_with_mistakes_moves_nothing(nothing_behind: None, tidy: None, alpha: LabHost, witness: int) -> None:
    alpha.put(PLAN, f'[[move]]\npid = {witness}\n[[move]]\ntarget = "beta"\nuser = "root"\naftre = []\n'.encode())
    done = alpha.run(f"migrate drain {PLAN}", check=False)
    assert done.status == 2
    assert f"{PLAN}:1: it has no target" in done.err
    assert f"{PLAN}:6: 'aftre' is not known: is it after?" in done.err
    assert alpha.alive(witness)


@pytest.mark.backends("netns")  # elsewhere root may dump the process of another user
def test_the_readme_s_plan_with_one_that_cannot_go(
    nothing_behind: None, tidy: None, alpha: LabHost, beta: LabHost, started: Started
) -> None:
    """By pidfile, name and user; of two ways to a target one is chosen; the workers together, after the database."""
    database = started.launch("python3", "-c", SLEEPER)
    named = f"open('/proc/self/comm', 'w').write('worker'); {SLEEPER}"
    workers = {started.launch("python3", "-c", named) for _ in "12"}
    other = started.launch("python3", "-c", f"import os; os.setuid(33); {SLEEPER}")
    alpha.put(PIDFILE, f"{database}\n".encode())
    plan = example().replace("/run/db.pid", PIDFILE).replace('["db2", "db3"]', '["root@beta", "beta"]')
    alpha.put(PLAN, plan.replace('"db2"', '"beta"').encode())
    done = alpha.run(f"migrate drain {PLAN} --keep-going --report /root/drained.json", check=False)
    assert done.status == 20, done
    assert "3 of 4 moved" in done.out
    assert "CAP_SYS_RESOURCE" in done.err
    processes = json.loads(alpha.read("/root/drained.json"))["processes"]
    assert {each["pid"]: (each["move"], each["stage"]) for each in processes} == {
        database: ("database", "moved"), other: ("user www-data", "failed"),
        **dict.fromkeys(workers, ("workers", "moved")),
    }  # fmt: skip
    assert len({each["target"] for each in processes if each["pid"] in workers}) == 1
    assert alpha.alive(other)
    for pid in (database, *workers):
        assert beta.alive(pid)
        assert not alpha.alive(pid)
    out = alpha.run(f"migrate return {PLAN}").out
    assert "3 of 3 moved" in out
    assert out.index("workers") < out.index("database")
    assert all(map(alpha.alive, (database, *workers)))


@pytest.mark.backends("netns")
def test_ctrl_c_in_the_second_of_three_and_on_with_the_same_command(
    nothing_behind: None,
    tidy: None,
    alpha: LabHost,
    beta: LabHost,
    started: Started,
    screen: Callable[[LabHost, str], Screen],
) -> None:
    pids = [started.launch("python3", "-c", SLEEPER) for _ in "123"]
    entries = (f'[[move]]\nname = "{name}"\npid = {pid}\n' for name, pid in zip("abc", pids, strict=True))
    alpha.put(PLAN, f'target = "beta"\n{"".join(entries)}'.encode())
    words = f"--at restore --act linger --pid {pids[1]} -- drain {PLAN} --log-file /root/drained.log"
    window = screen(alpha, f"/opt/migrate/bin/python /root/programs/saboteur.py {words}")
    until(lambda: bool(alpha.run("cat /run/lingers", check=False).out), "the second never comes to its restore")
    assert alpha.state(pids[1]) in ("t", "T"), "it is not frozen"
    window.type("\x03")
    assert window.status == 130, window.text
    assert "undoing what is under way" in window.text
    assert [beta.alive(pid) for pid in pids] == [True, False, False]
    assert [alpha.alive(pid) for pid in pids] == [False, True, True]
    ended = [line for line in alpha.read("/root/drained.log").splitlines() if "event=ended" in line]
    assert ["exit=0" in ended[0], *("exit=130" in line for line in ended[1:])] == [True, True, True]
    assert f"pid={pids[1]}" in ended[1]
    out = alpha.run(f"migrate drain {PLAN}").out
    assert f"a {pids[0]}: already on beta" in out
    assert "3 of 3 moved, 1 by a former run" in out
    assert all(map(beta.alive, pids))
