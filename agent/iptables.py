"""What criu has put into iptables and a crash has left there: DROP rules that hold a connection, or a host, still.

Reads only. criu marks its own packets, and tells them from others by that mark (soccr/soccr.h, SOCCR_MARK): two rules a
connection in INPUT and OUTPUT (criu/netfilter.c), or, for a whole network namespace, a chain CRIU that both jump to
(criu/net.c). Either they are in the tables of old, or in nftables, whichever this host's iptables speaks to.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("iptables", "ip6tables", "iptables-legacy", "ip6tables-legacy")
LOADED = tuple(Path("/proc/net", name) for name in ("ip_tables_names", "ip6_tables_names"))
MODULES = Path("/lib/modules")
NFTABLES = Path("/sys/module/nf_tables")
_CONNECTION = re.compile(r"-A ((?:INPUT|OUTPUT) .*! --mark 0xc114\b.* -j DROP)", re.IGNORECASE)
_JUMP = re.compile(r"-A ((?:INPUT|OUTPUT) -j CRIU)")
_CHAIN = re.compile(r":CRIU ")


def left() -> Iterator[tuple[str, str, str]]:
    """(what, detail, the command that removes it) of each; nothing where no table is loaded: to ask would load one."""
    if nftables_unloaded() and not any(_filters(names) for names in LOADED):
        return
    seen = set()
    for program in PROGRAMS:
        for line in _saved(program):
            family = program.partition("-")[0]
            if (family, line) in seen:
                continue  # both names are the same program here
            found = list(_of_line(program, line))
            seen.update([(family, line)] if found else [])
            yield from found


def _of_line(program: str, line: str) -> Iterator[tuple[str, str, str]]:
    if rule := _CONNECTION.fullmatch(line):
        yield f"{program} {rule[1]}", "holds a connection still", f"{program} -D {rule[1]}"
    elif rule := _JUMP.fullmatch(line):
        yield f"{program} {rule[1]}", "drops everything", f"{program} -D {rule[1]}"
    elif _CHAIN.match(line):
        # its jumps hold it: they have to go first
        remove = f"{program} -D INPUT -j CRIU; {program} -D OUTPUT -j CRIU; {program} -F CRIU && {program} -X CRIU"
        yield f"{program} chain CRIU", "drops everything that is sent through it", remove


def nftables_unloaded() -> bool:
    """Whether nftables is a module that is not loaded: there is no table, and to ask for one would load it. One that is
    built in need not show below /sys/module."""
    modules = MODULES / os.uname().release / "kernel/net/netfilter"
    return not NFTABLES.exists() and any(modules.glob("nf_tables.ko*"))


def _filters(names: Path) -> bool:
    try:
        return "filter" in names.read_text().split()
    except OSError:
        return False


def _saved(program: str) -> list[str]:
    """The filter table's lines. Of all tables: asked for one by name, the programs of old load it."""
    path = shutil.which(f"{program}-save")
    if path is None:
        return []
    done = subprocess.run([path], capture_output=True, text=True, errors="replace", check=False)
    _, _, filters = done.stdout.partition("*filter\n")
    return filters.partition("COMMIT\n")[0].splitlines()
