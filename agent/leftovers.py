"""What migrations have on this host right now, a crash of long ago included: each thing named, with its way out.

It looks where our things can be, not only where a journal says they are, removes nothing, and takes no lock. What
belongs to a migration that somebody is at work on is listed as in use; so nothing is left over when all of it is.

| kind      | what it is                                                                                    |
|-----------|-----------------------------------------------------------------------------------------------|
| process   | an agent nobody speaks to, a criu, page server, hook, pager, relay, guard, holder of a terminal |
| held      | a task of a tree that is held here, or that was to be given up                                  |
| stopped   | a task that a migration has stopped                                                             |
| frozen    | a cgroup that a migration has frozen                                                            |
| cgroup    | a cgroup or scope of ours                                                                       |
| unit      | a drop-in that keeps a systemd unit from being revived                                          |
| mount     | a tmpfs of ours                                                                                 |
| images    | a directory of images that is no mount, or one on disk                                          |
| socket    | a unix socket of ours, or one that a killed criu has left in /tmp                               |
| lock      | the lock on a task                                                                              |
| file      | a temporary or saved file beside one that came along, a file beside a journal, half an agent    |
| rule      | a lock of criu's on a connection, in nftables or iptables, or a guard of an address that moves  |
| journal   | a migration that is not finished                                                                |

A tree that runs here, its scope, its PID namespace and the holder of its terminal are no leftovers: they are the
process that was moved.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from agent import floating, freezer, guard, hold, ice, iptables, mounts, namespace, ours, process, suspension, throttle
from agent.journal import Record
from agent.ledger import Ledger
from agent.lodging import WORD
from agent.lost import MEMORY_LOST
from agent.protocol import Remain, Remains
from agent.settings import Settings
from agent.standing import Standing, every
from agent.warden import LOCK, UNFILLED

CGROUPS = Path("/sys/fs/cgroup")
_BESIDE = (
    "hold",
    "held",
    "verdict",
    "stopped",
    throttle.WORD,
    throttle.SCRIPT,
    namespace.WORD,
    WORD,
    LOCK,
    UNFILLED,
    floating.WORD,
)
"""Files beside a journal that are gone when a migration is over."""
_SCOPES = ("migrated-", "terminal-", "pager-")


def find(settings: Settings) -> Remains:
    """Everything of ours on this host but ourselves."""
    return Remains(tuple(_Search(settings).all()))


class _Search:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open = ours.Descriptors()
        self._standing = {one.migration: one for one in every(settings, self._open)}

    def all(self) -> Iterator[Remain]:
        """In the order of the table above."""
        yield from self._processes()
        for one in self._standing.values():
            yield from self._tasks(one)
        yield from self._cgroups()
        for path, migration in suspension.left():
            remove = f"rm {shlex.quote(str(path))} && systemctl daemon-reload"
            yield self._item("unit", str(path), "keeps it from being revived", migration, remove)
        yield from self._places()
        yield from self._litter()
        yield from self._locks()
        for one in self._standing.values():
            yield from self._files(one)
        yield from self._half_agents()
        yield from self._rules()
        for what, detail, remove, migration in iptables.left():
            yield self._item("rule", what, detail, migration or self._locked_by(), remove)
        for one in self._standing.values():
            if not one.over:
                records = " ".join(record.value for record in one.records)
                yield self._item("journal", str(one.directory / "journal"), f"{one.role}: {records}", one.migration, "")

    def _item(self, kind: str, what: str, detail: str, migration: str, otherwise: str, size: int = 0) -> Remain:
        """`otherwise` removes what no journal can: one that is unfinished is settled, and takes everything along."""
        one = self._standing.get(migration)
        settled = one is None or one.over
        remove = otherwise if settled else f"migrate recover {migration}"
        return Remain(kind, what, detail, migration, one is not None and one.in_use, remove, size)

    def _rules(self) -> Iterator[Remain]:
        """Tables of nftables: criu's, by which it keeps connections still, and our guards."""
        for name in guard.tables():
            if name.startswith(guard.PREFIX):
                migration, detail = name[len(guard.PREFIX) :], "drops what is for an address that moves"
            else:
                migration, detail = self._locked_by(name), "holds a connection still"
            yield self._item("rule", f"table inet {name}", detail, migration, f"nft delete table inet {name}")

    def _locked_by(self, table: str = "") -> str:
        """The migration whose criu has put up this table, or rules of iptables; "" where none can have done it.

        The journal says it once criu is in its hold. What no journal names may be what keeps the connections of any
        migration that is not over.
        """
        for one in self._standing.values():
            if not one.over and one.same_boot:
                lock = one.facts(floating.LOCK)
                if not lock or not table or lock["table"] == table:
                    return one.migration
        return ""

    # --- processes ---

    def _processes(self) -> Iterator[Remain]:
        owners = {pid: one for one in self._standing.values() for pid, _ in one.agents}
        seen = set()
        for each in ours.processes(self._settings):
            seen.add(each.pid)
            one = owners.get(each.pid) or self._standing.get(each.migration)
            if each.kind == ours.AGENT and one is None and self._open.attended(each.pid):
                continue  # it only answers somebody's questions
            if each.kind == ours.HOLDER and (one is None or _moved(one)):
                continue
            name = one.migration if one is not None else each.migration
            yield self._item("process", str(each.pid), _said(each, one), name, _end_of(each))
        for one in self._standing.values():
            named = [(pid, "agent") for pid, _ in one.agents if not one.over]
            named += [(pid, word) for word in ("criu", "rsync") for pid, _ in one.living(word)]
            for pid, word in named:
                if pid not in seen:
                    seen.add(pid)
                    yield self._item("process", str(pid), word, one.migration, f"kill {pid}")

    def _tasks(self, one: Standing) -> Iterator[Remain]:
        """Tasks on the target that are not the tree that runs there; on the source those that it has stopped."""
        living = [task for task in one.tasks if process.alive(*task)] if one.same_boot else []
        if one.role == "target" and not _moved(one):
            first = namespace.init_of(one.directory) if one.same_boot else None
            for pid, _ in living + ([first] if first is not None and process.alive(*first) else []):
                yield self._item("held", str(pid), _name(pid), one.migration, f"kill -KILL {pid}")
        elif one.role == "target" and one.facts(MEMORY_LOST):
            for pid, _ in living:
                if _is_stopped(pid):
                    detail = f"{_name(pid)}, part of whose memory is lost: end it"
                    yield self._item("stopped", str(pid), detail, one.migration, f"kill -KILL {pid}")
        elif one.role == "source" and one.same_boot:
            for pid, start in hold.stopped(one.directory):
                if process.alive(pid, start) and _is_stopped(pid):
                    yield self._item("stopped", str(pid), _name(pid), one.migration, f"kill -CONT {pid}")

    # --- cgroups ---

    def _cgroups(self) -> Iterator[Remain]:
        for one in self._standing.values():
            frozen = _first_line(one.directory / freezer.WORD)
            if frozen and one.same_boot and _first_line(Path(frozen) / "cgroup.freeze") == "1":
                thaw = f"echo 0 >{shlex.quote(frozen + '/cgroup.freeze')}"
                yield self._item("frozen", frozen, "", one.migration, thaw)
        open_ones = [one for one in self._standing.values() if not one.over]
        named = {one.first.get("scope", {}).get("name"): one.migration for one in open_ones}
        for directory, names, _ in os.walk(CGROUPS):
            for name in names:
                path = os.path.join(directory, name)
                if name.startswith("migrating-"):
                    yield self._item("cgroup", path, "throttles", name[len("migrating-") :], f"rmdir {path}")
                elif name.endswith(".scope") and name.startswith(_SCOPES):
                    kind, _, migration = name[: -len(".scope")].partition("-")
                    migration = named.get(name, migration)
                    standing = self._standing.get(migration)
                    if kind != "pager" and (standing is None or _moved(standing)):
                        continue
                    yield self._item("cgroup", path, f"scope of the {kind}", migration, f"systemctl stop {name}")

    # --- what lies on file systems ---

    def _places(self) -> Iterator[Remain]:
        """Mounts, image directories and sockets: those that journals name, and whatever lies where ours do."""
        settings, points = self._settings, {one.point: one for one in mounts.parse(mounts.mountinfo())}
        there = {str(path): ours.migration_of(str(path), settings) for path in _entries(settings.run)}
        there.update((str(path), path.parent.name) for path in settings.state.glob("*/images"))
        for one in self._standing.values():
            there[str(one.place(settings))] = one.migration
            if shared := one.first.get("shared", ""):
                there[os.path.join(shared, one.migration)] = one.migration
        for point, mount in points.items():
            if mount.type == "tmpfs" and mount.source == "migrate":
                there.setdefault(point, os.path.basename(point))
        for path, migration in sorted(there.items()):
            if ice.sealed(Path(path)):
                continue  # it was put there to stay
            if path in points:
                remove = f"umount {shlex.quote(path)} && rmdir {shlex.quote(path)}"
                yield self._item("mount", path, points[path].type, migration, remove, size(path))
            elif os.path.isdir(path) and path != str(settings.locks):
                yield self._item("images", path, "", migration, f"rm -r {shlex.quote(path)}", size(path))
            elif os.path.lexists(path) and path != str(settings.locks) and not self._of_moved(path, migration):
                yield self._item("socket", path, "", migration, f"rm {shlex.quote(path)}")

    def _of_moved(self, path: str, migration: str) -> bool:
        """Whether it is the socket of the terminal that a moved tree has; its journal may be forgotten by now."""
        one = self._standing.get(migration)
        return path.endswith(".terminal") and (one is None or _moved(one)) and path in _bound()

    def _litter(self) -> Iterator[Remain]:
        """Sockets that criu makes in /tmp for the code that it injects, and leaves there when it is killed."""
        bound = _bound()
        for path in sorted(Path("/tmp").glob(".criu*")):  # noqa: S108 - criu's choice, not ours
            if _is_socket(path) and str(path) not in bound:
                yield self._item("socket", str(path), "of a criu that was killed", "", f"rm {path}")

    def _locks(self) -> Iterator[Remain]:
        for path in _entries(self._settings.locks):
            holders = self._open.holders(path)
            one = next((one for one in self._standing.values() if holders & {pid for pid, _ in one.agents}), None)
            if one is None:
                named = (one for one in self._standing.values() if path.name in {str(pid) for pid, _ in one.tasks})
                one = next((one for one in named if one.role == "source"), None)
            name = one.migration if one is not None else ""
            item = self._item("lock", str(path), f"on process {path.name}", name, f"rm {path}")
            used = any(self._open.attended(pid) for pid in holders)
            yield dataclasses.replace(item, in_use=used)

    def _files(self, one: Standing) -> Iterator[Remain]:
        for name in _BESIDE:
            if os.path.lexists(path := one.directory / name):
                yield self._item("file", str(path), "", one.migration, f"rm {path}")
        for beside in Ledger.read(one.directory / "ledger").beside:
            detail = "of a file that came along"
            yield self._item("file", beside, detail, one.migration, f"rm {shlex.quote(beside)}")

    def _half_agents(self) -> Iterator[Remain]:
        """What an agent's way here has left that was cut."""
        cache = os.environ.get("XDG_CACHE_HOME", "")
        place = Path(cache if os.path.isabs(cache) else Path.home() / ".cache") / "migrate"
        for path in sorted(place.glob("agent-*.pyz.*")):
            if not os.path.isdir(f"/proc/{path.suffix[1:]}"):
                yield self._item("file", str(path), "half an agent", "", f"rm {shlex.quote(str(path))}")


