"""The one table of obstacles: every kind by its id, for whoever makes one, for `migrate explain`, and for the README.

The rows are in `kinds_tree`, `kinds_units`, `kinds_files`, `kinds_hosts` and `kinds_addresses`. Refuses to judge:
whether an obstacle is there is for `plan`, `fileplan`, `units` and `obstacle` to say.
"""

from __future__ import annotations

import difflib

from migrator import kinds_addresses, kinds_files, kinds_hosts, kinds_tree, kinds_units
from migrator.kinds import Kind

GROUPS = {
    "of the process": kinds_tree.ROWS,
    "of its unit": kinds_units.ROWS,
    "of its files": kinds_files.ROWS,
    "of the hosts": kinds_hosts.ROWS,
    "of addresses that move": kinds_addresses.ROWS,
}

KINDS: dict[str, Kind] = {kind.id: kind for rows in GROUPS.values() for kind in rows}


def nearest(word: str) -> list[str]:
    """The ids that are most like a word that is none; at most four, the best first."""
    part = [known for known in KINDS if word and word in known]
    return list(dict.fromkeys([*part, *difflib.get_close_matches(word, KINDS, n=4, cutoff=0.5)]))[:4]


def readme_tables() -> str:
    """The tables of the README: every id, what it means, and whether it stops or warns."""
    tables = []
    for name, rows in GROUPS.items():
        lines = [f"| {name} | | |", "|---|---|---|"]
        lines += [f"| `{kind.id}` | {kind.title} | {'' if kind.stops else 'warns'} |" for kind in rows]
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)
