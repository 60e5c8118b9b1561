"""The witness moves, and can tell whether it was moved well."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LabHost, log_lines

LOG = "/root/witness.log"
SIZES = {
    "netns": ("--mib", "256"),
    # an emulated CPU is a tenth of a real one, and it has to run criu and ssh as well
    "vm": ("--mib", "64", "--rate", "100", "--interval", "0.02", "--rest", "5"),
}


@pytest.fixture(autouse=True)
def _fresh(lab: tuple[LabHost, LabHost]) -> None:
    for host in lab:
        host.run(f"rm -f {LOG}")


def wait_for_log(host: LabHost, lines: int = 50, seconds: float = 300) -> None:
    """Until the witness is at work."""
    deadline = time.monotonic() + seconds
    while int(host.run(f"wc -l <{LOG} 2>/dev/null || echo 0", check=False).out or 0) < lines:
        assert time.monotonic() < deadline, "the witness does not start"
        time.sleep(0.2)


def wait_for_sweeps(host: LabHost, sweeps: int, seconds: float = 300) -> list[tuple[int, float, int, int, int]]:
    """Until the witness has looked at all of its memory so many times more; its whole log."""
    first = log_lines(host.run(f"tail -n 1 {LOG}").out)[0]
    deadline = time.monotonic() + seconds
    while log_lines(host.run(f"tail -n 1 {LOG}").out)[0][2] < first[2] + sweeps:
        assert time.monotonic() < deadline, "the witness does not go on verifying"
        time.sleep(0.2)
    return log_lines(host.read(LOG))


def gap(lines: list[tuple[int, float, int, int, int]]) -> float:
    """The longest pause that the witness saw, in seconds."""
    return max(later[1] - earlier[1] for earlier, later in zip(lines, lines[1:], strict=False))


def test_witness_moves(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any, backend: str
) -> None:
    """Same PIDs, a log without a gap or a repeat, right checksums, an answering child, an honest downtime."""
    pid = started.launch("python3", "/root/programs/witness.py", *SIZES[backend], "--log", LOG)
    wait_for_log(alpha)
    child = int(alpha.run(f"pgrep -P {pid}").out)
    ahead = beta.seconds_ahead() - alpha.seconds_ahead()

    run = migrate("--copy-files", str(pid), "beta")
    assert run.status == 0, run.explain()
    report = run.report
    assert report["outcome"] == "migrated"
    assert report["pid"] == report["target_pid"] == pid

    assert not alpha.alive(pid)
    assert beta.alive(pid)
    assert beta.run(f"pgrep -P {pid}").out.split() == [str(child)]
    lines = wait_for_sweeps(beta, 2)
    assert [line[0] for line in lines] == list(range(len(lines))), "the log has a gap or a repeat"
    assert {line[3] for line in lines} == {0}, "bad pages"
    assert {line[4] for line in lines} == {0}, "the child answered wrongly"
    assert beta.run(f"ls /proc/{pid}/task | wc -l").out.strip() == "3"

    seen = gap(lines) - (ahead if backend == "vm" else 0)
    # the clocks of two emulated machines are known to each other within a round trip only
    slack = 0.0 if backend == "netns" else 0.5
    assert seen <= report["downtime_seconds"] + slack
    if backend == "netns":
        assert report["downtime_seconds"] <= seen + 0.1
    # what was there before is still what the log says on the source: it was copied, not moved
    assert log_lines(alpha.read(LOG)) == lines[: len(log_lines(alpha.read(LOG)))]
