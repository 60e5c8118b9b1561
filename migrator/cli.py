"""The command line: arguments in, exit status out, and what a signal means.

Owns the signal handlers and the exit status. Refuses to know how a migration works: the engine is `migrator.migration`,
how it looks is `migrator.progress`, which options there are is `migrator.arguments`, and which code means what is
`migrator.errors`.

The first word is a PID, or one of the subcommands:

    migrate PID [USER@]HOST[:PORT]          move the process tree
    migrate check PID [USER@]HOST[:PORT]    preflight alone
    migrate rehearse PID [USER@]HOST[:PORT] everything up to the tree held on the target, and back
    migrate explain [CHECK]                 what an obstacle means
    migrate recover [ID]                    settle a migration that was cut off
    migrate drain PLAN.toml                 move everything away that a plan lists
    migrate return PLAN.toml                bring it back

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
from migrator import catalogue, errors, precopy, progress, words
from migrator.arguments import parse
from migrator.output import Progress
from migrator.phases import Report

if TYPE_CHECKING:
    from migrator import hosts
    from migrator.channel import Channel

T = TypeVar("T")

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = {
    "migrate": ("undoing, the process stays on the source", errors.Interrupted.where),
    "rehearse": ("undoing, the process stays on the source", errors.Interrupted.where),
    "check": ("stopping", "nothing was changed"),
    "explain": ("stopping", "nothing was changed"),
    "recover": ("stopping", "what the journals say still holds: run it again"),
    "drain": ("undoing what is under way", "what had moved stays there: run it again to go on, or `migrate return`"),
    "return": ("undoing what is under way", "what had come back stays: run it again to go on"),
}
"""What a signal brings about, and how things are afterwards, by command."""


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

    asyncio.run(command())
    show.finish()  # outside the loop: Ctrl-C leaves even a reader that never reads on, now that nothing can be lost
    return status[0]


def _chooser(command: str) -> Callable[..., Progress]:
    """What chooses how a command looks."""
    if command not in ("drain", "return"):
        return progress.choose
    from migrator import overview

    return overview.choose


def _order(options: argparse.Namespace) -> hosts.Order:
    """What the engine is asked for. Raises errors.UsageError for a host that makes no sense."""
    if options.transport == "rsync" and not options.shared and os.geteuid() != 0:
        raise errors.UsageError("--transport rsync: only root may read the images here, so run migrate as root")
    from migrator import channel, hosts, plan  # late: bad input is told at once

    return hosts.Order(
        pid=options.pid,
        target=channel.parse_target(options.host),
        wishes=plan.Wishes(
            options.copy_files,
            options.require_precopy,
            options.resume == "instant",
            options.compress,
            rsync=options.transport == "rsync",
            images_directory=options.images_dir,
            shared=options.shared,
            hash_files=options.verify == "hash",
            throttle=options.on_no_converge == precopy.OnNoConverge.THROTTLE,
            criu_options=tuple(options.criu_option),
            overwrite_files=options.overwrite_files,
            namespaces=options.namespaces,
            terminal=options.terminal,
        ),
        limits=precopy.Limits(options.max_downtime, options.max_rounds, precopy.OnNoConverge(options.on_no_converge)),
        sudo=options.sudo,
        criu=options.criu,
        bandwidth=options.bandwidth,
        rsh=options.rsh,
        rehearsal=options.command == "rehearse",
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
    work = {
        "migrate": _migrate, "rehearse": _migrate, "check": _check, "explain": _explain, "recover": _recover,
        "drain": _drain, "return": _drain,
    }[options.command]  # fmt: skip
    try:
        return await _guard(work(options, show), show, options.command)
    except errors.MigrateError as error:
        if isinstance(error, (errors.PreflightError, errors.OpenedMeanwhile)) and error.obstacles:
            show.obstacles(error.obstacles, asked=False)
        failure = error
    except Exception as error:
        show.crashed(error)
        failure = errors.MigrateError(f"a bug in migrate {VERSION}: {error!r}", hint="report it, with the traceback")
    show.failed(failure)
    _make_up_report(options, show, failure)
    return failure.exit_code


async def _migrate(options: argparse.Namespace, show: Progress) -> int:
    from migrator import attach, migration, terminals

    order = _order(options)
    if options.terminal == terminals.ATTACH and options.command == "migrate":
        if not attach.possible():
            raise errors.UsageError("--attach: standard input and output are no terminal", hint="--detach needs none")
        order = dataclasses.replace(order, show=functools.partial(_show, show))
    report = await migration.migrate(order, show)
    if show.reported is None:
        show.report(report)
    return errors.EXIT_LEFTOVERS if report.leftovers else errors.EXIT_MIGRATED


async def _show(show: Progress, channel: Channel) -> None:
    """The session after an --attach: our terminal is the tree's meanwhile, and the report stands above it."""
    from migrator import attach

    await asyncio.to_thread(show.hand_over)
    show.warn(await attach.session(channel))


async def _check(options: argparse.Namespace, show: Progress) -> int:
    from migrator import migration

    chosen, obstacles = await migration.check(_order(options), show)
    show.checked(options.pid, options.host, obstacles, chosen.notes)
    stops = sum(obstacle.stops for obstacle in obstacles)
    if stops:
        raise errors.PreflightError(
            f"pid {options.pid} cannot be moved to {options.host}: {words.count(stops, 'obstacle')}"
        )
    return errors.EXIT_MIGRATED


async def _explain(options: argparse.Namespace, show: Progress) -> int:
    kinds = [catalogue.KINDS[options.id]] if options.id else list(catalogue.KINDS.values())
    show.explained(kinds, at_length=bool(options.id))
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


async def _drain(options: argparse.Namespace, show: Progress) -> int:
    from migrator import drains, overview

    assert isinstance(show, overview.Overview)
    return await drains.run(options, show, _order)


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
