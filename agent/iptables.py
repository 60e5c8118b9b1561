"""iptables, where there is no nft: our guards, as `guard` has them; and criu's rules, also those that a crash has left.

criu marks its own packets, and tells them from others by that mark (soccr/soccr.h, SOCCR_MARK): two rules a connection
in INPUT and OUTPUT (criu/netfilter.c), or, for a whole network namespace, a chain CRIU that both jump to (criu/net.c).
Either they are in the tables of old, or in nftables, whichever this host's iptables speaks to. Ours carry a comment
that names the migration; nobody else's rule is touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Callable

PROGRAMS = ("iptables", "ip6tables", "iptables-legacy", "ip6tables-legacy")
OURS = PROGRAMS[:2]
"""Those that criu calls, and so do we."""
LOADED = tuple(Path("/proc/net", name) for name in ("ip_tables_names", "ip6_tables_names"))
MODULES = Path("/lib/modules")
NFTABLES = Path("/sys/module/nf_tables")
PREFIX = "migrate-"
"""Of the comment on a rule of ours: the migration's id follows."""
_CONNECTION = re.compile(r"-A ((?:INPUT|OUTPUT) .*! --mark 0xc114\b.* -j DROP)", re.IGNORECASE)
_ENDS = re.compile(r"-A (INPUT|OUTPUT) -s ([^ /]+)/\d+ -d ([^ /]+)/\d+ -p tcp .*--sport (\d+) --dport (\d+) ")
_GUARD = re.compile(rf"-A ((?:INPUT|OUTPUT) .*--comment {PREFIX}([^ ]+) -j DROP)")
_JUMP = re.compile(r"-A ((?:INPUT|OUTPUT) -j CRIU)")
_CHAIN = re.compile(r":CRIU ")
_LOGGED = re.compile(
    r"Running iptables \[(ip6?tables) .*-I (INPUT|OUTPUT) .*--source (\S+) --sport (\d+) --destination (\S+) "
    r"--dport (\d+) -j DROP\]"
)
"""What criu says before it puts a rule up (iptables_connection_switch_raw)."""


class IptablesError(Exception):
    """iptables refused a rule."""


def there() -> bool:
    """Whether this host has all of it."""
    return all(shutil.which(f"{program}{part}") for program in OURS for part in ("", "-save", "-restore"))


# --- ours ------------------------------------------------------------------------------------------------------------


def put_up(migration: str, addresses: Iterable[str], *, everything: bool) -> None:
    """Drop what is for these addresses: `everything`, or new connections. May be done again. Raises IptablesError."""
    for address in addresses:
        program = OURS[":" in address]
        there_already = {found[1] for found in map(_GUARD.fullmatch, _saved(program)) if found}
        for rule in _rules(migration, address, everything=everything):
            if " ".join(rule) not in there_already:
                _run([program, "-w", "-I", *rule])


def _rules(migration: str, address: str, *, everything: bool) -> Iterator[Sequence[str]]:
    """As iptables saves them."""
    one = f"{address}/{128 if ':' in address else 32}"
    end = ("-m", "comment", "--comment", f"{PREFIX}{migration}", "-j", "DROP")
    if everything:
        yield ("INPUT", "-d", one, *end)
        yield ("OUTPUT", "-s", one, *end)
    else:
        yield ("INPUT", "-d", one, "-p", "tcp", "-m", "tcp", "--tcp-flags", "FIN,SYN,RST,ACK", "SYN", *end)


def take_away(migration: str) -> str:
    """No guard of this migration is there any more; what is in the way of that, in words, or ""."""

    def ours(_: str, line: str) -> bool:
        rule = _GUARD.fullmatch(line)
        return rule is not None and rule[2] == migration

    return _delete(ours)


def unlock(log: Path) -> str:
    """No rule that the dump with this log has put up is there any more; what is in the way of that, or ""."""
    try:
        logged = set(_LOGGED.findall(log.read_text(errors="replace")))
    except OSError:
        logged = set()

    def its(program: str, line: str) -> bool:
        ends = _ENDS.match(line) if _CONNECTION.fullmatch(line) else None
        return ends is not None and (program, ends[1], ends[2], ends[4], ends[3], ends[5]) in logged

    return _delete(its) if logged else ""


def _delete(which: Callable[[str, str], bool]) -> str:
    """Delete what iptables saves such a line of: all of a program's at once."""
    left = []
    for program in OURS if there() and not _nothing() else ():
        lines = [line for line in _saved(program) if which(program, line)]
        script = "".join(f"-D {line[len('-A ') :]}\n" for line in lines)
        try:
            if lines:
                _run([f"{program}-restore", "-w", "--noflush"], f"*filter\n{script}COMMIT\n")
        except IptablesError as error:
            left.append(f"{len(lines)} rules of {program}: {error}; `{program} -S` shows them")
    return "; ".join(left)


def _run(words: Sequence[str], script: str = "") -> None:
    try:
        done = subprocess.run(words, input=script, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IptablesError(str(error)) from error
    if done.returncode != 0:
        raise IptablesError(next(iter(done.stderr.splitlines()), f"{words[0]} ended with status {done.returncode}"))


# --- what is left ----------------------------------------------------------------------------------------------------


def left() -> Iterator[tuple[str, str, str, str]]:
    """(what, detail, the command that removes it, the migration if it is known) of each; nothing where no table is
    loaded: to ask would load one."""
    if _nothing():
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


def _of_line(program: str, line: str) -> Iterator[tuple[str, str, str, str]]:
    if rule := _CONNECTION.fullmatch(line):
        yield f"{program} {rule[1]}", "holds a connection still", f"{program} -D {rule[1]}", ""
    elif rule := _GUARD.fullmatch(line):
        yield f"{program} {rule[1]}", "drops what is for an address that moves", f"{program} -D {rule[1]}", rule[2]
    elif rule := _JUMP.fullmatch(line):
        yield f"{program} {rule[1]}", "drops everything", f"{program} -D {rule[1]}", ""
    elif _CHAIN.match(line):
        # its jumps hold it: they have to go first
        remove = f"{program} -D INPUT -j CRIU; {program} -D OUTPUT -j CRIU; {program} -F CRIU && {program} -X CRIU"
        yield f"{program} chain CRIU", "drops everything that is sent through it", remove, ""


def _nothing() -> bool:
    """Whether no table of rules is loaded."""
    return nftables_unloaded() and not any(_filters(names) for names in LOADED)


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
