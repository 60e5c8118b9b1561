"""Facts of both hosts in, a plan and every obstacle out. Pure: asks nobody, touches nothing.

`questions` says what the target must be asked about a tree; `make_plan` reads the answers. What a tree has in itself
that criu can't carry is `obstacle.py`'s; what its files need on the target is `fileplan.py`'s.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from agent import protocol
from agent.protocol import Check, CriuOptions, HostFacts, Incoming, Numbers, Place, TargetCheck, TaskFacts, TreeFacts
from migrator import connections, fileplan, floating, surroundings, terminals, units
from migrator.criu_options import CriuOption
from migrator.obstacle import UNTOUCHABLE, Obstacle, make, of_oddities, reconnects
from migrator.words import bytes_text

__all__ = ["Obstacle", "Plan", "Wishes", "make_plan", "questions"]

OLDEST_CRIU = (3, 17)
"""Carries what glibc ≥ 2.35 registers in every thread (rseq): an older criu breaks programs of today. Also what Debian
12 has, and the oldest that was read for the page server, its `--ps-socket`, and how a failing hook thaws the tree."""

_SOCKETS_CRIU, _SOCKETS_KERNEL = (4, 2), (6, 16)
_PIDFD_CRIU = (4, 1)
_STREAM_CRIU = (4, 2)
"""From here on a page server is spoken to in another way (criu/page-xfer.c, struct page_server_iov), and a pagemap has
its number of pages in a field that older ones do not know (images/pagemap.proto; the old one is 0 then)."""

_MIB = 1 << 20
_GROWTH = 8
"""Images may take an eighth more than the memory that was seen: the tree goes on allocating."""
_SLACK = 32 * _MIB
_PER_TASK = _MIB
_STREAMED = Place()
_FEW_SHARED = 16 * _MIB
"""Shared memory of forked processes that may as well become their own."""
_RESERVE = 64 * _MIB
"""What is left to the target besides."""


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the operator asked for."""

    copy_files: bool = False
    require_precopy: bool = False
    instant: bool = True
    """Resume before memory is filled, where both hosts can."""
    compress: str = "auto"
    """auto, zstd or none."""
    rsync: bool = False
    """Rounds go as image directories, by rsync."""
    images_directory: str = ""
    """Where they lie on the source; "": in memory if there is room, else on disk."""
    shared: str = ""
    """A directory that both hosts see: nothing is sent."""
    hash_files: bool = False
    """Compare the content of files whose size agrees while the time differs."""
    throttle: bool = False
    """Slow it down where pre-copy does not converge."""
    criu_options: tuple[CriuOption, ...] = ()
    """What is handed on to criu as it is."""
    overwrite_files: bool = False
    """With `copy_files`: also those that differ on the target."""
    namespaces: str = "never"
    """A PID namespace of its own on the target: never, auto (where an ID is taken there) or always."""
    unit: bool = False
    """Its systemd unit moves as well."""
    move_addresses: tuple[floating.Wanted, ...] = ()
    """Addresses that move along, with the connections on them."""
    tcp: str = "fail"
    """TCP connections that do not go along: `fail`, they are in the way; `close`, none goes along."""
    durable: bool = False
    """All that a restore needs is on the target's disk before COMMIT."""
    terminal: str = ""
    """What its terminal becomes: attach, ours; detach, one that is held on the target."""
    keep_images: str = ""
    """A directory of the target in which the images are kept."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a tree will be moved."""

    tree: TreeFacts
    precopy: bool
    criu: CriuOptions
    copy_files: tuple[Incoming, ...]
    on_disk: bool  # images go to disk on the target, for want of memory
    memory: int  # bytes that the images may take
    notes: tuple[str, ...]  # a line each, for the operator
    instant: bool = False  # the tree runs before its memory is there
    compress: str = "none"  # auto, zstd, none: how bulk streams go over the wire
    place: Place = _STREAMED  # where rounds are kept on the source, if they are
    namespaces: bool = False  # it gets a PID namespace of its own
    terminal: str = ""  # attach, detach: the tree gets a new one on the target
    floating: floating.Move = floating.NOTHING  # addresses that move along
    systemd: units.Systemd = units.NOTHING  # what systemd has to do with it on either host
    durable: bool = False  # what a restore needs is on the target's disk before COMMIT
    sockets: tuple[str, ...] = ()  # a line each: what becomes of it
    keep: str = ""  # a directory of the target in which the images are kept
    kept: tuple[protocol.PutOnIce, ...] = ()  # what is to be known of the images that the target keeps, where it does

    @property
    def numbers(self) -> tuple[Numbers | TaskFacts, ...]:
        """Every task with the IDs that it will be restored with, the root first."""
        return numbers(self.tree)


