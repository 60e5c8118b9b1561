"""Where pre-copy does not bring the downtime within the limit: left alone, or slowed down and moved."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LabHost, until, wait_for_sweeps

pytestmark = pytest.mark.backends("vm")
"""Takes a kernel that tracks dirty memory."""

WRITER = "/root/programs/writer.py"
MIB = 48


def write(host: LabHost, started: Started) -> int:
    """A loop that rewrites its memory, at work: all of it is there."""
    pid = started.launch("python3", WRITER, str(MIB))
    resident = f"awk '/^VmRSS:/ {{print $2}}' /proc/{pid}/status"
    until(lambda: int(host.run(resident).out or 0) >= MIB << 10, "it does not write", 60 * host.slow)
    return pid


def slowed(host: LabHost) -> str:
    """What there is of our cgroups, and which controllers are handed down."""
    found = host.run("find /sys/fs/cgroup -name 'migrating-*'; cat /sys/fs/cgroup/cgroup.subtree_control")
    return found.out + host.run("cat /sys/fs/cgroup/system.slice/cgroup.subtree_control").out


def test_left_where_it_is(alpha: LabHost, beta: LabHost, witness: int, migrate: Any) -> None:
    run = migrate(
        "--copy-files", "--max-downtime", "0.001", "--max-rounds", "2", "--on-no-converge", "fail", str(witness), "beta"
    )
    assert run.status == 35, run.explain()
    assert run.report["outcome"] == "undone"
    assert run.of("error")[0]["error"] == "NotConverging"
    assert "over the limit of 0.00 s" in run.of("error")[0]["message"]
    assert run.report["predicted_downtime_seconds"] > 0.001
    assert run.report["rounds"], "it tried"
    lines = wait_for_sweeps(alpha, 1)
    assert {line[3] for line in lines} == {0}, "bad pages"
    assert not beta.alive(witness)


def test_of_a_huge_page_only_what_was_written_travels_again(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """The kernel calls all 2 MiB dirty. The first round has them all, the second has them again, the rest does not."""
    answer = "/run/huge.bad"
    beta.run(f"rm -f {answer}")
    pid = started.launch("python3", "/root/programs/huge.py", "16", answer)
    huge = f"awk '/^AnonHugePages:/ {{print $2}}' /proc/{pid}/smaps_rollup"
    until(lambda: int(alpha.run(huge).out or 0) >= 14 << 10, "it has no huge pages", 60 * alpha.slow)
    run = migrate("--max-downtime", "0.001", "--max-rounds", "3", str(pid), "beta")
    assert run.status == 0, run.explain()
    sent = [done["bytes"] for done in run.report["rounds"]]
    assert len(sent) == 4, sent
    assert sent[1] > 14 << 20, sent
    assert max(sent[2:]) < sent[1] / 4, sent
    beta.run(f"kill -USR1 {pid}")
    until(lambda: beta.run(f"cat {answer}", check=False).out == "0\n", "its memory is not what it was", 60 * beta.slow)


@pytest.mark.long
def test_slowed_down_until_it_fits(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """A loop that rewrites 48 MiB as fast as it can: more than the link carries until it is slowed down."""
    before = slowed(alpha)
    pid = write(alpha, started)
    run = migrate("--on-no-converge", "throttle", "--max-downtime", "2.0", "--max-rounds", "2", str(pid), "beta")
    assert run.status == 0, run.explain()
    notes = [event["text"] for event in run.of("note")]
    assert any("50% of its processor time" in note for note in notes), run.explain()
    assert beta.alive(pid)
    assert slowed(alpha) == before
    assert "migrating-" not in beta.read(f"/proc/{pid}/cgroup")
    assert beta.run(f"cat /proc/{pid}/cgroup; find /sys/fs/cgroup -name 'migrating-*'").out.count("migrating-") == 0


@pytest.mark.long
def test_an_agent_that_dies_leaves_nothing_slow(alpha: LabHost, beta: LabHost, started: Started, sabotage: Any) -> None:
    before = slowed(alpha)
    pid = write(alpha, started)
    options = "--on-no-converge throttle --max-downtime 0.2 --max-rounds 2"
    run = sabotage(pid, "freeze", "kill-source-agent", options=options)
    assert run.status == 34, run.explain()
    assert any("of its processor time" in event["text"] for event in run.of("note")), run.explain()
    assert alpha.state(pid) in ("R", "S")
    assert slowed(alpha) == before
    assert not beta.alive(pid)
