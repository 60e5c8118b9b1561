"""The commands on processes on ice, as `cli` runs them: what is asked of the engine, what is said of its answers."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import functools
import time
from collections.abc import Awaitable, Callable

from migrator import errors, ice, ice_recovery, terminals
from migrator.channel import Channel
from migrator.output import Progress
from migrator.words import bytes_text, escape, seconds_text


async def save(options: argparse.Namespace, show: Progress) -> int:
    """`migrate save PID DIR`."""
    saved = await ice.save(
        options.pid, options.directory, show, terminal=options.terminal, unit=options.unit, criu=options.criu
    )
    text = f"pid {saved.pid} ({escape(saved.name)}) is on ice: {bytes_text(saved.bytes)} in {escape(saved.directory)}, "
    text += f"frozen {seconds_text(saved.frozen_seconds)}\nagain: {escape(ice_recovery.again(saved.directory))}\n"
    return _told(show, "saved", saved, text, saved.leftovers)


async def snapshot(options: argparse.Namespace, show: Progress) -> int:
    """`migrate snapshot PID DIR`."""
    taken = await ice.snapshot(options.pid, options.directory, show, terminal=options.terminal, criu=options.criu)
    adds = f"adds to {taken.parent}" if taken.parent else "whole"
    text = f"pid {taken.pid} ({escape(taken.name)}) runs on; as it was it takes {bytes_text(taken.bytes)} in "
    text += f"{escape(taken.directory)} ({adds}), frozen {seconds_text(taken.frozen_seconds)}\n"
    return _told(show, "snapshot", taken, text, ())


async def snapshots(options: argparse.Namespace, show: Progress) -> int:
    """`migrate snapshots DIR`."""
    found = await ice.snapshots(options.directory, show)
    lines = [
        f"{one.id}  {_when(one.time)}  pid {one.pid} {escape(one.name)}  {bytes_text(one.size):>9}  "
        f"{f'adds to {escape(one.parent)}' if one.parent else 'whole'}{f'  {escape(one.wrong)}' if one.wrong else ''}\n"
        for one in found
    ]
    text = "".join(lines) or f"{escape(options.directory)}: nothing is on ice there\n"
    show.told(text, [("on-ice", dataclasses.asdict(one)) for one in found])
    return errors.EXIT_MIGRATED


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(min(max(seconds, 0.0), 1e11)))


async def restore(options: argparse.Namespace, show: Progress) -> int:
    """`migrate restore DIR [ID]`."""
    from migrator import attach

    shown = functools.partial(_show, show) if options.terminal == terminals.ATTACH else None
    if shown and not attach.possible():
        raise errors.UsageError("--attach: standard input and output are no terminal", hint="--detach needs none")
    name = options.id or await ice.newest(options.directory, criu=options.criu, observer=show)
    revived = await ice.restore(
        options.directory, name, show, namespaces=options.namespaces, terminal=options.terminal, criu=options.criu,
        show=shown,
    )  # fmt: skip
    return errors.EXIT_LEFTOVERS if revived.leftovers else errors.EXIT_MIGRATED if shown else _restored(show, revived)


def _restored(show: Progress, revived: ice.Revived) -> int:
    within = f" (pid {revived.inside_pid} in its own namespace)" if revived.inside_pid else ""
    text = f"running again as pid {revived.pid}{within}: {escape(revived.name)} from {escape(revived.directory)}, "
    text += f"restored in {seconds_text(revived.restore_seconds)}\n"
    if revived.terminal:
        text += f"its terminal: {escape(revived.terminal)}\n"
    return _told(show, "restored", revived, text, revived.leftovers)


async def _show(show: Progress, revived: ice.Revived, channel: Channel) -> None:
    """The session after an --attach: our terminal is its own meanwhile, and what there is to say stands above it."""
    from migrator import attach

    _restored(show, dataclasses.replace(revived, terminal=""))
    await asyncio.to_thread(show.hand_over)
    show.warn(await attach.session(channel))


def _told(
    show: Progress, event: str, what: ice.Saved | ice.Snapshot | ice.Revived, text: str, left: tuple[str, ...]
) -> int:
    show.hand_over()  # its last phase has ended
    show.told(text, [(event, dataclasses.asdict(what))])
    for item in left:
        show.warn(f"left behind: {item}")
    return errors.EXIT_LEFTOVERS if left else errors.EXIT_MIGRATED


COMMANDS: dict[str, Callable[[argparse.Namespace, Progress], Awaitable[int]]] = {
    "save": save,
    "snapshot": snapshot,
    "snapshots": snapshots,
    "restore": restore,
}
