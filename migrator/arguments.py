"""The words of the command line, and what is wrong with them.

Owns every option, its default and its help. Refuses to do anything: `cli` does, with what comes out here.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from agent.protocol import VERSION
from migrator import bandwidth, catalogue, criu_options, errors, precopy, terminals

LARGEST_PID = 4194304
"""PID_MAX_LIMIT of a 64-bit kernel."""
MOST_AT_ONCE = 64
"""Migrations of a drain that are under way at the same time."""
MIGRATION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
EPILOG = """\
exit status: 0 migrated; 3 migrated, leftovers named; 2 usage; 10-19 no connection, 20-29 obstacles, 30-49 failed and
undone, 128+N stopped by signal N: the process runs on the source; 70, 71: `migrate recover ID`; 1 a bug.
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, exit 2."""

    def error(self, message: str) -> NoReturn:
        raise errors.UsageError(f"{message} (see {self.prog} --help)")


def parse(argv: list[str]) -> argparse.Namespace:
    """The options, with `command` set. Raises errors.UsageError; exits 0 by itself for --help and --version."""
    first = argv[0] if argv else ""
    if first in _SUBCOMMANDS:
        options = _SUBCOMMANDS[first]().parse_args(argv[1:], argparse.Namespace(command=first))
    else:
        options = _migrate_parser().parse_args(argv, argparse.Namespace(command="migrate"))
    _fit_together(options)
    return options


def order_options() -> dict[str, bool]:
    """The long options of a migration, without their dashes, and whether one is a flag, which has no value."""
    return {
        word.removeprefix("--"): action.nargs == 0
        for action in _migrate_parser()._actions
        for word in action.option_strings
        if word.startswith("--") and "=" not in word
    }


def parse_option(words: Sequence[str]) -> None:
    """See whether the command line of a migration takes these words alone. Raises errors.UsageError."""
    _migrate_parser().parse_args([*words, "1", "host"])


def _fit_together(options: argparse.Namespace) -> None:
    """Raises UsageError for options that say nothing together."""
    if not hasattr(options, "transport"):
        return
    if options.overwrite_files and not options.copy_files:
        raise errors.UsageError("--overwrite-files is for --copy-files")
    for name in ("rsh", "images_dir"):
        if getattr(options, name) and options.transport != "rsync":
            raise errors.UsageError(f"--{name.replace('_', '-')} is for --transport rsync")
    if options.terminal == terminals.ATTACH and options.json:
        raise errors.UsageError("--attach shows a terminal, --json events: --detach goes with it")
    if options.shared and (options.images_dir or options.rsh):
        raise errors.UsageError("with --shared nothing is sent: leave --images-dir and --rsh")


def _migrate_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="migrate",
        usage="migrate [OPTION…] PID [USER@]HOST[:PORT]\n"
        "       migrate check [OPTION…] PID [USER@]HOST[:PORT]\n"
        "       migrate rehearse [OPTION…] PID [USER@]HOST[:PORT]\n"
        "       migrate explain [--json] [CHECK]\n"
        "       migrate recover [OPTION…] [ID]\n"
        "       migrate drain [OPTION…] PLAN.toml\n"
        "       migrate return [OPTION…] PLAN.toml",
        description="Move a running process tree to another host, with memory, open files and PIDs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"migrate {VERSION}")
    _add_order(parser)
    _add_rounds(parser)
    return parser


def _rehearse_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="migrate rehearse",
        description="Go through a migration up to the tree held on the target, then undo it: the process is paused for "
        "that long, and no more. Says how long it was, how much travelled, and what only a real dump and restore find.",
        epilog="exit status: 0 it would have gone well; else as for a migration that failed.",
    )
    _add_order(parser)
    _add_rounds(parser)
    return parser


def _add_rounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-downtime",
        metavar="SECONDS",
        type=_seconds,
        default=precopy.Limits.max_downtime,
        help="freeze when the predicted downtime is at most this (default: %(default)s)",
    )
    parser.add_argument(
        "--max-rounds",
        metavar="N",
        type=_count,
        default=precopy.Limits.max_rounds,
        help="pre-copy rounds at most; 0 moves everything in the freeze (default: %(default)s)",
    )
    parser.add_argument(
        "--bandwidth",
        metavar="RATE",
        type=_rate,
        default=0.0,
        help="bytes a second on the wire at most, until the freeze: 20M, 1.5G (1024s), 20MB (1000s), as rsync has them",
    )


def _check_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="migrate check",
        description="Say everything that stands in the way of moving a process tree; change nothing.",
    )
    _add_order(parser)
    limits = precopy.Limits()
    parser.set_defaults(
        bandwidth=0.0,
        max_downtime=limits.max_downtime,
        max_rounds=limits.max_rounds,
    )
    return parser


def _explain_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="migrate explain", description="Say what an obstacle means, why it stands in the way, and what to do."
    )
    parser.add_argument("id", metavar="CHECK", type=_kind, nargs="?", help="its id (default: list all of them)")
    parser.add_argument("--json", action="store_true", help="one event a line")
    parser.set_defaults(quiet=False, verbose=False)
    return parser


def _recover_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="migrate recover",
        description="Settle a migration that was cut off, by the journals of both hosts. Run it on the source.",
    )
    parser.add_argument(
        "id",
        metavar="ID",
        type=_migration_id,
        nargs="?",
        help="the migration, as its error message named it (default: the newest one that is not finished)",
    )
    parser.add_argument(
        "--target",
        metavar="[USER@]HOST[:PORT]",
        default="",
        help="how to reach the target now, where that is not what the journal says",
    )
    _add_agents(parser)
    _add_output(parser)
    return parser


def _drain_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="migrate drain",
        description="Move everything away from this host that a plan lists, in its order. Run again after a failure or "
        "Ctrl-C it goes on where it stood.",
    )
    _add_plan(parser)
    parser.add_argument("--dry-run", action="store_true", help="every preflight, on all targets, in one table; no more")
    parser.set_defaults(overwrite_files=False)
    return parser


def _return_parser() -> argparse.ArgumentParser:
    parser = _Parser(
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
        type=_seconds,
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
    _add_output(parser)


_SUBCOMMANDS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "check": _check_parser,
    "rehearse": _rehearse_parser,
    "explain": _explain_parser,
    "recover": _recover_parser,
    "drain": _drain_parser,
    "return": _return_parser,
}


def _add_order(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pid", metavar="PID", type=_pid, help="root of the process tree on this host")
    parser.add_argument("host", metavar="[USER@]HOST[:PORT]", help="where to; ~/.ssh/config applies")
    parser.add_argument(
        "--copy-files",
        action="store_true",
        help="copy regular files that the tree writes to, or that are missing on the target",
    )
    parser.add_argument(
        "--overwrite-files",
        action="store_true",
        help="with --copy-files: also those that differ on the target; what was there is put back if the move fails",
    )
    parser.add_argument(
        "-n",
        "--namespaces",
        dest="namespaces",
        action="store_const",
        const="always",
        default="never",
        help="restore into a PID namespace of its own on the target: for PIDs that are taken there",
    )
    # found as it stands before a word is parted at its =: with an optional value -n would swallow the PID behind it
    parser.add_argument(
        "--namespaces=auto",
        dest="namespaces",
        action="store_const",
        const="auto",
        help="the same, if preflight finds that a PID is taken there",
    )
    parser.add_argument(
        "--verify",
        choices=("size", "hash"),
        default="size",
        help="how files that should be the same on both hosts are compared: by size (and build id), or by content "
        "where the size agrees and the time differs (default: %(default)s)",
    )
    parser.add_argument(
        "--require-precopy", action="store_true", help="refuse where the source cannot track dirty memory"
    )
    parser.add_argument(
        "--on-no-converge",
        choices=[each.value for each in precopy.OnNoConverge],
        default=precopy.Limits.on_no_converge.value,
        help="where the predicted downtime stays above the limit: move it all the same, leave it where it is, "
        "or slow it down first (default: %(default)s)",
    )
    parser.add_argument(
        "--compress",
        choices=("auto", "zstd", "none"),
        default="auto",
        help="compress what travels: where it pays, always, or never (default: %(default)s)",
    )
    parser.add_argument(
        "--transport",
        choices=("stream", "rsync"),
        default="stream",
        help="pages from criu to criu, or image directories by rsync, over your own ssh (default: %(default)s)",
    )
    parser.add_argument("--rsh", metavar="COMMAND", default="", help="with --transport rsync: its remote shell")
    parser.add_argument(
        "--images-dir",
        metavar="PATH",
        type=_directory,
        default="",
        help="with --transport rsync: where the image directories lie here",
    )
    parser.add_argument(
        "--shared",
        metavar="PATH",
        type=_directory,
        default="",
        help="a directory that both hosts see, as on NFS: the images are written there, and nothing is sent",
    )
    parser.add_argument(
        "--criu-option",
        metavar="OPT",
        type=_criu_option,
        action="append",
        default=[],
        help="NAME or NAME=VALUE, an option of criu's, for both hosts (dump:OPT and restore:OPT: for one of them); not "
        "what would break the commit; may be given again",
    )
    terminal = parser.add_mutually_exclusive_group()
    terminal.add_argument(
        "--attach",
        dest="terminal",
        action="store_const",
        const=terminals.ATTACH,
        default="",
        help="the process's terminal becomes this one, over the SSH session; at the session's end it gets SIGHUP",
    )
    terminal.add_argument(
        "--detach",
        dest="terminal",
        action="store_const",
        const=terminals.DETACH,
        help="its terminal becomes one that is held on the target; the command that shows it is printed",
    )
    _add_agents(parser)
    _add_output(parser)


def _add_agents(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        choices=("instant", "eager"),
        default="instant",
        help="run before memory is filled in, or after (default: %(default)s)",
    )
    parser.add_argument("--sudo", action="store_true", help="become root on the target with sudo -n")
    parser.add_argument("--criu", metavar="PATH", default="", help="the criu program on both hosts (default: by PATH)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quiet", action="store_true", help="only the last line, and errors")
    how.add_argument("--json", action="store_true", help="one event a line; the last one is the report")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every criu command, and measurements")


def _pid(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 20 and 0 < int(word) <= LARGEST_PID):
        raise argparse.ArgumentTypeError(f"{word!r} is no process id")
    return int(word)


def _count(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 7):
        raise argparse.ArgumentTypeError(f"{word!r} is no number of rounds")
    return int(word)


def _parallel(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 4 and 0 < int(word) <= MOST_AT_ONCE):
        raise argparse.ArgumentTypeError(f"{word!r} is not between 1 and {MOST_AT_ONCE}")
    return int(word)


def _seconds(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{word!r} is no time in seconds")
    return value


def _rate(word: str) -> float:
    try:
        return bandwidth.parse_rate(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _directory(word: str) -> str:
    if word and not word.startswith("/"):
        raise argparse.ArgumentTypeError(f"{word!r} is no absolute path")
    return word.rstrip("/") or word[:1]


def _kind(word: str) -> str:
    if word not in catalogue.KINDS:
        near = ", ".join(catalogue.nearest(word))
        hint = f": is it {near}?" if near else ": `migrate explain` lists them"
        raise argparse.ArgumentTypeError(f"{word!r} is no check{hint}")
    return word


def _criu_option(word: str) -> criu_options.CriuOption:
    try:
        return criu_options.parse(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _migration_id(word: str) -> str:
    if not MIGRATION_ID.fullmatch(word):
        raise argparse.ArgumentTypeError(f"{word!r} is no migration's id")
    return word
