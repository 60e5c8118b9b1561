"""What of a journal was written since this host last booted. Numbers of processes say nothing beyond that."""

from __future__ import annotations

from typing import Any

from agent import process
from agent.journal import Journal


def same_boot(journal: Journal) -> bool:
    """Whether this host has not rebooted since the migration began."""
    return bool(journal.first["boot"] == process.boot_id())


def lines_of_this_boot(journal: Journal) -> tuple[dict[str, Any], ...]:
    """All of them; after a reboot those since the first agent took the migration over, which notes its boot first."""
    boot = process.boot_id()
    lines = journal.lines
    since = next((number for number, line in enumerate(lines) if line.get("boot") == boot), len(lines))
    return lines[since:]
