"""The command line: arguments in, exit status out, and what a signal means.

Owns argument parsing, the signal handlers and the exit status. Refuses to know how a migration works: the engine is
`migrator.migration`, how it looks is `migrator.progress`, and which code means what is `migrator.errors`.

The first word is a PID, or one of the subcommands:

    migrate PID [USER@]HOST[:PORT]          move the process tree
    migrate check PID [USER@]HOST[:PORT]    preflight alone
    migrate recover [ID]                    settle a migration that was cut off

A signal (INT, TERM, HUP) before COMMIT undoes the migration and exits 128+N; further ones change nothing, since the
undo has to end. From COMMIT on a signal is noted and the migration goes on to its end. Ctrl-Z is refused: a stopped
`migrate` would hold a frozen process.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from agent.protocol import VERSION
from migrator import errors, precopy, progress, words
from migrator.output import Progress
from migrator.phases import Report

if TYPE_CHECKING:
    from migrator import hosts

T = TypeVar("T")

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LARGEST_PID = 4194304
"""PID_MAX_LIMIT of a 64-bit kernel."""
MIGRATION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_INTERRUPTED = {
    "migrate": ("undoing, the process stays on the source", errors.Interrupted.where),
    "check": ("stopping", "nothing was changed"),
    "recover": ("stopping", "what the journals say still holds: run it again"),
}
"""What a signal brings about, and how things are afterwards, by command."""
EPILOG = """\
exit status: 0 migrated; 3 migrated, leftovers named; 2 usage; 10-19 no connection, 20-29 obstacles, 30-49 failed and
undone, 128+N stopped by signal N: the process runs on the source; 70, 71: `migrate recover ID`; 1 a bug.
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, exit 2."""

    def error(self, message: str) -> NoReturn:
        raise errors.UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; the console script's entry."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    status: list[int] = []
    try:
        return _main(argv, status)
    except KeyboardInterrupt:  # outside the loop, where no handler of ours stands: before anything, or after all of it
        return status[0] if status else 128 + signal.SIGINT


def _main(argv: list[str], status: list[int]) -> int:
    try:
        options = parse(argv)
    except errors.UsageError as error:
        show = progress.choose(sys.stdout, sys.stderr, as_json="--json" in argv)
        show.failed(error)
        show.finish()
        return error.exit_code
    show = progress.choose(
        sys.stdout,
        sys.stderr,
        quiet=options.quiet,
        as_json=options.json,
        verbose=options.verbose,
        terminal=os.environ.get("TERM", ""),
    )

    async def command() -> None:
        status.append(await _run(options, show))

    asyncio.run(command())
    show.finish()  # outside the loop: Ctrl-C leaves even a reader that never reads on, now that nothing can be lost
    return status[0]


# --- arguments -------------------------------------------------------------------------------------------------------


def parse(argv: list[str]) -> argparse.Namespace:
    """The options, with `command` set. Raises errors.UsageError; exits 0 by itself for --help and --version."""
    first = argv[0] if argv else ""
    if first in _SUBCOMMANDS:
        return _SUBCOMMANDS[first]().parse_args(argv[1:], argparse.Namespace(command=first))
    return _migrate_parser().parse_args(argv, argparse.Namespace(command="migrate"))


def _migrate_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="migrate",
        usage="migrate [OPTION…] PID [USER@]HOST[:PORT]\n"
        "       migrate check [OPTION…] PID [USER@]HOST[:PORT]\n"
        "       migrate recover [OPTION…] [ID]",
        description="Move a running process tree to another host, with memory, open files and PIDs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"migrate {VERSION}")
    _add_order(parser)
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
        "--on-no-converge",
        choices=("freeze", "fail"),
        default=precopy.Limits.on_no_converge.value,
        help="where the predicted downtime stays above the limit: move it all the same, or leave it where it is "
        "(default: %(default)s)",
    )
    return parser


def _check_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="migrate check",
        description="Say everything that stands in the way of moving a process tree; change nothing.",
    )
    _add_order(parser)
    limits = precopy.Limits()
    parser.set_defaults(
        max_downtime=limits.max_downtime, max_rounds=limits.max_rounds, on_no_converge=limits.on_no_converge
    )
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


_SUBCOMMANDS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "check": _check_parser,
    "recover": _recover_parser,
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
        "--require-precopy", action="store_true", help="refuse where the source cannot track dirty memory"
    )
    parser.add_argument(
        "--compress",
        choices=("auto", "zstd", "none"),
        default="auto",
        help="compress what travels: where it pays, always, or never (default: %(default)s)",
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


def _seconds(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{word!r} is no time in seconds")
    return value


def _migration_id(word: str) -> str:
    if not MIGRATION_ID.fullmatch(word):
        raise argparse.ArgumentTypeError(f"{word!r} is no migration's id")
    return word


def _order(options: argparse.Namespace) -> hosts.Order:
    """What the engine is asked for. Raises errors.UsageError for a host that makes no sense."""
    from migrator import hosts, plan, transport  # late: bad input is told at once, without loading SSH

    return hosts.Order(
        pid=options.pid,
        target=transport.parse_target(options.host),
        wishes=plan.Wishes(options.copy_files, options.require_precopy, options.resume == "instant", options.compress),
        limits=precopy.Limits(options.max_downtime, options.max_rounds, precopy.OnNoConverge(options.on_no_converge)),
        sudo=options.sudo,
        criu=options.criu,
    )


# --- running ---------------------------------------------------------------------------------------------------------


class _Details(logging.Handler):
    """What the agents log, as lines of -v: each criu command as an admin could paste it."""

    def __init__(self, show: Progress) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a line on."""
        self._show.detail(record.getMessage())


