"""BEGIN and PREPARED: what a host writes down of a migration before it does anything, for itself and whoever settles
it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

from agent import floating, process
from agent.journal import Journal
from agent.protocol import Begin, Prepare, TaskFacts
from agent.settings import Settings


def begun(settings: Settings, request: Begin, tasks: Iterable[TaskFacts], *, on_disk: bool) -> Journal:
    """The journal of a migration from this host, begun. Raises JournalError, OSError."""
    place = str(settings.place(request.migration, on_disk=on_disk, directory=request.place.directory))
    return Journal.create(
        settings.state, request.migration, "source",
        peer=request.target, root=request.pid, boot=process.boot_id(),
        tasks=[[task.pid, task.start_time] for task in tasks],
        on_disk=on_disk, directory=request.place.directory, images=place,
        ice=place if request.place.ice else "",
        locks=str(settings.locks), agent=[os.getpid(), process.start_time(os.getpid())],
        migrate=process.identity(request.migrate), floating=floating.written(request.floating),
    )  # fmt: skip


def written_down(settings: Settings, request: Prepare) -> Journal:
    """The journal of a migration to this host, begun. Raises JournalError, OSError."""
    return Journal.create(
        settings.state, request.migration, "target",
        peer=request.source, root=request.root, boot=process.boot_id(), on_disk=request.on_disk,
        durable=request.durable, ice=request.ice, keep=request.keep,
        shared=request.shared, lease=request.lease, terminal=request.terminal, ptys=request.ptys,
        scope=dataclasses.asdict(request.scope), logged=[[one.inode, one.identifier] for one in request.logged],
        namespace=process.clear_of(request.ids, 1) if request.namespaces else 0,
        images=str(settings.place(request.migration, on_disk=request.on_disk, directory="")),
        options=dataclasses.asdict(request.options), agent=[os.getpid(), process.start_time(os.getpid())],
        floating=floating.written(request.floating),
        # sshd says where the session comes from, unless sudo has taken it out of the environment
        address=os.environ.get("SSH_CONNECTION", "").split(" ")[0],
    )  # fmt: skip
