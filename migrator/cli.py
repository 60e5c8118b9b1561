"""The command line: arguments in, exit status out, and what a signal means.

Owns the signal handlers and the exit status. Refuses to know how a migration works: the engine is `migrator.migration`,
how it looks is `migrator.progress`, which options there are is `migrator.arguments`, and which code means what is
`migrator.errors`.

The first word is a PID, or one of the subcommands:

    migrate PID [USER@]HOST[:PORT]          move the process tree
    migrate check PID [USER@]HOST[:PORT]    preflight alone
    migrate rehearse PID [USER@]HOST[:PORT] everything up to the tree held on the target, and back
    migrate explain [CHECK]                 what an obstacle means
    migrate status [ID] [[USER@]HOST[:PORT]] what runs, what is held, what is left over
    migrate recover [ID]                    settle what was cut off
    migrate abort ID                        undo a migration that runs, from another shell
    migrate save PID DIR                    put the process tree on ice, in a directory
    migrate snapshot PID DIR                the same of what has changed, while it runs on
    migrate snapshots DIR                   what is on ice there
    migrate restore DIR [ID]                bring it back from there
    migrate report [ID|FILE]                what a migration was, or the last ones
    migrate drain PLAN.toml                 move everything away that a plan lists
    migrate return PLAN.toml                bring it back
    migrate config [USER@]HOST[:PORT]       the settings in force, and where they come from
    migrate completion SHELL                the completion for a shell
    migrate help [TOPIC]                    more about a topic, an option, a command or an exit code

A signal (INT, TERM, HUP) before COMMIT undoes the migration and exits 128+N; further ones change nothing, since the
undo has to end. From COMMIT on a signal is noted and the migration goes on to its end. Ctrl-Z is refused: a stopped
`migrate` would hold a frozen process.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from agent.protocol import VERSION
from migrator import answers, drain_arguments, errors, progress, terminals, words
from migrator.arguments import parse
from migrator.output import Progress
from migrator.phases import Report

if TYPE_CHECKING:
    from migrator import api, logbook
    from migrator.channel import Channel

T = TypeVar("T")

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = {
    "migrate": ("undoing, the process stays on the source", errors.Interrupted.where),
    "rehearse": ("undoing, the process stays on the source", errors.Interrupted.where),
    "recover": ("stopping", "what the journals say still holds: run it again"),
    "abort": ("stopping", "what was asked for goes on without us: `migrate status` tells how it ended"),
    "save": ("undoing, the process runs on", "undone: the process runs on"),
    "snapshot": ("undoing, the process runs on", "the process runs on, and no snapshot was taken"),
    "restore": ("undoing, the images stay", "nothing runs of it; the images are as they were"),
    "drain": ("undoing what is under way", "what had moved stays there: run it again to go on, or `migrate return`"),
    "return": ("undoing what is under way", "what had come back stays: run it again to go on"),
}
"""What a signal brings about, and how things are afterwards, by command; of all others _STOPPED."""
NO_MEMORY = b"""migrate: no memory left for migrate itself
  hint: migrate recover
  there is one copy at most, and the journals decide which
