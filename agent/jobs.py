"""Terminals and process groups of this host, as a shell has to do with them: a new pty, a job's group and signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Container

IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""What who leads a session ignores, and its jobs do not."""
BY_TERMINAL = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""What a terminal stops a job with."""


def new_pty(avoid: Container[int]) -> tuple[int, int]:
    """Master and slave of a new pty with none of these numbers. The lowest that is free is the next that one gets."""
    passed: list[int] = []
    try:
        while True:
            pair = os.openpty()
            device = os.fstat(pair[1]).st_rdev
            if os.minor(device) + (os.major(device) - 136) * 256 not in avoid:
                return pair
            passed += pair
    finally:
        for descriptor in passed:
            os.close(descriptor)


def as_a_job() -> None:
    """A process group of its own, so that whoever inherits that is not in ours; and signals as they were."""
    os.setpgid(0, 0)
    for number in IGNORED:
        signal.signal(number, signal.SIG_DFL)


def group_of(pid: int) -> int:
    """A process's group; 0 when it is gone."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def signal_group(group: int, number: int) -> None:
    """Signal a group, if it is there and not our own."""
    if group > 1 and group != os.getpgrp():
        try:
            os.killpg(group, number)
        except (ProcessLookupError, PermissionError):
            pass
