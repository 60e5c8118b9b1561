"""Reports of migrations that went well and of others, to be told, kept, drawn and compared."""

from __future__ import annotations

import dataclasses

from migrator.phases import Report, Round, Span

KIB, MIB = 1024, 1024 * 1024


def spans(start: float, *steps: tuple[str, float]) -> tuple[Span, ...]:
    """Spans one after the other, from a name and seconds each."""
    found = []
    for name, seconds in steps:
        found.append(Span(name, start, seconds))
        start += seconds
    return tuple(found)


MOVED = Report(
    id="20260704-031500-a1b2c3",
    outcome="migrated",
    pid=4711,
    target_pid=4711,
    source="db1",
    target="root@db2",
    rounds=(
        Round(261_120, 1020 * MIB, 341 * MIB, 2.46, 0.021, 0.71),
        Round(9_728, 38 * MIB, 17 * MIB, 0.12, 0.008, 3.18, 15.4 * MIB),
        Round(282, 282 * 4096, 290 * 4096, 0.048, 0.048, 3.31, 8.5 * MIB),
    ),
    downtime_seconds=0.118,
    freeze_seconds=0.048,
    restore_seconds=0.031,
    total_seconds=4.42,
    bytes=1058 * MIB + 282 * 4096,
    wire_bytes=361 * MIB,
    resume="instant",
    fill_seconds=0.92,
    faults=84,
    longest_fault_seconds=0.0031,
    target_peak_bytes=1104 * MIB,
    predicted_downtime_seconds=0.11,
    started="2026-07-04T03:15:00+02:00",
    name="redis-server",
    phases=spans(
        0.0, ("connect", 0.41), ("preflight", 0.30), ("pre-copy", 2.60), ("freeze", 0.060), ("restore", 0.032),
        ("commit", 0.011), ("resume", 0.015), ("fill", 0.93), ("clean", 0.06),
    ),
    freeze=spans(3.31, ("dump", 0.048), ("images", 0.012), ("restore", 0.032), ("commit", 0.011), ("resume", 0.015)),
    max_downtime_seconds=0.3,
    fill_bytes=1020 * MIB,
)  # fmt: skip
"""A gibibyte of redis, moved."""
UNDONE = dataclasses.replace(
    MOVED,
    id="20260704-030200-0f0f0f",
    outcome="undone",
    target_pid=0,
    error="RestoreError: db2: criu restore: Can't open file srv/app.sock: No such file or directory",
    downtime_seconds=0.34,
    restore_seconds=0.0,
    total_seconds=4.02,
    fill_seconds=0.0,
    fill_bytes=0,
    faults=0,
    longest_fault_seconds=0.0,
    target_peak_bytes=0,
    phases=spans(
        0.0, ("connect", 0.41), ("preflight", 0.30), ("pre-copy", 2.60), ("freeze", 0.060), ("restore", 0.25),
        ("undo", 0.40),
    ),
    freeze=spans(3.31, ("dump", 0.048), ("images", 0.012), ("restore", 0.25), ("thaw", 0.03)),
)  # fmt: skip
"""A restore that failed: paused, then it ran on."""
REFUSED = Report(
    id="20260704-025900-cccccc",
    outcome="undone",
    pid=812,
    target_pid=0,
    source="db1",
    target="db2",
    rounds=(),
    downtime_seconds=0.0,
    freeze_seconds=0.0,
    restore_seconds=0.0,
    total_seconds=0.66,
    bytes=0,
    wire_bytes=0,
    started="2026-07-04T02:59:00+02:00",
    name="postgres",
    error="PreflightError: 2 obstacles",
    phases=spans(0.0, ("connect", 0.41), ("preflight", 0.25)),
)
"""It never came to a round."""
REHEARSED = dataclasses.replace(
    MOVED,
    id="20260704-031000-beef00",
    outcome="rehearsed",
    target_pid=0,
    downtime_seconds=0.127,
    fill_seconds=0.0,
    fill_bytes=0,
    faults=0,
    phases=spans(
        0.0, ("connect", 0.41), ("preflight", 0.30), ("pre-copy", 2.60), ("freeze", 0.060), ("restore", 0.032),
        ("roll back", 0.04), ("undo", 0.2),
    ),
    freeze=spans(3.31, ("dump", 0.048), ("images", 0.012), ("restore", 0.032), ("thaw", 0.035)),
)  # fmt: skip
IN_DOUBT = dataclasses.replace(
    UNDONE,
    id="20260704-030500-d0d0d0",
    outcome="in-doubt",
    error="InDoubt: at COMMIT: db2: contact lost",
    downtime_seconds=0.0,
    phases=MOVED.phases[:6],
    freeze=MOVED.freeze[:4],
)
"""Nobody knows how long it stands still."""
WHOLE_IN_THE_FREEZE = dataclasses.replace(
    MOVED,
    id="20260704-040000-aaaaaa",
    name="weird $x_1$ \x1b[31m 名前 " + "n" * 60,
    source="a-very-long-host-name-that-somebody-gave.example.org",
    rounds=(Round(25_600, 100 * MIB, 99 * MIB, 0.25, 0.25, 0.72),),
    downtime_seconds=0.45,
    phases=spans(
        0.0, ("connect", 0.41), ("preflight", 0.30), ("pre-copy", 0.0001), ("freeze", 0.30), ("restore", 0.10),
        ("commit", 0.03), ("resume", 0.02), ("fill", 0.2), ("clean", 0.06),
    ),
    freeze=spans(0.72, ("dump", 0.25), ("images", 0.05), ("restore", 0.10), ("commit", 0.03), ("resume", 0.02)),
    leftovers=("db1: /run/migrate/x",),
)  # fmt: skip
"""No pre-copy, and names that others have chosen."""
MANY_ROUNDS = dataclasses.replace(
    MOVED,
    id="20260704-050000-bbbbbb",
    rounds=tuple(
        Round(256 * n, n * MIB, n * MIB, 0.1 * n, 0.01, 0.71 + 0.05 * (64 - n), 40.0 * MIB * (n < 64))
        for n in range(64, 0, -1)
    ),
)
ALL = (MOVED, UNDONE, REFUSED, REHEARSED, IN_DOUBT, WHOLE_IN_THE_FREEZE, MANY_ROUNDS)