NO_WISHES = Wishes()


def numbers(tree: TreeFacts) -> tuple[Numbers | TaskFacts, ...]:
    """Every task's IDs as criu dumps and restores them: those of the namespace that the tree lives in."""
    return tree.inside or tree.tasks


def questions(tree: TreeFacts, wishes: Wishes = NO_WISHES) -> Check:
    """What the target must be asked: every file of the tree, and every id that must be free there."""
    ids = {number for task in numbers(tree) for number in (task.pid, *task.tids, task.pgid, task.sid)}
    root = numbers(tree)[0]
    # a root that leads neither its session nor its group gets those of the criu that restores it (criu/pstree.c)
    outer = {number for number in (root.sid, root.pgid) if number != root.pid}
    helpers = {int(one.object.split("/")[2]) for one in tree.peculiarities if one.kind == "dead-process"}
    digests = wishes.hash_files or wishes.overwrite_files  # what is older there is replaced if its content differs
    asked = Check(fileplan.questions(tree), tuple(sorted((ids - outer - {0}) | helpers)), digests=digests)
    asked = dataclasses.replace(asked, ice=wishes.keep_images)
    return surroundings.questions(tree, asked, unit=wishes.unit)


def make_plan(
    source: HostFacts, target: HostFacts, tree: TreeFacts, check: TargetCheck, wishes: Wishes
) -> tuple[Plan, tuple[Obstacle, ...]]:
    """The plan, and everything that stands in its way, at once. `check` answers `questions(tree)`.

    Raises ValueError when it does not.
    """
    here, there = _names(source, target)
    obstacles = [*_of_host(here, source), *_of_host(there, target), *_of_pair(here, source, there, target, wishes)]
    moving = floating.chosen(source, target, wishes.move_addresses, tree.peculiarities)
    move, in_addresses = floating.resolve(here, source, there, target, moving)
    obstacles += in_addresses
    obstacles += of_oddities(here, tree.peculiarities)
    obstacles += connections.obstacles(here, tree.peculiarities, move, wishes.tcp)
    lacking = [name for name, host in ((here, source), (there, target)) if not host.rsync]
    if wishes.rsync and not wishes.shared:
        obstacles += [make("rsync-missing", name, "rsync") for name in lacking]
    if wishes.throttle and tree.no_throttle:
        obstacles.append(make("no-throttle", here, "--on-no-converge throttle", why=tree.no_throttle))
    copies: tuple[Incoming, ...] = ()
    memory, on_disk = _image_room(tree), False
    taken: list[Obstacle] = []
    namespaces = bool(tree.inside) or wishes.namespaces == "always"
    if not any(one.kind in UNTOUCHABLE for one in tree.peculiarities):
        obstacles += _of_tree(here, source, there, target, tree)
        taken = list(_of_ids(there, tree, check))
        namespaces = namespaces or (wishes.namespaces == "auto" and bool(taken))
        if namespaces and not target.conditions.pid_namespaces:
            obstacles.append(make("no-namespaces", there, f"kernel {target.kernel}"))
        obstacles += [] if namespaces else taken
        in_files, copies = fileplan.judge(
            here, there, tree, check.files, copy_files=wishes.copy_files, overwrite=wishes.overwrite_files
        )
        obstacles += in_files
        if copies:
            problem, remedy = "is not installed, and it is to copy files", "install it, e.g. `apt install rsync`"
            obstacles += [make("rsync-missing", name, "rsync", problem=problem, remedy=remedy) for name in lacking]
        obstacles += surroundings.judge(
            here, source, there, target, tree, floating.owned_then(check, move), unit=wishes.unit
        )
        obstacles += terminals.obstacles(here, tree, wishes.terminal)
        obstacles += units.obstacles(here, there, source, tree, check, wishes.unit)
        obstacles += units.no_journal(here, target, tree)
        on_disk, in_room = _room(there, tree, 0 if wishes.shared else memory, check, durable=wishes.durable)
        obstacles += in_room
        for found in check.ice:
            obstacles += surroundings.of_ice(there, wishes.keep_images, memory, found)
    notes = [one.note for one in obstacles if not one.stops]
    notes += _notes(here, there, source, tree, on_disk and not wishes.durable)
    notes += floating.notes(wishes.move_addresses, move)
    notes += units.notes(here, there, source, target, tree, wishes.unit)
    notes += _why_namespace(there, tree, taken) if namespaces else ()
    eagerly = _why_eagerly(there, target, tree, wishes.keep_images) if wishes.instant else ""
    if eagerly:
        notes.append(eagerly)
    instant = wishes.instant and not eagerly
    compress = wishes.compress if target.zstd else "none"
    if compress != wishes.compress == "zstd":
        notes.append(f"{there} has no zstd, so nothing is compressed: install libzstd there (`apt install libzstd1`)")
    systemd = units.systemd(here, tree, wishes.unit)
    facts = protocol.PutOnIce(source, tree, wishes.terminal, systemd.scope, systemd.logged)
    plan = Plan(
        tree=tree, precopy=source.dirty_tracking, criu=_options(source, tree, wishes, move), copy_files=copies,
        on_disk=on_disk, memory=memory, notes=tuple(notes), instant=instant, compress=compress,
        place=_place(source, memory, wishes), namespaces=namespaces, terminal=wishes.terminal, floating=move,
        systemd=systemd, durable=wishes.durable, keep=wishes.keep_images, kept=(facts,) if wishes.keep_images else (),
        sockets=tuple(connections.fates(here, there, tree.peculiarities, move, wishes.tcp)),
    )  # fmt: skip
    return plan, tuple(dict.fromkeys(obstacles))


