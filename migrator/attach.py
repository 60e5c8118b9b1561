"""`--attach`: the terminal that migrate runs in becomes that of the tree on the target.

Owns our own terminal while that lasts: raw mode, and its restoring whatever happens; what is typed, the window's size,
what is shown. What was typed while the tree moved is still in our terminal's queue and goes to the tree as well. Knows
nothing of migrations: it gets a channel to the holder of the terminal (protocol.py has the frames).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import struct
import termios
import tty
from collections.abc import Iterator

from agent.protocol import TERMINAL_HEAD, TERMINAL_TYPED, TERMINAL_WINDOW
from migrator.channel import Channel

PIECE = 1 << 14
"""Bytes of a frame at most; it counts them in 16 bits."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end the session: from outside, since keys are the tree's."""

ENDED = "its terminal has ended"
LEFT = "the session was left: it got SIGHUP there"
LOST = "the connection was lost: it gets SIGHUP there"
"""How a session ended, in words."""


def possible() -> bool:
    """Whether standard input and output are a terminal."""
    return os.isatty(0) and os.isatty(1)


async def session(channel: Channel) -> str:
    """Show the terminal at the other end until that ends, the connection does, or a signal comes; which, in words."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[str] = loop.create_future()
    # ours from now on, and of no effect when the session is over: what may happen to the tree then has happened
    for number in ENDING:
        loop.add_signal_handler(number, _settle, ended, LEFT)
    resized = asyncio.Event()
    loop.add_signal_handler(signal.SIGWINCH, resized.set)
    with _raw():
        tasks = [
            loop.create_task(_typed(channel, resized, ended)),
            loop.create_task(_shown(channel, ended)),
        ]
        for task in tasks:
            task.add_done_callback(functools.partial(_failed, ended))
        try:
            return await ended
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await channel.close()


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Keys go through as they are; what waits to be read stays."""
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal itself is gone
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def _settle(ended: asyncio.Future[str], how: str) -> None:
    if not ended.done():
        ended.set_result(how)


def _failed(ended: asyncio.Future[str], task: asyncio.Task[None]) -> None:
    """A bug in one of the ways ends the session, and is raised where our terminal has been put back."""
    if not task.cancelled() and not ended.done() and (bug := task.exception()) is not None:
        ended.set_exception(bug)


async def _typed(channel: Channel, resized: asyncio.Event, ended: asyncio.Future[str]) -> None:
    """Keys and window sizes, as they come."""
    loop = asyncio.get_running_loop()
    keys = asyncio.Event()
    resized.set()
    try:
        while True:
            if resized.is_set():
                resized.clear()
                size = os.get_terminal_size(0)
                await channel.write(struct.pack(TERMINAL_HEAD, TERMINAL_WINDOW, size.lines, size.columns))
            loop.add_reader(0, keys.set)
            await _either(keys, resized)
            loop.remove_reader(0)
            if keys.is_set():
                keys.clear()
                data = os.read(0, PIECE)
                if not data:
                    _settle(ended, LEFT)
                    return
                await channel.write(struct.pack(TERMINAL_HEAD, TERMINAL_TYPED, len(data), 0) + data)
    except ConnectionError:
        _settle(ended, LOST)
    except OSError:  # our own terminal is gone
        _settle(ended, LEFT)
    finally:
        loop.remove_reader(0)


async def _either(one: asyncio.Event, other: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in (one, other)]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


async def _shown(channel: Channel, ended: asyncio.Future[str]) -> None:
    """What the tree writes. In a thread, since a terminal that does not read on must not silence our heartbeat."""
    try:
        while data := await channel.read():
            await asyncio.to_thread(_write, data)
        _settle(ended, ENDED)
    except ConnectionError:
        _settle(ended, LOST)
    except OSError:
        _settle(ended, LEFT)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
