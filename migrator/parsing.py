"""Our argument parser, and what is asked of any: what was given, and how to take it back.

Owns the mechanics of argparse, whose errors become ours and whose help one screen. Refuses to know an option.
"""

from __future__ import annotations

import argparse
from collections.abc import Container, Sequence
from typing import NoReturn

from migrator import errors

HOST = "[USER@]HOST[:PORT]"
"""Metavar of what names a target."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, exit 2; and whose help is one screen."""

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise errors.UsageError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        """What --help shows."""
        from migrator import arguments, manual  # late: reading the parsers is for those who ask

        known = arguments.commands()
        name = self.prog.removeprefix(manual.MAIN).strip() or manual.MAIN
        return manual.screen(known[name], known if name == manual.MAIN else {})


def given(parser: argparse.ArgumentParser, words: Sequence[str]) -> set[str]:
    """The names of what these words say themselves. The parser is of no use for anything else then."""
    for action in parser._actions:
        if action.option_strings:
            action.default = argparse.SUPPRESS
    parser._defaults.clear()
    return set(vars(parser.parse_args(words)))


def add_opposites(parser: argparse.ArgumentParser, but_for: Container[str]) -> None:
    """--no-FLAG for each flag but for these, so that what a configuration sets can be taken back."""
    for action in list(parser._actions):
        name = action.option_strings[-1].partition("=")[0].removeprefix("--") if action.option_strings else ""
        if name and action.nargs == 0 and name not in but_for and f"--no-{name}" not in parser._option_string_actions:
            parser.add_argument(
                f"--no-{name}", dest=action.dest, action="store_const", const=action.default, default=action.default,
                help=argparse.SUPPRESS,
            )  # fmt: skip