"""
_STOPPED = ("stopping", "nothing was changed")


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
    show = _chooser(options.command)(
        sys.stdout,
        sys.stderr,
        quiet=options.quiet,
        as_json=options.json,
        verbose=options.verbose,
        terminal=os.environ.get("TERM", ""),
    )

    async def command() -> None:
        status.append(await _run(options, show))

    try:
        asyncio.run(command())
    except RuntimeError:  # no memory for the thread that the loop's end takes: all is done and said by then
        if not status:
            raise
    show.finish()  # outside the loop: Ctrl-C leaves even a reader that never reads on, now that nothing can be lost
    return status[0]


def _chooser(command: str) -> Callable[..., Progress]:
    """What chooses how a command looks."""
    if command not in drain_arguments.PARSERS:
        return progress.choose
    from migrator import overview  # late: for these alone

    return overview.choose


def _ordered(options: argparse.Namespace) -> api.Options:
    """The options of the command line in the words of the API, whose names they have."""
    from migrator import api  # late: bad input is told at once

    names = (field.name for field in dataclasses.fields(api.Options))
    values: dict[str, Any] = {name: getattr(options, name) for name in names}
    return api.Options(**values | {name: tuple(values[name]) for name in ("criu_option", "move_address")})


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
    """Run one command to its end, with a log of it; the exit status. All is said but for what `finish` says."""
    if not hasattr(options, "log_file"):
        return (await _attempt(options, show))[0]
    from migrator import logbook

    dry = options.command == "check" or getattr(options, "dry_run", False)
    try:
        ways = [*_metrics(options, show), *logbook.sinks(options.log_file, system=not dry)]
        book = logbook.Logbook(ways, _about(options))
    except errors.UsageError as error:
        show.failed(error)
        return error.exit_code
    show.listen(book)
    status, failure = await _attempt(options, show)
    book.ended(status, failure)
    book.close()
    return status


def _metrics(options: argparse.Namespace, show: Progress) -> list[logbook.Sink]:
    """Raises UsageError."""
    if not getattr(options, "metrics", ""):
        return []
    from migrator.metrics import Metrics  # late: for a drain alone

    labels = {"command": options.command, "plan": os.path.abspath(options.plan)}
    return [Metrics(options.metrics, labels, show.warn)]


def _about(options: argparse.Namespace) -> dict[str, str | int]:
    """What stands in every line of the log."""
    plan = getattr(options, "plan", "")
    named = {
        "id": getattr(options, "id", ""),
        "pid": getattr(options, "pid", 0),
        "plan": plan and os.path.abspath(plan),
    }
    named |= {"target": getattr(options, "host", ""), "command": options.command}
    return {key: value for key, value in named.items() if value}


async def _attempt(options: argparse.Namespace, show: Progress) -> tuple[int, errors.MigrateError | None]:
    """Run one command to its end: the exit status, and the error if there was one."""
    if options.verbose:
        log = logging.getLogger("migrator.agent")
        log.setLevel(logging.DEBUG)
        log.addHandler(_Details(show))
    try:
        return await _guard(_COMMANDS[options.command](options, show), show, options.command), None
    except errors.MigrateError as error:
        if isinstance(error, (errors.PreflightError, errors.OpenedMeanwhile)) and error.obstacles:
            show.obstacles(error.obstacles, asked=False)
        failure = error
    except MemoryError as error:
        _out_of_memory(asyncio.get_running_loop(), {"exception": error})
        raise
    except Exception as error:
        show.crashed(error)
        failure = errors.MigrateError(f"a bug in migrate {VERSION}: {error!r}", hint="report it, with the traceback")
    show.failed(failure)
    _make_up_report(options, show, failure)
    return failure.exit_code, failure


async def _migrate(options: argparse.Namespace, show: Progress) -> int:
    from migrator import api, attach

    if options.command == "rehearse":
        report = await api.rehearse(options.pid, options.host, _ordered(options), on_event=show.happened)
    else:
        shown = functools.partial(_show, show) if options.terminal == terminals.ATTACH else None
        if shown and not attach.possible():
            raise errors.UsageError("--attach: standard input and output are no terminal", hint="--detach needs none")
        report = await api.migrate(
            options.pid, options.host, _ordered(options), on_event=show.happened, on_terminal=shown
        )
    if show.reported is None:
        show.report(report)
    return errors.EXIT_LEFTOVERS if report.leftovers else errors.EXIT_MIGRATED


async def _show(show: Progress, channel: Channel) -> None:
    """The session after an --attach: our terminal is the tree's meanwhile, and the report stands above it."""
    from migrator import attach

    await asyncio.to_thread(show.hand_over)
    show.warn(await attach.session(channel))


async def _check(options: argparse.Namespace, show: Progress) -> int:
    from migrator import api

    found = await api.check(options.pid, options.host, _ordered(options), on_event=show.happened)
    show.checked(options.pid, options.host, found.obstacles, found.notes)
    stops = sum(obstacle.stops for obstacle in found.obstacles)
    if stops:
        raise errors.PreflightError(
            f"pid {options.pid} cannot be moved to {options.host}: {words.count(stops, 'obstacle')}"
        )
    return errors.EXIT_MIGRATED


async def _operate(options: argparse.Namespace, show: Progress) -> int:
    """`status`, `recover` and `abort`."""
    from migrator import operators

    try:
        return await operators.COMMANDS[options.command](options, show)
    except (errors.UsageError, errors.ConnectError, errors.PreflightError) as error:
        error.where = "nothing was changed"  # only the journals know where the process is
        raise


async def _drain(options: argparse.Namespace, show: Progress) -> int:
    """`drain` and `return`."""
    from migrator import api, drains, overview

    assert isinstance(show, overview.Overview)
    return await drains.run(options, show, lambda each: api.order(each.pid, each.host, _ordered(each)))


async def _ice(options: argparse.Namespace, show: Progress) -> int:
    """`save`, `snapshot`, `snapshots` and `restore`."""
    from migrator import ice_commands

    return await ice_commands.COMMANDS[options.command](options, show)


async def _report(options: argparse.Namespace, show: Progress) -> int:
    from migrator import history, reporting

    kept = history.of_user(os.environ, os.geteuid()).reports
    await reporting.tell(options.report, options.compare, options.plot or "", kept, show)
    return errors.EXIT_MIGRATED


_COMMANDS = {
    "migrate": _migrate,
    "rehearse": _migrate,
    "check": _check,
    "status": _operate,
    "recover": _operate,
    "abort": _operate,
    "save": _ice,
    "snapshot": _ice,
    "snapshots": _ice,
    "restore": _ice,
    "drain": _drain,
    "return": _drain,
    "report": _report,
    **answers.COMMANDS,
}


def _out_of_memory(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Without memory nothing can be undone from here: end at once, and both agents do by themselves what is right."""
    if not isinstance(context.get("exception"), MemoryError):
        loop.default_exception_handler(context)
        return
    os.write(2, NO_MEMORY)
    os._exit(errors.InDoubt.exit_code)


async def _guard(work: Coroutine[Any, Any, T], show: Progress, command: str) -> T:
    """Await the work; the first signal before COMMIT cancels it. Raises errors.Interrupted once all is undone."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    caught: list[signal.Signals] = []
    promise, where = _INTERRUPTED.get(command, _STOPPED)

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

    loop.set_exception_handler(_out_of_memory)
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
    if options.command not in ("migrate", "rehearse") or show.reported is not None:
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
