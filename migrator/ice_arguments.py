"""The words of the commands on processes on ice: `save`, `restore`… Refuses to do anything: `ice_commands` does."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from migrator import option_types, terminals
from migrator.option_groups import add_log, add_output
from migrator.parsing import Parser

_DIRECTORY = "DIR"


def _save_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate save",
        description="Put a running process tree on ice: its images into a directory, from which `migrate restore` "
        "brings it back on this host, also after a reboot. It ends once all of it is on disk.",
        epilog="exit status: 0, 3: it is on ice; 1, 70-72: `migrate recover`; any other: it runs on.",
    )
    parser.add_argument("pid", metavar="PID", type=option_types.pid, help="root of the process tree on this host")
    parser.add_argument(
        "directory", metavar=_DIRECTORY, type=option_types.ice, help="where to; it gets a directory of its own in there"
    )
    parser.add_argument(
        "--unit",
        action="store_true",
        help="save its systemd unit: that ends as if it were stopped; restored, the process runs in a scope "
        "migrated-NAME.scope with the unit's limits",
    )
    parser.add_argument(
        "--detach",
        dest="terminal",
        action="store_const",
        const=terminals.DETACH,
        default="",
        help="it leaves its terminal behind, and gets a new one when it is restored",
    )
    _add_rest(parser)
    return parser


def _snapshot_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate snapshot",
        description="Put a running process tree on ice as it is, and let it run on: all of it, and from the second "
        "time on what has changed since, where the kernel tracks dirty memory. `migrate restore` takes any of them.",
        epilog="exit status: 0: it is on ice; any other: it is not. It runs on.",
    )
    parser.add_argument("pid", metavar="PID", type=option_types.pid, help="root of the process tree on this host")
    parser.add_argument("directory", metavar=_DIRECTORY, type=option_types.ice, help="where to: the same one each time")
    parser.add_argument(
        "--detach",
        dest="terminal",
        action="store_const",
        const=terminals.DETACH,
        default="",
        help="it has a terminal, and gets a new one when it is restored",
    )
    _add_rest(parser)
    return parser


def _snapshots_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate snapshots",
        description="List what is on ice in a directory: when each was put there, its size, what it adds to, and why "
        "it could not be restored now. Changes nothing.",
    )
    parser.add_argument("directory", metavar=_DIRECTORY, type=option_types.ice, help="the directory")
    parser.add_argument("--json", action="store_true", help="one event a line")
    parser.set_defaults(quiet=False, verbose=False)
    return parser


def _restore_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate restore",
        description="Bring a process back from ice. Its images are verified first and stay as they are, so it may be "
        "done again once it has ended; never while it runs.",
        epilog="exit status: 0, 3: it runs; 70, 71: `migrate recover`; any other: nothing of it runs.",
    )
    parser.add_argument("directory", metavar=_DIRECTORY, type=option_types.ice, help="where `migrate save` has put it")
    parser.add_argument(
        "id",
        metavar="ID",
        type=option_types.migration_id,
        nargs="?",
        help="which of them: the name of a directory in there (default: the newest)",
    )
    parser.add_argument(
        "-n",
        "--namespaces",
        dest="namespaces",
        action="store_const",
        const="always",
        default="never",
        help="restore into a PID namespace of its own: for PIDs that are taken",
    )
    parser.add_argument(
        "--namespaces=auto",
        dest="namespaces",
        action="store_const",
        const="auto",
        help="the same, if preflight finds that a PID is taken",
    )
    terminal = parser.add_mutually_exclusive_group()
    terminal.add_argument(
        "--attach",
        dest="terminal",
        action="store_const",
        const=terminals.ATTACH,
        default="",
        help="the process's terminal becomes this one; at the session's end it gets SIGHUP",
    )
    terminal.add_argument(
        "--detach",
        dest="terminal",
        action="store_const",
        const=terminals.DETACH,
        help="its terminal becomes one that is held here; the command that shows it is printed",
    )
    _add_rest(parser)
    return parser


def _add_rest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--criu", metavar="PATH", default="", help="the criu program (default: by PATH)")
    add_output(parser)
    add_log(parser)


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "save": _save_parser,
    "snapshot": _snapshot_parser,
    "snapshots": _snapshots_parser,
    "restore": _restore_parser,
}
