"""The guards of a migration whose addresses move: what they drop, in a table of nftables that is ours alone; or, where
there is no nft, in rules of iptables that say whose they are.

On the target everything from and to the addresses, so that the kernel there does not answer with RST for sockets that
are not restored yet. On the source new connections only: they would land in the backlog of a tree that is about to go,
and what is dropped comes again and finds the target. No rule of anybody else's is read or touched.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from typing import NoReturn

from agent import iptables

PREFIX = iptables.PREFIX
"""Of a table's name: the migration's id follows."""
LOCK_PREFIX = "CRIU-"
"""Of the tables by which criu keeps connections still (criu/netfilter.c)."""
_EARLY = -300
"""Before connection tracking, and before whatever the admin has."""


class GuardError(Exception):
    """The kernel, or nft, refused a rule."""


def there() -> bool:
    """Whether this host has nft."""
    return shutil.which("nft") is not None


def text(migration: str, addresses: Iterable[str], *, everything: bool) -> str:
    """What `nft -f` is told: the table as it shall be, whether or not it is there already."""
    name = f"inet {PREFIX}{migration}"
    comment = f'comment "migration {migration}"'
    rules: dict[str, list[str]] = {"input": [], "output": []}
    for address in addresses:
        family = "ip6" if ":" in address else "ip"
        if everything:
            rules["input"].append(f"{family} daddr {address} drop {comment}")
            rules["output"].append(f"{family} saddr {address} drop {comment}")
        else:
            rules["input"].append(f"{family} daddr {address} tcp flags & (syn | ack) == syn drop {comment}")
    lines = [f"table {name}", f"delete table {name}", f"table {name} {{"]
    for chain, of_chain in rules.items():
        if of_chain:
            head = f"type filter hook {chain} priority {_EARLY}; policy accept;"
            lines.append(f"chain {chain} {{\n{head}\n" + "\n".join(of_chain) + "\n}")
    return "\n".join([*lines, "}"]) + "\n"


def put_up(migration: str, addresses: Iterable[str], *, everything: bool) -> None:
    """Drop what is for these addresses from now on: `everything`, or new connections. Raises GuardError."""
    if there():
        _nft(["-f", "-"], text(migration, addresses, everything=everything))
        return
    try:
        iptables.put_up(migration, addresses, everything=everything)
    except iptables.IptablesError as error:
        raise GuardError(f"iptables: {error}") from error


def take_away(migration: str) -> str:
    """No guard of this migration is there any more; what is in the way of that, in words, or ""."""
    return delete(f"{PREFIX}{migration}") if there() else iptables.take_away(migration)


def delete(table: str) -> str:
    """A table of this name, `inet`, is not there any more; what is in the way of that, in words, or ""."""
    if table not in tables():
        return ""
    try:
        _nft(["delete", "table", "inet", table])
    except GuardError as error:
        return f"table inet {table} of nftables: {error}; `nft delete table inet {table}`"
    return ""


def tables() -> tuple[str, ...]:
    """Names of the `inet` tables that are there: criu's, and ours."""
    if not there() or iptables.nftables_unloaded():
        return ()
    done = subprocess.run(["nft", "list", "tables", "inet"], capture_output=True, text=True, check=False)
    names = [line.split()[2] for line in done.stdout.splitlines() if len(line.split()) == 3]
    return tuple(name for name in names if name.startswith((PREFIX, LOCK_PREFIX)))


def _nft(arguments: Sequence[str], script: str = "") -> None:
    try:
        done = subprocess.run(
            ["nft", *arguments], input=script, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _refused(str(error))
    if done.returncode != 0:
        _refused(next(iter(done.stderr.splitlines()), f"nft ended with status {done.returncode}"))


def _refused(why: str) -> NoReturn:
    raise GuardError(f"nftables: {why}")
