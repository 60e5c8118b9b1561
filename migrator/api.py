"""The Python API: `migrate`, `rehearse` and `check`, which the command line itself uses.

    report = await migrator.migrate(4711, "root@db2", migrator.Options(copy_files=True), on_event=print)

Owns what is ordered and in which words; how it is done is `migration`'s. An option here is one of the command line, of
the same name, default and meaning (`migrate help WORD`); a test keeps the two alike. Configuration files are the
command line's alone: what is not said here has its built-in value.

Each coroutine runs on the source, as root or as a user who may `sudo -n`. Cancelling it before COMMIT undoes everything
before CancelledError comes out; from COMMIT on the migration is finished first. What goes wrong is a MigrateError
(`migrator.errors`), whose `exit_code` and `where` say where the process is. Nothing is printed, and no signal handler
is set: a program that is told to end has to cancel.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

from agent.protocol import LEASE
from migrator import arguments, channel, criu_options, errors, floating, hosts, migration, plan, precopy, terminals
from migrator.events import Listener, Telling

if TYPE_CHECKING:
    from migrator.obstacle import Obstacle
    from migrator.phases import Report


@dataclasses.dataclass(frozen=True)
class Options:
    """How to move it. Raises UsageError for values that make no sense, alone or together."""

    max_downtime: float = precopy.Limits.max_downtime
    """Seconds: freeze when the predicted downtime is at most this."""
    max_rounds: int = precopy.Limits.max_rounds
    """Pre-copy rounds at most; 0 moves everything in the freeze."""
    on_no_converge: Literal["freeze", "fail", "throttle"] = "freeze"
    """Where the predicted downtime stays above the limit: move it all the same, leave it, or slow it down first."""
    require_precopy: bool = False
    """Refuse where the source cannot track dirty memory."""
    resume: Literal["instant", "eager"] = "instant"
    """Run before memory is filled in, or after."""
    copy_files: bool = False
    """Copy regular files that the tree writes to, or that are missing on the target."""
    overwrite_files: bool = False
    """With `copy_files`: also those that differ there."""
    verify: Literal["size", "hash"] = "size"
    """How files that should be the same are compared."""
    namespaces: Literal["never", "auto", "always"] = "never"
    """A PID namespace of its own on the target."""
    terminal: Literal["", "attach", "detach"] = ""
    """What its terminal becomes: the channel that `on_terminal` is given, or one that is held on the target."""
    transport: Literal["stream", "rsync"] = "stream"
    """Pages from criu to criu, or image directories by rsync."""
    compress: Literal["auto", "zstd", "none"] = "auto"
    """Compress what travels: where it pays, always, or never."""
    bandwidth: float = 0.0
    """Bytes a second on the wire at most, until the freeze; 0: as many as go."""
    rsh: str = ""
    """With rsync: its remote shell."""
    images_dir: str = ""
    """With rsync: where the image directories lie here."""
    shared: str = ""
    """A directory that both hosts see: the images are written there, and nothing is sent."""
    unit: bool = False
    """It is a systemd service, and moves as one."""
    move_address: tuple[str | floating.Wanted, ...] = ()
    """Addresses that move along, with the TCP connections on them: ADDR[/LEN][@IFACE[:DSTIFACE]], or auto."""
    tcp: Literal["fail", "close"] = "fail"
    """TCP connections that do not move along with an address: refuse, or close them all."""
    lease: float = LEASE
    """Seconds that the target holds the tree when contact is lost once it stands there; then its images are kept."""
    durable: bool = False
    """What a restore needs is on the target's disk before the process is ended here: it outlives a power cut there."""
    keep_images: str = ""
    """A directory of the target in which the images stay, on ice, restorable there with `migrate restore`."""
    sudo: bool = False
    """Become root on the target with `sudo -n`."""
    criu: str = ""
    """The criu program on both hosts; "": by PATH."""
    criu_option: tuple[str | criu_options.CriuOption, ...] = ()
    """Options of criu's: NAME or NAME=VALUE, with dump: or restore: before it for one end alone."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name, kind in get_type_hints(Options).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise errors.UsageError(f"{name}: {getattr(self, name)!r} is none of {', '.join(get_args(kind))}")
        if not (
            math.isfinite(self.max_downtime)
            and self.max_downtime > 0
            and min(self.bandwidth, self.max_rounds, self.lease) >= 0
        ):
            raise errors.UsageError("max_downtime is more than 0; max_rounds, bandwidth and lease are not less")
        if wrong := arguments.contradiction(self):
            raise errors.UsageError(wrong)


@dataclasses.dataclass(frozen=True)
class Checked:
    """What preflight found; nothing was changed."""

    obstacles: tuple[Obstacle, ...]
    """All of them; those that do not `stops` are warnings."""
    notes: tuple[str, ...]
    """How it would be moved, where that is not as usual."""

    @property
    def movable(self) -> bool:
        """Whether nothing stands in the way."""
        return not any(obstacle.stops for obstacle in self.obstacles)


async def migrate(
    pid: int,
    host: str,
    options: Options | None = None,
    *,
    on_event: Listener | None = None,
    on_terminal: Callable[[channel.Channel], Awaitable[None]] | None = None,
) -> Report:
    """Move the process tree of `pid` to `[USER@]HOST[:PORT]`, and tell how it went.

    `on_event` is called with each `events.Event`, in order; it must not block. An exception of its own changes nothing
    of what happens to the process, and comes out at the end. `on_terminal` is for `terminal="attach"`: it is awaited
    with the tree's new terminal once it runs on the target. Leftovers of a migration that went well are in the report.

    Raises MigrateError; CancelledError, once all is undone.
    """
    if options is not None and options.terminal == terminals.ATTACH and on_terminal is None:
        raise errors.UsageError("terminal: attach needs somebody who shows it, on_terminal")
    return await migration.migrate(order(pid, host, options, show=on_terminal), Telling(*_listeners(on_event)))


async def rehearse(pid: int, host: str, options: Options | None = None, *, on_event: Listener | None = None) -> Report:
    """Up to the tree held on the target, and back: `downtime_seconds` are the pause. Raises as `migrate`."""
    return await migration.migrate(order(pid, host, options, rehearsal=True), Telling(*_listeners(on_event)))


async def check(pid: int, host: str, options: Options | None = None, *, on_event: Listener | None = None) -> Checked:
    """Preflight alone: every obstacle at once; changes nothing. Raises ConnectError, NoProcess and their kind."""
    chosen, obstacles = await migration.check(order(pid, host, options), Telling(*_listeners(on_event)))
    return Checked(obstacles, (*chosen.notes, *chosen.sockets))


def _listeners(on_event: Listener | None) -> tuple[Listener, ...]:
    return () if on_event is None else (on_event,)


def order(
    pid: int,
    host: str,
    options: Options | None = None,
    *,
    rehearsal: bool = False,
    show: Callable[[channel.Channel], Awaitable[None]] | None = None,
) -> hosts.Order:
    """What the engine is asked for. Raises errors.UsageError for a process or a host that makes no sense."""
    options = options or Options()
    target = channel.parse_target(host)
    if pid <= 0:
        raise errors.UsageError(f"{pid} is no process id")
    if options.transport == "rsync" and not options.shared and os.geteuid() != 0:
        raise errors.UsageError("--transport rsync: only root may read the images here, so run migrate as root")
    return hosts.Order(
        pid=pid,
        target=target,
        wishes=plan.Wishes(
            options.copy_files,
            options.require_precopy,
            options.resume == "instant",
            options.compress,
            rsync=options.transport == "rsync",
            images_directory=options.images_dir,
            shared=options.shared,
            hash_files=options.verify == "hash",
            throttle=options.on_no_converge == "throttle",
            criu_options=tuple(map(_criu_option, options.criu_option)),
            overwrite_files=options.overwrite_files,
            namespaces=options.namespaces,
            move_addresses=tuple(map(_moving, options.move_address)),
            tcp=options.tcp,
            terminal=options.terminal,
            unit=options.unit,
            durable=options.durable,
            keep_images=options.keep_images,
        ),
        limits=precopy.Limits(options.max_downtime, options.max_rounds, precopy.OnNoConverge(options.on_no_converge)),
        sudo=options.sudo,
        criu=options.criu,
        bandwidth=options.bandwidth,
        rsh=options.rsh,
        lease=options.lease,
        rehearsal=rehearsal,
        show=show,
    )


def _criu_option(option: str | criu_options.CriuOption) -> criu_options.CriuOption:
    if not isinstance(option, str):
        return option
    try:
        return criu_options.parse(option)
    except ValueError as error:
        raise errors.UsageError(f"criu_option: {error}") from None


def _moving(address: str | floating.Wanted) -> floating.Wanted:
    if isinstance(address, floating.Wanted):
        return address
    try:
        return floating.parse(address)
    except ValueError as error:
        raise errors.UsageError(f"move_address: {error}") from None
