"""The words of `drain` and `return`: many migrations by a plan.

Owns their options. Refuses to do anything: that is `drains`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from migrator import option_types
from migrator.option_groups import add_log, add_output
from migrator.parsing import Parser

MOST_AT_ONCE = 64
"""Migrations of a drain that are under way at the same time."""


def _drain_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate drain",
        description="Move everything away from this host that a plan lists, in its order. Run again after a failure or "
        "Ctrl-C it goes on where it stood.",
    )
    _add_plan(parser)
    parser.add_argument("--dry-run", action="store_true", help="every preflight, on all targets, in one table; no more")
    parser.set_defaults(overwrite_files=False)
    return parser


def _return_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate return",
        description="Bring back to this host what `migrate drain` has moved away by the same plan, the last first.",
    )
    _add_plan(parser)
    parser.add_argument(
        "--overwrite-files",
        action="store_true",
        help="with copy-files in the plan: also over the older copies that were left here",
    )
    parser.set_defaults(dry_run=False)
    return parser


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="a TOML file; README has an example")
    parser.add_argument(
        "--parallel",
        metavar="N",
        type=_parallel,
        default=0,
        help="so many at once (default: the plan's, or 1)",
    )
    parser.add_argument(
        "--max-total-downtime",
        metavar="SECONDS",
        type=option_types.seconds,
        default=0.0,
        help="begin none any more when the downtimes of all together reach this; none may take more than is left of it",
    )
    failing = parser.add_mutually_exclusive_group()
    failing.add_argument(
        "--stop-on-failure", dest="keep_going", action="store_false", default=None,
        help="begin none any more after one has failed (the default)",
    )  # fmt: skip
    failing.add_argument(
        "--keep-going", dest="keep_going", action="store_true", help="go on with those that do not wait for it"
    )
    parser.add_argument("--report", metavar="FILE", default="", help="what became of each, as JSON")
    parser.add_argument(
        "--plot", metavar="FILE", type=option_types.picture_or_text, default=None,
        help="draw it into FILE.svg, FILE.png, FILE.pdf or, in characters, FILE.txt: each process on one time axis",
    )  # fmt: skip
    parser.add_argument(
        "--metrics", metavar="FILE", default="", help="what was done, for node_exporter's textfile collector"
    )
    add_output(parser)
    add_log(parser)


def _parallel(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 4 and 0 < int(word) <= MOST_AT_ONCE):
        raise argparse.ArgumentTypeError(f"{word!r} is not between 1 and {MOST_AT_ONCE}")
    return int(word)


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {"drain": _drain_parser, "return": _return_parser}
