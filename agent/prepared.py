"""PREPARED: what a target writes down of a migration before it does anything, for itself and for whoever settles it."""

from __future__ import annotations

import dataclasses
import os

from agent import process
from agent.journal import Journal
from agent.protocol import Prepare
from agent.settings import Settings


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
        # sshd says where the session comes from, unless sudo has taken it out of the environment
        address=os.environ.get("SSH_CONNECTION", "").split(" ")[0],
    )  # fmt: skip
