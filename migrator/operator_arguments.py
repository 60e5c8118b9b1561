"""The words of the commands on migrations that are there already: `recover`, `status`, `abort`, `report`.

Owns their options. Refuses to do anything: that is `operators` and `reporting`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from migrator import errors, fencing, option_types
from migrator.option_groups import add_agents, add_log, add_output, add_reach
from migrator.parsing import HOST, Parser


def _recover_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate recover",
        description="Settle what was cut off, by the journals of both hosts: undone before COMMIT, completed after it. "
        "Run it on either host, as often as you like.",
    )
    parser.add_argument(
        "id",
        metavar="ID",
        type=option_types.migration_id,
        nargs="?",
        help="the migration, as its error message named it (default: all that are not finished here)",
    )
    _add_other_host(parser)
    for word, when in (
        (
            "--source-is-dead",
            "on the target, when the source is gone for good: run the process here, from what is held",
        ),
        ("--restore-anyway", "on the target, after it rebooted: restore what may have run, or images that may be torn"),
    ):
        parser.add_argument(
            word,
            metavar="ID",
            type=option_types.typed_id,
            nargs="?",
            const="",
            help=f"{when}; says what that risks, and wants the id typed",
        )
    add_agents(parser)
    add_output(parser)
    add_log(parser)
    return parser


def _abort_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate abort",
        description="Undo a migration that is at work, before COMMIT: the `migrate` that runs it is told, and exits "
        "143. Where it is gone, undo what it has left.",
        epilog="exit status: 0 undone; 73 too late: it is past COMMIT.",
    )
    parser.add_argument("id", metavar="ID", type=option_types.migration_id, help="`migrate status` lists them")
    _add_other_host(parser)
    add_reach(parser)
    add_output(parser)
    add_log(parser)
    return parser


def _status_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate status",
        description="What runs, what is held and what is left over; on this host and, where it can be reached, on the "
        "other. Changes nothing.",
        epilog="exit status: 0; with --leftovers 3 where something is left over.",
    )
    parser.add_argument(
        "words",
        metavar="[ID] [[USER@]HOST[:PORT]]",
        nargs="*",
        help="one migration at length (default: those that are not finished, and the newest others); and the other "
        "host, where that is not what the journal says",
    )
    parser.add_argument(
        "--leftovers", action="store_true", help="everything that migrations have left here, and on HOST if it is given"
    )
    add_reach(parser)
    add_output(parser)
    return parser


def _report_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate report",
        description="Show what a migration was: its phases and rounds, the freeze enlarged; or list the last ones. "
        "A migration is named by its id, or by a file with what --json printed.",
        epilog="exit status: 0 shown; 2 there is no such report, or it can't be read, drawn or written.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("report", metavar="ID|FILE", nargs="?", default="", help="default: list those that are kept")
    which.add_argument(
        "--compare", metavar=("A", "B"), nargs=2, default=[], help="two, each by id or file, side by side"
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=option_types.picture, help="draw it into FILE.svg, FILE.png or FILE.pdf as well"
    )
    parser.add_argument("--json", action="store_true", help="one event a line: the reports as --json printed them")
    parser.set_defaults(quiet=False, verbose=False)
    return parser


def _add_other_host(parser: argparse.ArgumentParser) -> None:
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--target",
        dest="other",
        metavar=HOST,
        default="",
        help="how to reach the target now, where that is not what the journal says",
    )
    other.add_argument("--source", dest="other", metavar=HOST, help="the same of the source, when run on the target")


def _tell_apart(options: argparse.Namespace) -> None:
    """`id` and `other` of the words of `status`. Raises UsageError."""
    words = list(options.words)
    options.id = words.pop(0) if words and option_types.GIVEN_ID.fullmatch(words[0]) else ""
    options.other = words.pop(0) if words else ""
    if words or options.other.startswith("-"):
        raise errors.UsageError(f"{words[0] if words else options.other!r}: status takes an ID and a HOST")
    if options.id and options.leftovers:
        raise errors.UsageError("--leftovers are those of all migrations: leave the ID")


def fit_together(options: argparse.Namespace) -> None:
    """Raises UsageError for words that say nothing together."""
    if options.command == "report" and options.plot and not (options.report or options.compare):
        raise errors.UsageError("--plot draws one report, or two with --compare: say which")
    for name in ("metrics", "plot"):
        if getattr(options, "dry_run", False) and getattr(options, name):
            raise errors.UsageError(f"--{name} tells what was done, and --dry-run does nothing")
    if options.command == "status":
        _tell_apart(options)
    if options.command == "recover":
        _, typed = fencing.said(options)
        options.id = options.id or typed


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "recover": _recover_parser,
    "status": _status_parser,
    "abort": _abort_parser,
    "report": _report_parser,
}
