"""Acts that belong together, and acts that nothing may interrupt. Knows nothing of migrations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")


async def both(first: Awaitable[A], second: Awaitable[B]) -> tuple[A, B]:
    """Two acts, one on each host: when one fails the other is not waited for.

    When both have failed the second's error is raised, by convention the target's: a full disk there is the cause of
    a broken pipe here.
    """
    one, two = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        await asyncio.wait({one, two}, return_when=asyncio.FIRST_EXCEPTION)
        for done in (two, one):
            if done.done() and not done.cancelled() and (error := done.exception()) is not None:
                raise error
        return one.result(), two.result()
    finally:
        await end(one, two)


async def all_of(acts: list[Awaitable[object]]) -> None:
    """Several acts; the first failure ends the others."""
    tasks = [asyncio.ensure_future(act) for act in acts]
    try:
        for task in asyncio.as_completed(tasks):
            await task
    finally:
        await end(*tasks)


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what is still under way, and see it end; what it raises then is of no interest any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def uninterrupted(
    act: Coroutine[Any, Any, T] | Callable[[], Coroutine[Any, Any, T]], note: Callable[[str], None]
) -> T:
    """Run an act to its end, whatever cancels us meanwhile: what undoes, and what lies behind COMMIT."""
    task = asyncio.ensure_future(act if asyncio.iscoroutine(act) else act())
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                note("this has to be carried through; it goes on")
        except Exception:
            break
    return task.result()
