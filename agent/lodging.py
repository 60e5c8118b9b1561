"""What the target's systemd gives to a restored tree: its scope with its limits, and streams to the journal.

Its limits are lifted while criu restores it: a quota of processor time would count in the downtime, and criu needs
tasks and memory besides.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path

from agent import freezer, journald, scope, service
from agent.journal import Journal, Record
from agent.protocol import Logged, Scope

WORD = "limits"
"""File beside the journal: the cgroup, and what its limits are, a line each."""
_LIFTED = ("cpu.max", "pids.max", "memory.max", "memory.high", "memory.swap.max")


class Lodging:
    """That of one migration, as its journal's first record has it."""

    def __init__(self, journal: Journal) -> None:
        facts = journal.facts(Record.PREPARED.value)
        self._directory = journal.directory
        self._scope = Scope.of_line(facts["scope"]) if "scope" in facts else Scope()
        self._logged = [Logged(*one) for one in facts.get("logged", ())]
        self._unit = self._scope.name or f"migrated-{journal.migration}.scope"

    @property
    def name(self) -> str:
        """The scope; "" without systemd, and where the tree was to have none in particular."""
        return self._scope.name if service.booted() else ""

    def around(self) -> list[str]:
        """The command that puts the criu that follows, and so the tree, into the scope; empty without systemd."""
        command = scope.own(self._unit)
        if command and self._scope.title:
            command.append(f"--description={self._scope.title}")
        return command + [f"--property={limit}" for limit in self._scope.limits if command]

    def streams(self) -> AbstractContextManager[tuple[tuple[int, ...], list[str]]]:
        """Streams to the journal for a criu to inherit, see `journald.opened`."""
        return journald.opened(self._logged, self._unit if service.booted() else "")

    def lift(self, pid: int) -> None:
        """Lift the scope's limits, which `pid` is in, until `hold`."""
        cgroup = freezer.cgroup_of(pid) if self._scope.limits else None
        if cgroup is None or cgroup.name != self._unit:
            return
        held = {name: text for name in _LIFTED if (text := _read(cgroup / name)) and not text.startswith("max")}
        lines = (str(cgroup), *(f"{name} {value}" for name, value in held.items()))
        (self._directory / WORD).write_text("".join(f"{line}\n" for line in lines))
        for name in held:
            _write(cgroup / name, "max")


def hold(directory: Path) -> None:
    """The limits that were lifted hold again, by the word in `directory`, the journal's; nothing where none were."""
    try:
        cgroup, *limits = (directory / WORD).read_text(errors="surrogateescape").splitlines() or [""]
    except FileNotFoundError:
        return
    if not cgroup.startswith("/"):  # the disk was full over it: then nothing was lifted
        limits = []
    for name, _, value in (limit.partition(" ") for limit in limits):
        _write(Path(cgroup) / name, value)
    (directory / WORD).unlink()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _write(path: Path, value: str) -> None:
    with contextlib.suppress(OSError):  # the tree has ended, and its cgroup with it
        path.write_text(value)
