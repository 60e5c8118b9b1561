"""This very agent as another program: pager, maker of a namespace, rsync's two ends, a terminal's holder."""

from __future__ import annotations

import sys
from pathlib import Path

import agent

_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from agent.__main__ import main; sys.exit(main())"


def command(*words: str) -> list[str]:
    """The command line that makes a process play the role that `words` name (see `__main__`)."""
    # the package is a folder, or an archive that was sent here
    place = str(Path(agent.__file__).parent.parent)
    return [sys.executable, "-IS", "-Xutf8", "-c", _START, place, *words]


def for_people(*words: str) -> list[str]:
    """The same as somebody may type it."""
    place = Path(agent.__file__).parent.parent
    return [sys.executable, "-IS", "-Xutf8", str(place), *words] if place.is_file() else command(*words)
