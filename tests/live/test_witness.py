"""The witness moves, and can tell whether it was moved well."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LOG, LabHost, gap, log_lines, wait_for_log, wait_for_sweeps

SIZES = {
    "netns": ("--mib", "256"),
    # an emulated CPU is a tenth of a real one, and it has to run criu and ssh as well
    # One dirty byte of a transparent huge page dirties 2 MiB of it: so a hot set, as most programs have one.
    "vm": ("--mib", "64", "--rate", "50", "--hot", "512", "--interval", "0.05", "--rest", "20"),
}


@pytest.fixture(autouse=True)
def _fresh(lab: tuple[LabHost, LabHost]) -> None:
    for host in lab:
        host.run(f"rm -f {LOG}")


@pytest.mark.core
@pytest.mark.parametrize("resume", ["instant", pytest.param("eager", marks=pytest.mark.backends("netns"))])
def test_witness_moves(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any, backend: str, resume: str
) -> None:
    """Same PIDs, a log without a gap or a repeat, right checksums, an answering child, an honest downtime.

    Where the kernel tracks dirty memory: at least two rounds, and the last one is small.
    """
    pid = started.launch("python3", "/root/programs/witness.py", *SIZES[backend], "--log", LOG)
    wait_for_log(alpha)
    child = int(alpha.run(f"pgrep -P {pid}").out)
    ahead = beta.seconds_ahead() - alpha.seconds_ahead()

    run = migrate("--copy-files", "--resume", resume, str(pid), "beta")
    assert run.status == 0, run.explain()
    report = run.report
    assert report["outcome"] == "migrated"
    assert report["pid"] == report["target_pid"] == pid
    rounds = report["rounds"]
    if backend == "vm":
        assert len(rounds) >= 2
        assert rounds[-1]["bytes"] < rounds[0]["bytes"] / 10, rounds
    else:
        assert len(rounds) == 1

    assert not alpha.alive(pid)
    assert beta.alive(pid)
    assert beta.run(f"pgrep -P {pid}").out.split() == [str(child)]
    lines = wait_for_sweeps(beta, 2)
    assert [line[0] for line in lines] == list(range(len(lines))), "the log has a gap or a repeat"
    assert {line[3] for line in lines} == {0}, "bad pages"
    assert {line[4] for line in lines} == {0}, "the child answered wrongly"
    assert beta.run(f"ls /proc/{pid}/task | wc -l").out.strip() == "3"

    seen = gap(lines) - (ahead if backend == "vm" else 0)
    # Between its last line and the freeze, and between the resume and its next line, it may be kept waiting as at any
    # other time: by its own threads, and by whatever else a busy machine has to do.
    own = 2 * sorted(later[1] - earlier[1] for earlier, later in zip(lines, lines[1:], strict=False))[-2]
    # The report ends with the word that it runs: what pages its first line waits for is told apart, and none if eager.
    # The clocks of two emulated machines are known to each other within a round trip only.
    slack = own + report["fill_seconds"] if backend == "netns" else 0.5
    assert seen <= report["downtime_seconds"] + slack
    if backend == "netns":
        # those through whom the word comes may be kept waiting as well
        assert report["downtime_seconds"] <= seen + 0.1 + own
    # what was there before is still what the log says on the source: it was copied, not moved
    assert log_lines(alpha.read(LOG)) == lines[: len(log_lines(alpha.read(LOG)))]
