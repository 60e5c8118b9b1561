"""Rounds as image directories: sent by rsync, or on storage that both hosts see."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LOG, LabHost, wait_for_log, wait_for_sweeps

SIZES = {"netns": ("--mib", "64"), "vm": ("--mib", "32", "--rate", "20", "--interval", "0.05", "--rest", "20")}
SHARED = "/srv/shared"


@pytest.fixture
def mover(nothing_behind: None, lab: tuple[LabHost, LabHost], started: Started, backend: str) -> int:
    for host in lab:
        host.run(f"rm -f {LOG}")
    pid = started.launch("python3", "/root/programs/witness.py", *SIZES[backend], "--log", LOG)
    wait_for_log(lab[0], lines=20)
    return pid


def moved_well(alpha: LabHost, beta: LabHost, pid: int) -> None:
    assert beta.alive(pid)
    assert not alpha.alive(pid)
    lines = wait_for_sweeps(beta, 2)
    assert [line[0] for line in lines] == list(range(len(lines)))
    assert {line[3] for line in lines} == {0}, "bad pages"
    assert {line[4] for line in lines} == {0}, "the child answered wrongly"


def stays_well(alpha: LabHost, beta: LabHost, pid: int) -> None:
    assert not beta.alive(pid)
    lines = wait_for_sweeps(alpha, 2)
    assert {line[3] for line in lines} == {0}, "bad pages"


def test_rsync(alpha: LabHost, beta: LabHost, mover: int, migrate: Any, backend: str) -> None:
    run = migrate("-v", "--transport", "rsync", "--copy-files", str(mover), "beta")
    assert run.status == 0, run.explain()
    sent = [event["text"] for event in run.of("detail") if event["text"].startswith("$ rsync ")]
    rounds = run.report["rounds"]
    assert len(sent) == len(rounds), run.explain()
    assert len(rounds) >= 2 if backend == "vm" else len(rounds) == 1
    assert all(done["wire_bytes"] > 0 for done in rounds)
    moved_well(alpha, beta, mover)


@pytest.mark.backends("vm")
def test_rsync_of_a_tree_whose_tasks_come_and_go(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """A round has memory of a child that the next one does not know: `criu dedup` takes that for an error."""
    pid = started.launch("sh", "-c", "while :; do sleep 0.3; done")
    run = migrate("--transport", "rsync", str(pid), "beta")
    assert run.status == 0, run.explain()
    assert len(run.report["rounds"]) >= 2
    assert beta.alive(pid)
    assert not alpha.alive(pid)


@pytest.mark.backends("netns")
@pytest.mark.parametrize("resume", ["instant", "eager"])
def test_shared_storage(alpha: LabHost, beta: LabHost, mover: int, migrate: Any, resume: str) -> None:
    run = migrate("-v", "--shared", SHARED, "--resume", resume, "--copy-files", str(mover), "beta")
    assert run.status == 0, run.explain()
    assert not [event for event in run.of("detail") if event["text"].startswith("$ rsync ")]
    assert run.report["resume"] == resume
    assert alpha.run(f"ls {SHARED}").out == ""
    moved_well(alpha, beta, mover)


@pytest.mark.backends("netns")
def test_images_where_they_were_asked_for(alpha: LabHost, beta: LabHost, mover: int, sabotage: Any) -> None:
    run = sabotage(
        mover, "restore", "kill-restoring-criu", options="-v --copy-files --transport rsync --images-dir /root/images"
    )
    # the restore may have been over before it was killed
    assert run.status in (0, 33), run.explain()
    sent = [event["text"] for event in run.of("detail") if event["text"].startswith("$ rsync ")]
    assert len(sent) == 1, run.explain()
    assert " /root/images/" in sent[0]
    assert alpha.run("ls /root/images").out == "", "the images are still there"
    alpha.run("rmdir /root/images")
    (moved_well if run.status == 0 else stays_well)(alpha, beta, mover)


@pytest.mark.backends("netns")
def test_a_directory_that_only_one_host_sees(alpha: LabHost, beta: LabHost, mover: int, migrate: Any) -> None:
    run = migrate("--shared", "/root/images", "--copy-files", str(mover), "beta")
    assert run.status == 31, run.explain()
    assert "is not seen here" in run.err
    alpha.run("rmdir /root/images")
    stays_well(alpha, beta, mover)


@pytest.mark.backends("netns")
@pytest.mark.parametrize("act", ["interrupt", "kill-source-agent", "kill-target-agent", "cut-link"])
@pytest.mark.parametrize("carrier", ["--transport rsync", f"--shared {SHARED}"])
def test_broken_in_the_freeze(alpha: LabHost, beta: LabHost, mover: int, sabotage: Any, act: str, carrier: str) -> None:
    """Undone, with nothing behind on either host, nor on the storage that they share."""
    run = sabotage(mover, "restore", act, options=f"--copy-files {carrier}")
    assert run.status == 130 if act == "interrupt" else run.status in range(30, 50), run.explain()
    assert "Traceback" not in run.err, run.explain()
    assert run.report["outcome"] == "undone"
    assert alpha.run(f"ls {SHARED}").out == ""
    stays_well(alpha, beta, mover)


@pytest.mark.backends("netns")
def test_rsync_that_is_cut_off_goes_on(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """Its own connection is cut once: a wrapper in ssh's place ends after the first bytes."""
    pid = started.launch("python3", "-c", "import os, time; held = os.urandom(40 << 20); time.sleep(10**6)")
    alpha.run(
        "cat >/root/once <<'EOF'\n#!/bin/sh\n[ -e /root/cut ] && exec ssh -o BatchMode=yes \"$@\"\n"
        'touch /root/cut; timeout 0.2 ssh -o BatchMode=yes "$@"; exit 255\nEOF\nchmod +x /root/once; rm -f /root/cut'
    )
    run = migrate("-v", "--transport", "rsync", "--rsh", "/root/once", str(pid), "beta")
    alpha.run("rm /root/once /root/cut")
    assert run.status == 0, run.explain()
    assert [event for event in run.of("detail") if event["text"].startswith("rsync was cut off")], run.explain()
    assert beta.alive(pid)
    assert not alpha.alive(pid)
