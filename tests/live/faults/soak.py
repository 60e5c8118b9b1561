"""To and fro, very often: one process that never misses a beat, and two hosts on which nothing grows.

    python -m tests.live.faults.soak --lab NAME --backend netns|vm --hops N

`vagrant/lab soak` brings up the lab for it. Exit status 1 when anything grew, or a sign of the process is missing.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time

from tests.live.conftest import Started, bring_migrate
from tests.live.faults.hands import Hand
from tests.live.faults.outside import ADDRESS, PORT, Outside, judge
from tests.live.lab_host import LabHost, bring_programs, start_lab, status_of

WARM = 4
"""Hops until the first look: what is loaded once, and what a restored process has and a fresh one has not."""
JOURNALS, REPORTS = 51, 100
"""As many as are kept of each (agent/journal.py, and the one at work; migrator/kept.py): up to here they may grow."""
NOISE_KIB = 2048
"""What a host's processes may have more at the end, all together: allocators round up. One kept page a hop shows."""


def grown(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What there is more of than before, in words."""
    kept = {what: max(0, most - before[what]) for what, most in (("journals", JOURNALS), ("reports", REPORTS))}
    allowed = {"memory, KiB": NOISE_KIB, **kept}
    return [
        f"{what}: {before[what]}, then {after[what]}"
        for what in before
        if after[what] > before[what] + allowed.get(what, 0)
    ]


def hop(here: LabHost, there: LabHost, pid: int) -> str:
    """One migration; what is wrong with it, "" when nothing is."""
    done = here.run(f"migrate --json {pid} {there.name}", check=False, seconds=600)
    return "" if done.status == 0 else f"exit {done.status} from {here.name}:\n{done.out}\n{done.err}"


def soak(hosts: tuple[LabHost, LabHost], outside: Outside, hops: int) -> list[str]:
    """All hops; what went wrong."""
    hands = [Hand(host, stops=False) for host in hosts]
    started, token = Started(hosts), secrets.token_hex(6)
    outside.expect(token)
    pid = started.launch("python3", "-B", "/root/programs/beacon.py", ADDRESS, str(PORT), token)
    began = time.monotonic()
    before: list[dict[str, int]] = []
    try:
        assert outside.wait(lambda signs: len(signs) > 100, 600), "the process does not start"
        for number in range(hops):
            if number == WARM:
                before = [hand.ask("totals") for hand in hands]
            here, there = hosts if number % 2 == 0 else hosts[::-1]
            if wrong := hop(here, there, pid) or judge(outside.signs, number + 1):
                return [f"hop {number + 1}: {wrong}"]
            if number % 20 == 19:
                print(f"{number + 1} hops, {len(outside.signs)} signs, {time.monotonic() - began:.0f} s", flush=True)
        after = [hand.ask("totals") for hand in hands]
        seen = len(outside.signs)
        outside.wait(lambda signs: len(signs) > seen and signs[-1].sweeps > signs[seen].sweeps + 1, 600)
        wrong = judge(outside.signs, hops)
        longest = max(later.at - earlier.at for earlier, later in zip(outside.signs, outside.signs[1:]))
        print(f"{hops} hops, {len(outside.signs)} signs without a gap, the longest pause {longest:.2f} s")
        for host, one, other in zip(hosts, before, after):
            for what in one:
                print(f"  {host.name:6} {what:28} {one[what]:8} {other[what]:8}")
        growth = [f"{host.name}: {what}" for host, one, two in zip(hosts, before, after) for what in grown(one, two)]
        return [wrong, *growth] if wrong else growth
    finally:
        started.end()
        for hand in hands:
            hand.close()


def main() -> int:
    """Run, and say what went wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lab", required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--hops", type=int, required=True)
    options = parser.parse_args()
    hops = options.hops + options.hops % 2  # it ends where it began, or the two hosts could not be compared
    hosts = start_lab(options.lab, options.backend)
    bring_programs(hosts)
    bring_migrate(*hosts)
    outside = Outside(hosts, options.backend, status_of(options.lab))
    try:
        wrong = soak(hosts, outside, max(hops, WARM + 2))
    finally:
        outside.close()
        for host in hosts:
            host.close()
    for line in wrong:
        print(f"WRONG: {line}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
