"""`migrate drain` and `migrate return`: a plan's file, what is kept of it, and its run, put together."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

from migrator import errors, hosts, lanes, option_types, picture, runbook
from migrator.drain import Drain, Limits
from migrator.drain_record import Record
from migrator.errands import Errands
from migrator.outfile import Outfile
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
    report = Outfile("--report", options.report) if options.report else None
    plot = _Plot(options.plot) if options.plot else None
    errands = Errands(order_of)
    record = Record(show, show.book, returning=options.command == "return")
    drain = Drain(book, Ledger.of(_state(), path), limits, errands, record)
    try:
        if options.command == "return":
            code = await drain.bring_back()
        elif options.dry_run:
            return await drain.dry_run()
        else:
            code = await drain.run()
    finally:
        await errands.close()
        if report is not None and (wrong := report.write(_as_json(drain, record))):
            show.warn(wrong)
        if plot is not None and (wrong := plot.write(f"{options.command} {path.name}", record)):
            show.warn(wrong)
    show.over(code)
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


class _Plot:
    """The file of --plot. Raises UsageError for one that can't be written, or not drawn."""

    def __init__(self, path: str) -> None:
        self._kind = Path(path).suffix[1:]
        self._file = Outfile("--plot", path)
        if f".{self._kind}" != option_types.TEXT:
            try:
                picture.ready()
            except picture.NoMatplotlib as error:
                raise errors.UsageError(f"--plot: {error}", hint="a FILE.txt is drawn without it") from None

    def write(self, name: str, record: Record) -> str:
        """What went wrong, in words; or ""."""
        if f".{self._kind}" == option_types.TEXT:
            return self._file.write(lanes.drawn(name, record.lanes).encode())
        return self._file.write(picture.render_lanes(name, record.lanes, self._kind))


def _as_json(drain: Drain, record: Record) -> bytes:
    content = {
        "processes": [dataclasses.asdict(one) for one in drain.standings],
        "reports": [dataclasses.asdict(report) for report in record.reports],
    }
    return (json.dumps(content, indent=1) + "\n").encode()
