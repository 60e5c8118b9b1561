"""systemd scopes: where a program that has to outlive the SSH session that started it belongs."""

from __future__ import annotations

import os

from agent import service


def own(name: str) -> list[str]:
    """The command that puts what follows into a scope of its own; empty where systemd does not run."""
    if not service.booted() or os.geteuid() != 0:
        return []
    return ["systemd-run", "--scope", "--quiet", "--collect", "--slice=system.slice", f"--unit={name}"]
