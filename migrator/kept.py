"""The reports of the last migrations, kept where they were started, for `migrate report`.

Owns the directory `reports` beside `history.json`: one file a migration, `ID.json`, as `--json` prints it, readable by
its owner alone. It is a memory, never a need: a directory that is missing, or a disk that is full, fails nothing; each
file is whole or not there; the oldest go. Refuses to know what stands in a report; that is `migrator.report`'s.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from migrator.phases import Report
from migrator.replacing import replace
from migrator.report import as_json

KEPT = 100
"""So many reports are kept."""
NAME = "reports"
SUFFIX = ".json"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
"""Of a migration."""


class Reports:
    """The reports kept in a directory, which need not exist. None: nothing is kept."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory

    def keep(self, report: Report) -> str:
        """Keep a report, and forget the oldest beyond `KEPT`. Returns "", or why it is not kept; raises no OSError."""
        if self.directory is None:
            return ""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace(self.directory / f"{report.id}{SUFFIX}", as_json(report) + "\n")
            for path in self.paths()[KEPT:]:
                path.unlink(missing_ok=True)
        except OSError as error:
            return f"{self.directory}: {error.strerror}"
        return ""

    def path(self, migration: str) -> Path | None:
        """Where the report of this id is, if it is kept; None for what is no id, and where nothing is kept."""
        if self.directory is None or not ID.fullmatch(migration):
            return None
        return self.directory / f"{migration}{SUFFIX}"

    def paths(self) -> list[Path]:
        """The files, newest first. Raises OSError where the directory is there and can't be read."""
        found = []
        for name in os.listdir(self.directory) if self.directory is not None and self.directory.exists() else ():
            path = Path(self.directory or "", name)
            if name.endswith(SUFFIX) and not name.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # another migration has just forgotten it
                    found.append((path.lstat().st_mtime_ns, path))
        return [path for _, path in sorted(found, reverse=True)]
