"""`vagrant/lab demo`: a busy process moves from alpha to beta before your eyes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

from labkit import cache, record, ssh
from labkit.run import LabError, say

PROGRAM = cache.REPOSITORY / "vagrant" / "busy.py"
PROGRAM_ON_HOST = "/root/busy.py"
LOG = "/var/log/busy.log"
MEBIBYTES = {"netns": 512, "vm": 96}  # emulation is about ten times slower
CLEAR_OF_OTHERS = 20000  # both hosts number their processes from 1, and the process keeps its number


@dataclasses.dataclass(frozen=True)
class Logged:
    """What the program's log tells."""

    lines: int
    missing: int
    longest_gap: float


def read_log(text: str) -> Logged:
    """Counts the lines, those that are missing, and the longest time between two."""
    rows = [line.split() for line in text.splitlines()]
    numbers = [int(row[0]) for row in rows]
    times = [float(row[1]) for row in rows]
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    missing = numbers[-1] - numbers[0] + 1 - len(set(numbers)) if numbers else 0
    return Logged(len(rows), missing, max(gaps, default=0.0))


def show(lab: record.Lab, host: str, line: str) -> str:
    """Runs a command on the host, and shows it with what it said, as in a terminal."""
    print(f"\n{host}# {line}", flush=True)
    said = ssh.run_on(lab, host, [line])
    print(said, end="", flush=True)
    return said


def play(lab: record.Lab) -> None:
    """The demonstration; a LabError if the process did not arrive as it left."""
    ssh.run_on(lab, "alpha", [f"cat > {PROGRAM_ON_HOST}"], stdin=Path(PROGRAM).read_bytes())
    ssh.run_on(lab, "alpha", [f"echo {CLEAR_OF_OTHERS} > /proc/sys/kernel/ns_last_pid"])
    start = f"setsid python3 {PROGRAM_ON_HOST} {LOG} {MEBIBYTES[lab.backend]} </dev/null >/dev/null 2>&1 & echo $!"
    pid = int(show(lab, "alpha", start))
    look = f"ps -o pid,stat,rss,etime,args -p {pid}; tail -n 2 {LOG}"
    ssh.run_on(lab, "alpha", [f"until test -s {LOG}; do sleep 0.1; done; sleep 2"])
    show(lab, "alpha", look)

    line = f"migrate {pid} beta --copy-files"
    print(f"\nalpha# {line}", flush=True)
    words = ssh.command(lab, "alpha", [line])
    if sys.stdout.isatty():
        words.insert(1, "-tt")  # so that migrate sees a terminal and draws its bars
    status = subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode
    if status != 0:
        raise LabError(f"migrate ended with {status}", hint="`--keep` leaves the lab up to look at")

    ssh.run_on(lab, "beta", ["sleep 2"])
    show(lab, "beta", look)
    show(lab, "alpha", f"kill -0 {pid} || echo gone from alpha")
    logged = read_log(ssh.run_on(lab, "beta", [f"cat {LOG}"]))
    last = ssh.run_on(lab, "beta", [f"tail -n 1 {LOG}; sleep 1; tail -n 1 {LOG}"]).split("\n")
    if last[0] == last[1] or logged.missing:
        raise LabError("the process does not go on as it should", hint="`--keep` leaves the lab up to look at")
    print()
    # two machines have two clocks, and what one of them is ahead would be taken for a pause, or hide one
    one_clock = lab.backend == "netns"
    pause = f", and the longest pause between two was {logged.longest_gap:.2f} s" if one_clock else ""
    say(f"process {pid} runs on beta; its own log has {logged.lines} lines, none is missing{pause}")
