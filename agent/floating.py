"""The addresses that move with a tree, on one host: guards, the address itself, criu's lock on the connections.

What moves stands in the journal's first line; each act is noted there before it is done, and each may be done again.
The order is the one in which no connection breaks (the migration's docstring has both hosts'):

| source                                          | target                                                         |
|-------------------------------------------------|----------------------------------------------------------------|
| `shut` before the freeze: no new connections    | `take` before the restore: everything dropped, then the address |
| `leave` when no task can run any more           | `announce` before the tree runs                                 |
| `over`: guard and criu's lock gone              | `opened` when it runs: guard gone                               |
| undone: `unlock` before the tasks go on, `over` | undone: `over` when the restored tree is gone                   |
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from agent import announce as neighbours
from agent import guard, iptables, process, repair
from agent.journal import Journal, Record
from agent.protocol import Floating, HostAddress

WORD = "locked"
"""A file beside the journal while criu may have sockets in repair mode: no hook continues the tasks then by itself."""
_TAKEN, _GUARD = "address", "guard"
LOCK = "lock"
"""Line of the journal that names criu's table, by which it keeps the connections still."""
_RUN_ID = 13
"""Field of dump_criu_run_id (images/inventory.proto); criu cuts the table's name to `CRIU-` and 21 characters."""
_LOCK_NAME = 21


class AddressError(Exception):
    """An address could not be put on this host."""


def of_host() -> tuple[HostAddress, ...]:
    """The addresses of this host, as `ip` has them; none where there is no `ip`."""
    try:
        done = subprocess.run(["ip", "-json", "address"], capture_output=True, text=True, check=False, timeout=60)
        links = json.loads(done.stdout or "[]")
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ()
    return tuple(
        HostAddress(
            one.get("local", ""),
            int(one.get("prefixlen", 0)),
            link["ifname"],
            bool(one.get("secondary")),
            bool(one.get("dynamic")),
        )
        for link in links
        if "ifname" in link
        for one in link.get("addr_info", []) or [{}]
    )


def may_change() -> bool:
    """Whether we may change addresses and rules: CAP_NET_ADMIN (include/uapi/linux/capability.h: 12)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & 1 << 12)
    return False


def written(floating: Iterable[Floating]) -> list[list[Any]]:
    """As the journal's first line keeps them."""
    return [[one.address, one.prefix, one.interface] for one in floating]


def _of(journal: Journal) -> tuple[Floating, ...]:
    lines = journal.lines[0].get("floating", [])
    return tuple(Floating(str(address), int(prefix), str(interface)) for address, prefix, interface in lines)


# --- source ----------------------------------------------------------------------------------------------------------


def shut(journal: Journal) -> None:
    """No new connection comes in any more: the tree is about to be frozen. Raises GuardError."""
    if floating := _of(journal):
        journal.note(_GUARD)
        guard.put_up(journal.migration, [one.address for one in floating], everything=False)
        (journal.directory / WORD).touch()


def locked(journal: Journal, round_: Path) -> None:
    """criu holds the tree: note the table by which it keeps the connections still."""
    if _of(journal):
        older = f"{guard.LOCK_PREFIX}{journal.first['root']}"  # of a criu that has no run id (before 4.1)
        journal.note(LOCK, table=lock_of(round_ / "inventory.img") or older)


def lock_of(inventory: Path) -> str:
    """The name of the table that the dump with this inventory has made; "" where it does not say."""
    try:
        data = inventory.read_bytes()[12:]  # two magic numbers and the entry's length
    except OSError:
        return ""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            _, at = _varint(data, at)
        elif key & 7 == 2:
            length, at = _varint(data, at)
            if key >> 3 == _RUN_ID:
                name = data[at : at + length].decode("ascii", "replace")
                return f"{guard.LOCK_PREFIX}{name[:_LOCK_NAME]}"
            at += length
        else:
            at += 8 if key & 7 == 1 else 4
    return ""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            break
    return value, at


def unlock(journal: Journal, tasks: Iterable[Sequence[int]]) -> None:
    """Its criu is dead, and these tasks, (PID, start time), are stopped: their connections work again."""
    if not _of(journal):
        return
    repair.end(pid for pid, start in tasks if process.alive(pid, start))
    _delete_lock(journal)
    (journal.directory / WORD).unlink(missing_ok=True)


def _delete_lock(journal: Journal) -> str:
    """criu's table, or, where it had no nft, what its log says that it put up."""
    table = journal.facts(LOCK).get("table", "")
    left = guard.delete(table) if table else ""
    return left or iptables.unlock(journal.directory / "dump.log")


def leave(journal: Journal) -> None:
    """No task of it can run any more: the addresses are not here any more. What fails is tried again by `over`."""
    for one in _of(journal):
        _ip("delete", one)


# --- target ----------------------------------------------------------------------------------------------------------


def take(journal: Journal, *, announced: bool = False) -> None:
    """Drop everything for the addresses, and have them. May be done again. Raises GuardError, AddressError.

    `announced`: the source is gone already, so that they are announced as well.
    """
    floating = _of(journal)
    if not floating:
        return
    ours = {fact["address"] for fact in journal.all_facts(_TAKEN)}
    here = {one.address for one in of_host()}
    if taken := sorted(one.address for one in floating if one.address in here and one.address not in ours):
        raise AddressError(f"{taken[0]} is on this host already")
    journal.note(_GUARD)
    guard.put_up(journal.migration, [one.address for one in floating], everything=True)
    for one in floating:
        if one.address in here:
            continue
        journal.note(_TAKEN, address=one.address)
        if why := _ip("add", one):
            raise AddressError(f"{one.address} can't be had on {one.interface}: {why}")
    if announced:
        announce(journal)


def announce(journal: Journal) -> None:
    """The addresses are here now, whatever the neighbours knew."""
    for one in _of(journal):
        neighbours.announce(one.address, one.interface)


def opened(journal: Journal) -> str:
    """The tree runs: what comes for it may come. What is in the way of that, in words.

    Announced once more: where the agent died, or the link, criu has finished without anybody who did it before.
    """
    announce(journal)
    return guard.take_away(journal.migration) if _of(journal) else ""


# --- both ------------------------------------------------------------------------------------------------------------


def over(journal: Journal) -> tuple[str, ...]:
    """Nothing of it is left on this host, as the journal's decision has it; what could not be removed, in words."""
    floating = _of(journal)
    if not floating or journal.lines[0].get("boot") != process.boot_id():
        return ()  # neither a rule nor an address that we have put there outlives a reboot
    left = []
    undone = journal.has(Record.ABORT)
    here = {one.address for one in of_host()}
    if (journal.role == "target") == undone:
        ours = {fact["address"] for fact in journal.all_facts(_TAKEN)} if undone else {one.address for one in floating}
        for one in floating:
            if one.address in here & ours and (why := _ip("delete", one)):
                left.append(f"address {one.address} on {one.interface}: {why}")
    elif journal.role == "source":
        announce(journal)  # they may have heard of it elsewhere meanwhile
    if journal.role == "source":
        left.append(_delete_lock(journal))
    left.append(guard.take_away(journal.migration))
    (journal.directory / WORD).unlink(missing_ok=True)
    return tuple(filter(None, left))


def _ip(act: str, one: Floating) -> str:
    """Add or delete it; what `ip` has against it, or ""."""
    words: Sequence[str] = ["ip", "address", act, f"{one.address}/{one.prefix}", "dev", one.interface]
    if act == "add" and ":" in one.address:
        words = [*words, "nodad"]  # the source has it still: detection would find that, and give it up
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else next(iter(done.stderr.splitlines()), f"status {done.returncode}")
