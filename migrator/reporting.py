"""`migrate report`: which report is meant, and what is shown of it.

Owns the finding of reports, by id among those that are kept or in a file, and what can be wrong with either. How they
look is `chart`'s, `comparing`'s and `picture`'s.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from migrator import errors, picture
from migrator.kept import Reports
from migrator.output import Progress
from migrator.phases import Report
from migrator.report import LARGEST, NoReport, parse

PIECE = 1 << 20
WAIT = 0.02
"""Seconds between two looks at a pipe."""


async def tell(word: str, compared: Sequence[str], plot: str, reports: Reports, show: Progress) -> None:
    """One report, two side by side, or the list of those that are kept; `plot` is a file for a picture of it, or "".

    Raises UsageError for what can't be found, read, drawn or written.
    """
    if not word and not compared:
        show.listed(await _kept(reports, show), str(reports.directory or ""))
        return
    found = [await find(each, reports) for each in compared or [word]]
    show.pictured(found)
    if plot:
        try:
            Path(plot).write_bytes(picture.render(found, Path(plot).suffix[1:]))
        except picture.NoMatplotlib as error:
            raise errors.UsageError(f"--plot: {error}") from None
        except OSError as error:
            raise errors.UsageError(f"--plot: {plot}: {error.strerror}") from None
        show.plotted(plot)


async def find(word: str, reports: Reports) -> Report:
    """The report with this id, or in this file. Raises UsageError."""
    path = reports.path(word)
    if path is None or not path.exists():
        path = Path(word)
    try:
        return parse(await _content(path))
    except FileNotFoundError:
        kept = f"in {reports.directory}" if reports.directory else "anywhere"
        raise errors.UsageError(
            f"no report {word} is kept {kept}, and no file is there: `migrate report` lists them"
        ) from None
    except OSError as error:
        raise errors.UsageError(f"{path}: {error.strerror}") from None
    except NoReport as error:
        raise errors.UsageError(f"{path}: {error}") from None


async def _kept(reports: Reports, show: Progress) -> list[Report]:
    """Those that are kept, newest first; what is there and is no report is named and left out."""
    found = []
    try:
        paths = reports.paths()
    except OSError as error:
        raise errors.UsageError(f"{reports.directory}: {error.strerror}") from None
    for path in paths:
        try:
            found.append(parse(await _content(path)))
        except FileNotFoundError:  # a migration that ended just now has forgotten it
            continue
        except (OSError, NoReport) as error:
            show.warn(f"{path}: {error.strerror if isinstance(error, OSError) else error}")
    return found


async def _content(path: Path) -> str:
    """A file's text, or what comes through a pipe until its end; a signal is heard meanwhile.

    Raises OSError, and NoReport for what is no text or far too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    content = bytearray()
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise NoReport("a directory")
        while True:
            try:
                piece = os.read(descriptor, PIECE)
            except BlockingIOError:
                await asyncio.sleep(WAIT)
                continue
            content += piece
            if len(content) > LARGEST:
                raise NoReport("too large for a report")
            if not piece:
                return content.decode()
    except UnicodeDecodeError:
        raise NoReport("no text") from None
    finally:
        os.close(descriptor)
