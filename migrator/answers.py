"""Commands that only answer: `explain`, `config`, `completion`, `help`. Their parsers, and what each says.

Owns nothing of what is said: that is `catalogue`, `config`, `completion` and `manual`. Refuses to reach a host.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine
from typing import Any

from migrator import catalogue, errors, option_types, words
from migrator.output import Progress
from migrator.parsing import HOST, Parser

SHELLS = ("bash", "zsh", "fish")


def _explain_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate explain", description="Say what an obstacle means, why it stands in the way, and what to do."
    )
    parser.add_argument(
        "id", metavar="CHECK", type=option_types.kind, nargs="?", help="its id (default: list all of them)"
    )
    parser.add_argument("--json", action="store_true", help="one event a line")
    parser.set_defaults(quiet=False, verbose=False)
    return parser


def _config_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate config", description="Show the settings in force, and where each comes from; changes nothing."
    )
    parser.add_argument("host", metavar=HOST, nargs="?", default="", help="for this target (default: for any)")
    parser.add_argument("--json", action="store_true", help="one event a line")
    parser.set_defaults(quiet=False, verbose=False)
    return parser


def _completion_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate completion",
        description='Print the completion for a shell. For this session: eval "$(migrate completion bash)".',
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")
    parser.set_defaults(quiet=False, verbose=False, json=False)
    return parser


def _help_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate help", description="Say more: of a topic, an option, a command, a check or an exit code."
    )
    parser.add_argument("topic", metavar="TOPIC", nargs="?", default="", help="what about (default: what there is)")
    parser.set_defaults(quiet=False, verbose=False, json=False)
    return parser


async def _explain(options: argparse.Namespace, show: Progress) -> int:
    kinds = [catalogue.KINDS[options.id]] if options.id else list(catalogue.KINDS.values())
    show.explained(kinds, at_length=bool(options.id))
    return errors.EXIT_MIGRATED


async def _help(options: argparse.Namespace, show: Progress) -> int:
    from migrator import arguments, manual  # late: arguments has our parsers

    show.told(manual.answer(options.topic, arguments.commands()), ())
    return errors.EXIT_MIGRATED


async def _config(options: argparse.Namespace, show: Progress) -> int:
    from migrator import arguments

    files, settings = arguments.in_force(options.host)
    events = [("setting", {"key": key, "value": each.raw, "where": each.where}) for key, each in settings.items()]
    show.told(words.configuration(files, settings), events)
    return errors.EXIT_MIGRATED


async def _completion(options: argparse.Namespace, show: Progress) -> int:
    from migrator import arguments, completion

    show.told(completion.script(options.shell, arguments.commands()), ())
    return errors.EXIT_MIGRATED


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "explain": _explain_parser,
    "config": _config_parser,
    "completion": _completion_parser,
    "help": _help_parser,
}
COMMANDS: dict[str, Callable[[argparse.Namespace, Progress], Coroutine[Any, Any, int]]] = {
    "explain": _explain,
    "config": _config,
    "completion": _completion,
    "help": _help,
}
