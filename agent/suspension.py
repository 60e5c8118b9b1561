"""While its tree is moved, a unit neither revives nor reports failure: a drop-in until the next boot, and away with it.

Owns that drop-in. It is there before the tree may be killed, and goes once systemd has seen the end of the tree, or as
soon as the move is undone: until then systemd would act by the unit's own settings. Word of it stands in the journal
before it is written, so that whoever settles a migration whose agent is gone takes it away.

What a drop-in can't do: an empty OnFailure= takes nothing back, as no dependency can be (systemd.unit(5)). It is
SIGKILL as a success that keeps the unit from failing, and so OnFailure= from being started. OnSuccess= would be, and
whoever has one is not moved with its unit.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent import service
from agent.journal import Journal
from agent.service import ServiceError

NOTE, OVER = "unit", "unit-back"
"""The journal's words: the drop-in may be there; it is gone."""
NAME = "zzzz-migrate.conf"
"""Of drop-ins the last one by its name prevails, wherever it lies (systemd.unit(5))."""
_HEAD = "migration "
TEXT = """\
# {head}{migration}
# The processes of this unit are being moved by migrate: they may go without anything being done about it.
[Unit]
OnFailure=
FailureAction=none
SuccessAction=none
[Service]
Restart=no
RestartForceExitStatus=
SuccessExitStatus=SIGKILL
RemainAfterExit=no
ExecStop=
ExecStopPost=
"""
"""ExecStop= is run too where a service ends well by itself. A watchdog goes by what held when its service was started:
it is put off by word of the service's own, which we give in its name (WATCHDOG_USEC= of sd_notify(3))."""
_NOTIFY = "/run/systemd/notify"
_ENDED = ("inactive", "failed")
_LOOKS = 100
_PATIENCE = 60.0
"""Seconds for systemd to see that a unit's processes are gone."""


def left() -> Iterator[tuple[Path, str]]:
    """Every drop-in of ours on this host, and whose it is: a migration's id."""
    for path in sorted(Path(service.SYSTEMD).glob(f"*.d/{NAME}")):
        first = path.read_text(errors="replace").partition("\n")[0]
        yield path, first.rpartition(_HEAD)[2].strip()


def path_of(unit: str) -> Path:
    """Where the drop-in of a unit lies."""
    return Path(service.SYSTEMD) / f"{unit}.d" / NAME


async def suspend(journal: Journal, unit: str) -> None:
    """From now on systemd does nothing about the unit's end. Nothing for "". Raises ServiceError."""
    if unit:
        await asyncio.get_running_loop().run_in_executor(None, _suspend, journal, unit)


def _suspend(journal: Journal, unit: str) -> None:
    before = _properties(unit)
    if before.get("ActiveState") in (None, *_ENDED):
        raise ServiceError(f"{unit} is not active any more")
    main, watchdog = service.main_of(before), service.microseconds(before.get("WatchdogUSec", "")) or 0
    journal.note(NOTE, unit=unit, main=main, watchdog=watchdog)
    path = path_of(unit)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(TEXT.format(head=_HEAD, migration=journal.migration))
    except OSError as error:
        raise ServiceError(f"{unit} can't be kept from being revived: {error}") from None
    service.run("daemon-reload")
    now = _properties(unit)
    if now.get("Restart") != "no" or "KILL" not in now.get("SuccessExitStatus", "") or now.get("ExecStopPost"):
        raise ServiceError(f"{unit} would still be revived: {path} does not prevail; see `systemctl cat {unit}`")
    if watchdog:
        _notify(main, "WATCHDOG_USEC=0")
        for _ in range(_LOOKS):
            if _properties(unit).get("WatchdogUSec") == "0":
                return
            time.sleep(0.1)
        raise ServiceError(f"{unit} has a watchdog, which would end it while it is held, and can't be put off")


def _properties(unit: str) -> dict[str, str]:
    asked = ("ActiveState", "Restart", "SuccessExitStatus", "ExecStopPost", "MainPID", "WatchdogUSec")
    return next(iter(service.show([unit], asked)), {})


async def give_back(journal: Journal, *, gone: bool) -> tuple[str, ...]:
    """The unit as it was, if it was suspended and is not back yet. `gone`: its processes were killed, for good.

    What could not be done, in words.
    """
    noted = journal.facts(NOTE)
    if not noted or journal.facts(OVER):
        return ()
    unit = noted["unit"]
    if gone and not await _ended(unit):
        return (f"{unit} is not seen to have ended: {path_of(unit)} keeps systemd from reviving it, and stays",)
    return await asyncio.get_running_loop().run_in_executor(None, _give_back, journal, noted, gone)


async def _ended(unit: str) -> bool:
    """Wait until systemd knows that nothing of it runs."""
    state = functools.partial(service.show, [unit], ("ActiveState",))
    for _ in range(int(_PATIENCE / 0.05)):
        found = await asyncio.get_running_loop().run_in_executor(None, state)
        if found and found[0].get("ActiveState") in _ENDED:
            return True
        await asyncio.sleep(0.05)
    return False


def _give_back(journal: Journal, noted: dict[str, Any], gone: bool) -> tuple[str, ...]:
    unit = noted["unit"]
    path = path_of(unit)
    if noted["watchdog"] and not gone:
        # in one, or the watchdog would look at how long nothing was heard of it
        _notify(noted["main"], f"WATCHDOG=1\nWATCHDOG_USEC={noted['watchdog']}")
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others' drop-ins are in there, or it was never made
        path.parent.rmdir()
    try:
        service.run("daemon-reload")
    except ServiceError as error:
        return (f"{unit} is still kept from being revived: {error}; `systemctl daemon-reload` ends that",)
    journal.note(OVER)
    state = _properties(unit).get("ActiveState", "inactive")
    if not gone and state in _ENDED:
        return (f"{unit} is {state}: it ended while nothing would revive it: `systemctl start {unit}`",)
    return ()


def _notify(pid: int, text: str) -> None:
    """Word to systemd in the name of a unit's main process (sd_notify(3)); without a main process, or systemd, none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, contextlib.suppress(OSError):
        who = struct.pack("3i", pid, os.geteuid(), os.getegid())
        notify.connect(_NOTIFY)
        notify.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)])
