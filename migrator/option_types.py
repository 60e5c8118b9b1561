"""What an option's value may be: words of the command line into values, or into one line that says what is wrong."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence

from migrator import bandwidth, catalogue, criu_options, floating
from migrator.kept import ID as MIGRATION_ID

LARGEST_PID = 4194304
"""PID_MAX_LIMIT of a 64-bit kernel."""
PICTURES = (".svg", ".png", ".pdf")
TEXT = ".txt"
GIVEN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
"""An id as `migrate` gives it: where a host may stand as well, that tells which of the two a word is."""


def pid(word: str) -> int:
    """A process id. Raises ArgumentTypeError."""
    if not (word.isascii() and word.isdigit() and len(word) < 20 and 0 < int(word) <= LARGEST_PID):
        raise argparse.ArgumentTypeError(f"{word!r} is no process id")
    return int(word)


def count(word: str) -> int:
    """A number of rounds. Raises ArgumentTypeError."""
    if not (word.isascii() and word.isdigit() and len(word) < 7):
        raise argparse.ArgumentTypeError(f"{word!r} is no number of rounds")
    return int(word)


def seconds(word: str) -> float:
    """A time. Raises ArgumentTypeError."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{word!r} is no time in seconds")
    return value


def lease(word: str) -> float:
    """A time that may be none at all. Raises ArgumentTypeError."""
    return 0.0 if word == "0" else seconds(word)


def rate(word: str) -> float:
    """Bytes a second. Raises ArgumentTypeError."""
    try:
        return bandwidth.parse_rate(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def directory(word: str) -> str:
    """An absolute path. Raises ArgumentTypeError."""
    if word and not word.startswith("/"):
        raise argparse.ArgumentTypeError(f"{word!r} is no absolute path")
    return word.rstrip("/") or word[:1]


def ice(word: str) -> str:
    """A directory of processes on ice, as an absolute path. Raises ArgumentTypeError."""
    if not word or "\0" in word:
        raise argparse.ArgumentTypeError("no directory is named")
    return os.path.abspath(word)


def picture(word: str, kinds: Sequence[str] = PICTURES) -> str:
    """A file that a picture can be written into. Raises ArgumentTypeError."""
    if os.path.splitext(word)[1] not in kinds:
        raise argparse.ArgumentTypeError(f"{word!r} ends in none of {', '.join(kinds)}")
    return word


def picture_or_text(word: str) -> str:
    """The same, or a file for one made of characters. Raises ArgumentTypeError."""
    return picture(word, (*PICTURES, TEXT))


def kind(word: str) -> str:
    """The id of an obstacle. Raises ArgumentTypeError."""
    if word not in catalogue.KINDS:
        near = ", ".join(catalogue.nearest(word))
        hint = f": is it {near}?" if near else ": `migrate explain` lists them"
        raise argparse.ArgumentTypeError(f"{word!r} is no check{hint}")
    return word


def criu_option(word: str) -> criu_options.CriuOption:
    """An option of criu's. Raises ArgumentTypeError."""
    try:
        return criu_options.parse(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def moving_address(word: str) -> floating.Wanted:
    """An address that moves along. Raises ArgumentTypeError."""
    try:
        return floating.parse(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def typed_id(word: str) -> str:
    """The id of a migration, or none yet. Raises ArgumentTypeError."""
    return word and migration_id(word)


def migration_id(word: str) -> str:
    """The id of a migration. Raises ArgumentTypeError."""
    if not MIGRATION_ID.fullmatch(word):
        raise argparse.ArgumentTypeError(f"{word!r} is no migration's id")
    return word
