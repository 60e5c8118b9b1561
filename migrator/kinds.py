"""What one row of the table of obstacles says. The rows are those of `kinds_tree`, `kinds_files` and their like.

Refuses to look anything up: that is `catalogue.py`'s.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of obstacle.

    `problem` and `remedy` are templates for the fields that `obstacle.make` is given; whoever finds an obstacle may
    have better words for either. `explanation` is for `migrate explain`: why it matters, what criu does, what to do.
    """

    id: str  # stable: scripts may rely on it
    title: str  # one line, without a full stop
    problem: str
    remedy: str
    explanation: str
    stops: bool = True  # False: a warning, and the migration goes on