def _names(source: HostFacts, target: HostFacts) -> tuple[str, str]:
    here, there = source.hostname or "source", target.hostname or "target"
    return (f"{here} (source)", f"{there} (target)") if here == there else (here, there)


# --- hosts -----------------------------------------------------------------------------------------------------------


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 4.1.1, 6.12.43+deb13-amd64."""
    found = re.match(r"[0-9]{1,9}(?:\.[0-9]{1,9})*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _of_host(name: str, host: HostFacts) -> Iterator[Obstacle]:
    if host.uid != 0:
        yield make("no-root", name, f"uid {host.uid}")
    if not host.criu_version:
        yield make("criu-missing", name, "criu")
        return
    if _version(host.criu_version) < OLDEST_CRIU:
        yield make("criu-old", name, f"criu {host.criu_version}", needed=_dotted(OLDEST_CRIU))
    if host.criu_check and host.uid == 0:  # without root criu's check fails for that reason alone
        yield make("criu-check", name, f"criu {host.criu_version}", line=host.criu_check)


def _of_pair(here: str, source: HostFacts, there: str, target: HostFacts, wishes: Wishes) -> Iterator[Obstacle]:
    if source.machine != target.machine:
        yield make("architecture", there, target.machine, here=here, machine=source.machine)
    elif target.cpu_check:
        yield make("cpu", there, "CPU", here=here, missing=target.cpu_check)
    if source.criu_version and _version(target.criu_version)[:1] > _version(source.criu_version)[:1]:
        yield make("criu-newer", there, f"criu {target.criu_version}", here=here, version=source.criu_version)
    if source.page_size != target.page_size:
        yield make("page-size", there, f"{target.page_size} B pages", here=here, size=source.page_size)
    older = _version(target.criu_version) < _version(source.criu_version)
    if source.criu_version and target.criu_version and older:
        yield make("criu-older", there, f"criu {target.criu_version}", here=here, version=source.criu_version)
    if source.criu_version and target.criu_version:
        old, old_there = (_version(host.criu_version) < _STREAM_CRIU for host in (source, target))
        if old != old_there and (old_there or not (wishes.rsync or wishes.shared)):
            problem = f"does not read the images of criu {source.criu_version} on {here}" if old_there else ""
            yield make(
                "criu-stream", there, f"criu {target.criu_version}", problem=problem, here=here,
                version=source.criu_version,
            )  # fmt: skip
    if source.criu_version and not source.dirty_tracking:
        yield make("no-dirty-tracking", here, f"kernel {source.kernel}", stops=wishes.require_precopy)


# --- the tree on both hosts ------------------------------------------------------------------------------------------


def _of_tree(here: str, source: HostFacts, there: str, target: HostFacts, tree: TreeFacts) -> Iterator[Obstacle]:
    kinds = {one.kind for one in tree.peculiarities}
    root = tree.tasks[0]
    if root.state == "Z" and len(root.tids) == 1:
        yield make("zombie", here, f"pid {root.pid}", name=root.name)
    criu, kernel = _version(source.criu_version), _version(source.kernel)
    if "inet-socket" in kinds and criu and criu < _SOCKETS_CRIU and kernel >= _SOCKETS_KERNEL:
        yield make(
            "criu-kernel-sockets", here, f"criu {source.criu_version}", newest=_dotted(_SOCKETS_KERNEL),
            kernel=source.kernel, needed=_dotted(_SOCKETS_CRIU),
        )  # fmt: skip
    for name, host in ((here, source), (there, target)):
        if "pidfd" in kinds and host.criu_version and _version(host.criu_version) < _PIDFD_CRIU:
            yield make("pidfd", name, f"criu {host.criu_version}", needed=_dotted(_PIDFD_CRIU))
    highest = max(max(task.pid, *task.tids, 0) for task in numbers(tree))
    if highest >= target.pid_max:
        yield make("pid-range", there, f"pid {highest}", last=target.pid_max - 1, wanted=source.pid_max)


def _of_ids(there: str, tree: TreeFacts, check: TargetCheck) -> Iterator[Obstacle]:
    wanted = set(questions(tree).ids)
    for task in check.taken:
        for number, what in sorted(_holds(task).items()):
            if number in wanted:
                yield make("pid-taken", there, f"pid {number}", what=what, name=task.name, pid=task.pid)


def _why_namespace(there: str, tree: TreeFacts, taken: list[Obstacle]) -> Iterator[str]:
    if tree.inside:
        yield f"it lives in a PID namespace of its own (pid {tree.inside[0].pid} there), and gets one on {there} too"
    elif taken:
        yield f"{there}: {taken[0].object} {taken[0].problem}: it gets a PID namespace of its own there"


def _holds(task: TaskFacts) -> dict[int, str]:
    """The numbers that a process keeps from being given out, and as what."""
    return {
        task.sid: "the session of", task.pgid: "the process group of",
        **dict.fromkeys(task.tids, "a thread of"), task.pid: "taken by",
    }  # fmt: skip


def _ghosts(tree: TreeFacts) -> list[int]:
    return [int(one.detail or 0) for one in tree.peculiarities if one.kind == "ghost"]


def _image_room(tree: TreeFacts) -> int:
    return tree.memory + tree.memory // _GROWTH + sum(_ghosts(tree)) + _SLACK + _PER_TASK * len(tree.tasks)


def _place(source: HostFacts, images: int, wishes: Wishes) -> Place:
    """Rounds that are kept add up: twice the memory is room for many, and a tmpfs takes only what lies in it."""
    directory = wishes.shared or wishes.images_directory
    if not (wishes.rsync or wishes.shared):
        return _STREAMED
    in_memory = not directory and source.memory_available >= 2 * images + _RESERVE
    return Place(True, 2 * images if in_memory else 0, directory, bool(wishes.shared))


def _room(
    there: str, tree: TreeFacts, images: int, check: TargetCheck, *, durable: bool
) -> tuple[bool, list[Obstacle]]:
    """Whether the images must go to disk, and what is short then. Restored eagerly, both stand at once."""
    memory, disk = check.memory_available, check.disk_available
    if memory >= images + tree.memory + _RESERVE and not durable:
        return False, []
    short = []
    if durable and check.disk_volatile:
        short.append(make("not-durable", there, "/var/lib/migrate", kind=check.disk_volatile))
    if memory < tree.memory + _RESERVE:
        problem = f"{bytes_text(memory)} are available, and the tree alone takes {bytes_text(tree.memory)}"
        remedy = f"free {bytes_text(tree.memory + _RESERVE - memory)} of memory there"
        short.append(make("no-room", there, "memory", problem=problem, remedy=remedy))
    if disk < images + _RESERVE:
        problem = f"{bytes_text(images)} of images fit neither in memory nor on disk ({bytes_text(disk)} free)"
        on_disk = f"{bytes_text(images + _RESERVE - disk)} of disk"
        remedy = f"free {bytes_text(images + tree.memory + _RESERVE - memory)} of memory there, or {on_disk}"
        if durable:
            problem = f"{bytes_text(images)} of images do not fit on its disk ({bytes_text(disk)} free)"
            remedy = f"free {on_disk} there, or leave --durable"
        short.append(make("no-room", there, "images", problem=problem, remedy=remedy))
    return not short, short


# --- the plan --------------------------------------------------------------------------------------------------------


def _options(source: HostFacts, tree: TreeFacts, wishes: Wishes, move: floating.Move) -> CriuOptions:
    kinds = {one.kind for one in tree.peculiarities}
    ghosts = _ghosts(tree)
    options = CriuOptions(
        shell_job="shell-job" in kinds,
        # criu's limit guards against surprises; this one still does, but a temporary file may double meanwhile
        ghost_limit=2 * max(ghosts) + 16 * _MIB if ghosts else 0,
        file_locks="file-lock" in kinds,
        tcp_established=bool(move.here) and wishes.tcp != connections.CLOSE,
        tcp_close=wishes.tcp == connections.CLOSE,
        extra=("--ext-unix-sk",) if any(reconnects(one) for one in tree.peculiarities) else (),
        for_dump=(
            *(("--network-lock", connections.lock(nft=source.nft)) if move.here else ()),
            *(("--skip-in-flight",) if wishes.tcp == connections.CLOSE else ()),
            *(word for one in units.logged(tree) for word in ("--external", f"unix[{one.inode}]")),
            *(one.argument for one in wishes.criu_options if one.end != "restore"),
        ),
        for_restore=tuple(one.argument for one in wishes.criu_options if one.end != "dump"),
    )
    return terminals.options(tree, wishes.terminal, options)


def _why_eagerly(there: str, target: HostFacts, tree: TreeFacts, keep: str) -> str:
    """Why memory has to be restored before the tree runs; "" where it need not.

    Pages that tasks share since a fork are dumped once for each; criu, restoring eagerly, shares them again, and
    userfaultfd can't (CRIU.md).
    """
    if target.no_lazy_pages:
        return f"{there}: memory is restored before the process runs: {target.no_lazy_pages}"
    if tree.copied_on_write > max(_FEW_SHARED, tree.memory // 10):
        shared = bytes_text(tree.copied_on_write)
        return f"memory is restored before the process runs: {shared} of it are shared by its processes since a fork"
    return f"{there}: memory is restored before the process runs: filling it in would use its images up" if keep else ""


def _notes(here: str, there: str, source: HostFacts, tree: TreeFacts, on_disk: bool) -> Iterator[str]:
    if source.criu_version and not source.cpuinfo:
        yield f"criu can't describe the CPU of {here} ({source.machine}), so it was not compared with that of {there}"
    if on_disk:
        yield f"{there} has too little free memory for the images, so they go to disk; that is slower"
    for one in tree.peculiarities:
        if one.kind == "shell-job":
            yield (
                f"pid {one.pid} does not lead its session ({one.detail} does): moved as a shell job, "
                f"it gets a session of its own on {there}"
            )
        elif one.kind == "chroot":
            yield f"pid {one.pid} is confined to {one.object}: {there} needs the same files, also those it opens later"
        elif reconnects(one):
            yield f"pid {one.pid} sends to {one.object}: on {there} it is connected to the socket of that name"
