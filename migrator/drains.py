"""`migrate drain` and `migrate return`: a plan's file, what is kept of it, and its run, put together."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

from migrator import errors, hosts, runbook
from migrator.drain import Drain, Limits
from migrator.errands import Errands
from migrator.overview import Overview
from migrator.standing import Ledger

STATE = Path("/var/lib/migrate/drains")


async def run(
    options: argparse.Namespace, show: Overview, order_of: Callable[[argparse.Namespace], hosts.Order]
) -> int:
    """Do what the command line says; the exit code. Raises MigrateError, CancelledError after an undo."""
    path = Path(options.plan)
    try:
        book = read(path)
    except runbook.BadPlan as bad:
        for mistake in bad.mistakes:
            show.warn(f"{path}:{mistake.line}: {mistake.text}" if mistake.line else f"{path}: {mistake.text}")
        raise errors.UsageError(f"{path} has {bad}", hint="nothing was moved") from None
    if options.command == "return" and options.overwrite_files:
        book = dataclasses.replace(book, moves=tuple(map(_overwriting, book.moves)))
    if options.no_config:
        moves = (dataclasses.replace(move, options=("--no-config", *move.options)) for move in book.moves)
        book = dataclasses.replace(book, moves=tuple(moves))
    limits = Limits(
        options.parallel or book.parallel or 1,
        options.max_total_downtime or book.max_total_downtime,
        book.keep_going if options.keep_going is None else options.keep_going,
    )
    errands = Errands(order_of)
    drain = Drain(book, Ledger.of(_state(), path), limits, errands, show)
    try:
        if options.command == "return":
            code = await drain.bring_back()
        elif options.dry_run:
            return await drain.dry_run()
        else:
            code = await drain.run()
        show.over(code)
    finally:
        await errands.close()
        if options.report:
            _write(Path(options.report), drain)
    return code


def read(path: Path) -> runbook.Runbook:
    """A plan from its file. Raises BadPlan with every mistake, UsageError for a file that can't be read."""
    try:
        with open(path, "rb") as file:
            text = file.read(runbook.LARGEST + 1).decode()
    except OSError as error:
        raise errors.UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise runbook.BadPlan([runbook.Mistake(0, f"no UTF-8 at byte {error.start}")]) from None
    return runbook.parse(text)


def _overwriting(move: runbook.Move) -> runbook.Move:
    """The older copies of what came along were left here by ourselves."""
    if "--copy-files" not in move.options or "--overwrite-files" in move.options:
        return move
    return dataclasses.replace(move, options=(*move.options, "--overwrite-files"))


def _state() -> Path:
    if os.geteuid() == 0:
        return STATE
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local/state") / "migrate/drains"


def _write(path: Path, drain: Drain) -> None:
    """Raises UsageError."""
    content = {
        "processes": [dataclasses.asdict(one) for one in drain.standings],
        "reports": [dataclasses.asdict(report) for _, report in drain.reports],
    }
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", errors="surrogateescape")
    except OSError as error:
        raise errors.UsageError(f"--report {path}: {error.strerror}") from None
