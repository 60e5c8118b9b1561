"""Where an agent keeps things and which criu it drives. Defaults are the product; tests give others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from agent.journal import STATE_DIRECTORY

RUN_DIRECTORY = Path("/run/migrate")


@dataclasses.dataclass(frozen=True)
class Settings:
    """State survives a reboot (journals, logs, hold scripts); run does not (images, sockets, locks)."""

    state: Path = STATE_DIRECTORY
    run: Path = RUN_DIRECTORY
    criu: str = "criu"
    rsync: str = "rsync"

    def images(self, migration: str) -> Path:
        """Where a migration's images lie."""
        return self.run / migration

    def images_on_disk(self, migration: str) -> Path:
        """Where they lie when memory does not suffice."""
        return self.state / migration / "images"

    def place(self, migration: str, *, on_disk: bool, directory: str) -> Path:
        """Where they lie, of what the first record of the migration's journal says."""
        if directory:
            return Path(directory) / migration
        return self.images_on_disk(migration) if on_disk else self.images(migration)

    def socket(self, migration: str) -> Path:
        """Where a migration's bulk streams connect."""
        return self.run / f"{migration}.socket"

    @property
    def locks(self) -> Path:
        """Where tasks are locked."""
        return self.run / "locks"