async def _run(options: argparse.Namespace, show: Progress) -> int:
    """Run one command to its end; the exit status. Everything is said but for what `finish` says."""
    if options.verbose:
        log = logging.getLogger("migrator.agent")
        log.setLevel(logging.DEBUG)
        log.addHandler(_Details(show))
    work = {"migrate": _migrate, "check": _check, "recover": _recover}[options.command]
    try:
        return await _guard(work(options, show), show, options.command)
    except errors.MigrateError as error:
        if isinstance(error, errors.PreflightError) and error.obstacles:
            show.obstacles(error.obstacles, asked=False)
        failure = error
    except Exception as error:
        show.crashed(error)
        failure = errors.MigrateError(f"a bug in migrate {VERSION}: {error!r}", hint="report it, with the traceback")
    show.failed(failure)
    _make_up_report(options, show, failure)
    return failure.exit_code


async def _migrate(options: argparse.Namespace, show: Progress) -> int:
    from migrator import migration

    report = await migration.migrate(_order(options), show)
    if show.reported is None:
        show.report(report)
    return errors.EXIT_LEFTOVERS if report.leftovers else errors.EXIT_MIGRATED


async def _check(options: argparse.Namespace, show: Progress) -> int:
    from migrator import migration

    chosen, obstacles = await migration.check(_order(options), show)
    for note in chosen.notes:
        show.note(note)
    show.checked(options.pid, options.host, obstacles)
    stops = sum(obstacle.stops for obstacle in obstacles)
    if stops:
        raise errors.PreflightError(
            f"pid {options.pid} cannot be moved to {options.host}: {words.count(stops, 'obstacle')}"
        )
    return errors.EXIT_MIGRATED


async def _recover(options: argparse.Namespace, show: Progress) -> int:
    from migrator import recovery

    migration_id = options.id or ""
    try:
        outcome = await recovery.recover(migration_id, options.target, show, sudo=options.sudo, criu=options.criu)
    except (errors.UsageError, errors.ConnectError, errors.PreflightError) as error:
        error.where = "nothing was changed"  # only the journals know where the process is
        raise
    show.recovered(migration_id, outcome.course.value, outcome.host, outcome.pid, outcome.text)
    return errors.EXIT_MIGRATED


async def _guard(work: Coroutine[Any, Any, T], show: Progress, command: str) -> T:
    """Await the work; the first signal before COMMIT cancels it. Raises errors.Interrupted once all is undone."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    caught: list[signal.Signals] = []
    promise, where = _INTERRUPTED[command]

    def stop(number: signal.Signals) -> None:
        if task.done():
            return
        if show.committed:
            show.warn(f"{number.name}: past the point of no return, finishing")
        elif caught:
            show.warn(f"{number.name}: already {promise}")
        else:
            caught.append(number)
            show.warn(f"{number.name}: {promise}")
            task.cancel()

    for number in STOPPING:
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGTSTP, show.warn, "cannot be suspended; Ctrl-C stops it")
    try:
        return await task
    except asyncio.CancelledError:
        if not caught:
            raise
        interrupted = errors.Interrupted(caught[0], f"stopped by {caught[0].name}")
        interrupted.where = where
        raise interrupted from None


def _make_up_report(options: argparse.Namespace, show: Progress, error: errors.MigrateError) -> None:
    """The report of a migration that ended before the engine had one: scripts find the outcome in one place."""
    if options.command != "migrate" or show.reported is not None:
        return
    outcomes: dict[type[errors.MigrateError], str] = {
        errors.NotResumed: "not-resumed",
        errors.InDoubt: "in-doubt",
        errors.MigrateError: "unknown",
    }
    show.report(
        Report(
            id="",
            outcome=outcomes.get(type(error), "undone"),
            pid=options.pid,
            target_pid=0,
            source=socket.gethostname(),
            target=options.host,
            rounds=(),
            downtime_seconds=0.0,
            freeze_seconds=0.0,
            restore_seconds=0.0,
            total_seconds=show.elapsed(),
            bytes=0,
            wire_bytes=0,
        )
    )
