"""Two hosts: plans a migration, drives both agents, and commits.

What a program may use is named here, and loaded when it is first asked for: the command line starts faster without.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from migrator.api import Checked, Options, check, migrate, rehearse
    from migrator.errors import MigrateError
    from migrator.events import Ended, Event, Noted, PhaseBegun, RoundBegun, RoundDone, Started, Transferred
    from migrator.obstacle import Obstacle
    from migrator.phases import Phase, Report, Round

__all__ = [
    "Checked", "Ended", "Event", "MigrateError", "Noted", "Obstacle", "Options", "Phase", "PhaseBegun", "Report",
    "Round", "RoundBegun", "RoundDone", "Started", "Transferred", "check", "migrate", "rehearse",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load what is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from migrator import api, errors, events, obstacle, phases

    return next(getattr(room, name) for room in (api, events, errors, obstacle, phases) if hasattr(room, name))
