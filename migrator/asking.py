"""What a plan asks of either host to begin with. Pure; `migration` sends it, both at the same time where it can."""

from __future__ import annotations

from agent.protocol import Begin, Prepare
from migrator import terminals
from migrator.plan import Plan


def begin(migration: str, plan: Plan, target: str, migrate: int) -> Begin:
    """Of the source. `migrate`: the PID of ours, by which `abort` finds us."""
    root = plan.tree.tasks[0]
    return Begin(
        migration=migration,
        pid=root.pid,
        start_time=root.start_time,
        target=target,
        options=plan.criu,
        track_memory=plan.precopy,
        place=plan.place,
        migrate=migrate,
        unit=plan.systemd.suspended,
        floating=plan.floating.here,
    )


def prepare(migration: str, plan: Plan, source: str, lease: float) -> Prepare:
    """Of the target. `lease`: seconds that it holds the tree without us."""
    numbers = plan.numbers
    return Prepare(
        migration=migration,
        root=numbers[0].pid,
        source=source,
        memory=plan.memory,
        on_disk=plan.on_disk,
        options=plan.criu,
        ids=tuple(sorted({number for task in numbers for number in (task.pid, *task.tids)})),
        instant=plan.instant,
        shared=plan.place.directory if plan.place.shared else "",
        namespaces=plan.namespaces,
        terminal=plan.terminal,
        ptys=terminals.own(plan.tree),
        lease=lease,
        scope=plan.systemd.scope,
        logged=plan.systemd.logged,
        floating=plan.floating.there,
        durable=plan.durable,
        keep=plan.keep,
        kept=plan.kept,
    )