def _moved(one: Standing) -> bool:
    """Whether its tree runs on this host, as the target's: then what it lives in is no leftover."""
    return one.role == "target" and Record.RESUMED in one.records


def _said(each: ours.Process, one: Optional[Standing]) -> str:
    if each.kind != ours.AGENT:
        return each.kind
    return "agent" if one is not None and one.attended else "agent, to which nobody speaks"


def _end_of(each: ours.Process) -> str:
    # a dump is given up by its hook; criu itself must not be signalled, and would not hear it
    return f"pkill -P {each.pid}" if each.kind == "criu dump" else f"kill {each.pid}"


def _name(pid: int) -> str:
    try:
        return process.read_stat(pid).name
    except process.NoSuchProcess:
        return ""


def _is_stopped(pid: int) -> bool:
    try:
        return process.read_stat(pid).state == "T"
    except process.NoSuchProcess:
        return False


def _first_line(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape").split("\n")[0]
    except OSError:
        return ""


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def size(directory: str) -> int:
    """Bytes that lie below a directory; files that grow or go meanwhile are counted as they were seen."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except OSError:
                continue
    return total


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return False


def _bound() -> set[str]:
    """Paths of unix sockets that somebody has."""
    try:
        lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
    except OSError:
        return set()
    return {fields[7] for fields in (line.split(None, 7) for line in lines) if len(fields) > 7}
