"""Programs of the everyday kind move: a large database, a pipeline, a shell's job. More of them: `what_moves.py`."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LabHost, until, whole_lines


def moved(run: Any, alpha: LabHost, beta: LabHost, pid: int) -> None:
    """It runs there and not here."""
    assert run.status == 0, run.explain()
    assert beta.alive(pid), run.explain()
    assert not alpha.alive(pid), run.explain()


@pytest.mark.core
def test_redis(nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any) -> None:
    """200,000 keys, a listening socket: all of it works on the target."""
    pid = started.launch("redis-server", "--port", "7777", "--save", "", "--appendonly", "no", "--daemonize", "no")
    until(lambda: "PONG" in alpha.run("redis-cli -p 7777 ping", check=False).out, "redis does not start")
    # filled and checked inside the server, since an emulated client is slow
    keys = 200_000
    fill = "for i=0,tonumber(ARGV[1])-1 do redis.call('set','key:'..i,'value-'..i) end return redis.call('dbsize')"
    answer = alpha.run(f"redis-cli -p 7777 eval {shlex.quote(fill)} 0 {keys}", seconds=600).out
    assert answer.strip() == str(keys)
    run = migrate(str(pid), "beta")
    moved(run, alpha, beta, pid)
    assert beta.run("redis-cli -p 7777 dbsize").out.strip() == str(keys)
    check = (
        "local bad=0 for i=0,tonumber(ARGV[1])-1 do if redis.call('get','key:'..i)~='value-'..i then bad=bad+1 end end "
        "return bad"
    )
    assert beta.run(f"redis-cli -p 7777 eval {shlex.quote(check)} 0 {keys}", seconds=600).out.strip() == "0"
    assert beta.run("redis-cli -p 7777 set new there").out.strip() == "OK"
    assert beta.run("redis-cli -p 7777 get new").out.strip() == "there"


@pytest.mark.long_on("vm")
def test_pipeline(nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any) -> None:
    """Three processes and the pipes between them, under a shell; the end of the pipe is a file that comes along."""
    for host in (alpha, beta):
        host.run("rm -f /root/pipeline.out")
    line = "while :; do echo tick; sleep 0.05; done | sed -u s/tick/tock/ | cat -n >/root/pipeline.out"
    pid = started.launch("sh", "-c", line)
    until(lambda: alpha.run("wc -l </root/pipeline.out", check=False).out.strip() not in ("", "0"), "no output")
    tree = int(alpha.run(f"pgrep -s {pid} | wc -l").out)
    run = migrate("--copy-files", str(pid), "beta")
    moved(run, alpha, beta, pid)
    assert int(beta.run(f"pgrep -s {pid} | wc -l").out) >= min(tree, 4)
    before = int(beta.run("wc -l </root/pipeline.out").out)
    until(lambda: int(beta.run("wc -l </root/pipeline.out").out) > before + 5, "the pipeline does not go on")
    lines = whole_lines(beta.read("/root/pipeline.out")).splitlines()
    assert [text.split() for text in lines] == [[str(number + 1), "tock"] for number in range(len(lines))]


@pytest.mark.long_on("vm")
def test_not_its_session_leader(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """It is found by itself that it takes criu's --shell-job, and said."""
    leader = started.launch("sh", "-c", "sleep 100000 & wait")
    until(lambda: alpha.run(f"pgrep -P {leader}", check=False).status == 0, "no child")
    pid = int(alpha.run(f"pgrep -P {leader}").out)
    run = migrate(str(pid), "beta")
    beta.run(f"kill {pid}", check=False)
    assert run.status == 0, run.explain()
    assert any("shell job" in event["text"] for event in run.of("note")), run.explain()


@pytest.mark.backends("netns")
def test_without_dirty_tracking(alpha: LabHost, beta: LabHost, started: Started, migrate: Any) -> None:
    """Said in one line and moved in one go; refused with --require-precopy."""
    pid = started.launch("sleep", "100000")
    refused = migrate("--require-precopy", str(pid), "beta")
    assert refused.status == 20, refused.explain()
    assert alpha.state(pid) == "S"
    run = migrate(str(pid), "beta")
    moved(run, alpha, beta, pid)
    assert len(run.report["rounds"]) == 1
    assert any("dirty" in event["text"] for event in run.of("note")), run.explain()


def test_check_changes_nothing(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """The same obstacles and exit codes as the migration's, and nothing else."""
    pid = started.launch("sleep", "100000")
    good = migrate("check", str(pid), "beta")
    assert good.status == 0, good.explain()
    assert alpha.state(pid) == "S"
    writer = started.launch("python3", "-c", "import time; f=open('/root/written','w'); time.sleep(10**6)")
    until(lambda: alpha.run("test -e /root/written", check=False).status == 0, "it does not start")
    bad = migrate("check", str(writer), "beta")
    assert bad.status == 20, bad.explain()
    remedies = {obstacle["id"]: obstacle["remedy"] for obstacle in bad.of("obstacle")}
    assert "--copy-files" in remedies["file-written"], bad.explain()
    assert migrate("check", "--copy-files", str(writer), "beta").status == 0
    alpha.run("rm /root/written")
