"""Named instants at which a test may stop this process, hit exactly. The only place that reads MIGRATE_INSTANT.

Without the variable `at` is an empty function: nothing is looked at, opened or waited for. With it `at` connects to
the unix socket that it names, says `PID NAME`, and stands still, as a process does that the kernel does not schedule,
until it gets an answer or the end of the connection. So nothing else of the process goes on meanwhile either, and no
order of events is seen that could not come about by itself.

A release must not obey the variable by accident, and nobody else may stop a migration with it: it counts only where it
names a socket that belongs to the user that this process runs as (root, then), with no access for anybody else, in a
directory that only this user or root may write to. sudo drops the variable, and sshd takes none from a client unless
its configuration says so. Whoever can set it for root's processes and make such a socket is root already.

The instants, and who comes there: `connect` (both agents), `preflight` (both), `round N` (source: its criu is at work),
`freeze` (source: FROZEN is on disk, criu not started), `dump` (source: criu is at work), `images sent` (source),
`restore` (target: criu waits for its word), `held` (target: HELD is on disk, nobody knows), `commit asked` (source: no
COMMIT yet), `committed` (source: COMMIT is on disk, criu not released), `source killed` (source: KILLED is on disk),
`resume asked` (target: no RESUMING yet), `resuming` (target: RESUMING is on disk, criu not released), `resumed`
(target: RESUMED is on disk, nobody knows), `fill` (the pager: the tree runs, nothing was filled in), `clean` (both).
What lies between the two hosts, an answer that `migrate` has and nobody else knows of, is a phase of its own, before
which its observers are awaited (migrator/phases.py).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Callable

VARIABLE = "MIGRATE_INSTANT"


def _trusted(path: Path) -> bool:
    """Whether only we can have put this socket there."""
    ours = os.geteuid()
    try:
        place, about = path.parent.stat(), path.lstat()
    except OSError:
        return False
    if place.st_uid not in (0, ours) or place.st_mode & 0o022:
        return False
    return stat.S_ISSOCK(about.st_mode) and about.st_uid == ours and not about.st_mode & 0o077


def _pass(name: str) -> None:
    """Nobody looks."""


def of(environment: Mapping[str, str]) -> Callable[[str], None]:
    """What `at` is, in this environment: says that this process is at an instant, and waits for the word to go on."""
    path = Path(environment.get(VARIABLE, ""))
    if not path.is_absolute() or not _trusted(path):
        return _pass

    import socket  # late: a relay, which starts while somebody waits, needs none

    def stop(name: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.connect(str(path))
                listener.sendall(f"{os.getpid()} {name}\n".encode())
                listener.recv(1)
            except OSError:
                return  # who listened has gone

    return stop


at = of(os.environ)
"""Come to an instant."""
