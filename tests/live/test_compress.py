"""What travels compressed, and at what rate: real memory over a real link, counted where it leaves the host."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LabHost

READY = "/run/compress.ready"
SAME = """
import os, sys, time
kept = [bytes([1]) * (1 << 20) for _ in range(int(sys.argv[1]))]
open(sys.argv[2], "w").close()
time.sleep(3600)
"""
NOISE = SAME.replace("bytes([1]) * (1 << 20)", "os.urandom(1 << 20)")
MIB = {"netns": 96, "vm": 24}


def sent(host: LabHost) -> int:
    """Bytes that have left this host."""
    return sum(
        int(host.read(f"/sys/class/net/{name}/statistics/tx_bytes"))
        for name in host.run("ls /sys/class/net").out.split()
        if name != "lo"
    )


@pytest.mark.long_on("vm")
@pytest.mark.parametrize(
    ("program", "mode", "least", "most"),
    [(SAME, "auto", 0.0, 0.5), (SAME, "zstd", 0.0, 0.3), (SAME, "none", 0.95, 1.1), (NOISE, "zstd", 0.9, 1.1)],
    ids=["same-auto", "same-zstd", "same-none", "noise-zstd"],
)
def test_the_report_says_what_really_left_the_host(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, backend: str, migrate: Any,
    program: str, mode: str, least: float, most: float,
) -> None:  # fmt: skip
    alpha.run(f"rm -f {READY}")
    pid = started.launch("python3", "-c", program, str(MIB[backend]), READY)
    alpha.run(f"until test -e {READY}; do sleep 0.1; done")
    before = sent(alpha)
    run = migrate("--compress", mode, "--max-rounds", "0", str(pid), "beta")
    left = sent(alpha) - before
    assert run.status == 0, run.explain()
    assert beta.alive(pid)
    wire, memory = run.report["wire_bytes"], run.report["bytes"]
    assert memory > MIB[backend] << 20
    assert least <= wire / memory <= most
    # the agent's archive, control and SSH's and TCP's own come on top
    assert wire <= left <= wire * 1.1 + (2 << 20)
