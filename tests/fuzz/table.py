"""Every parser of something that somebody else has written, as a function of bytes.

Each catches what its parser is documented to raise; whatever else comes out of it is a finding, and so is an assertion
that does not hold. What a parser may cost, `limits` says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from tests.fuzz import answers, files, frozen, kept, lines, memory, network, records


@dataclasses.dataclass(frozen=True)
class Harness:
    """One parser."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    """Good inputs, to begin with."""
    longest: int = 4096
    """Bytes of an input at most."""


HARNESSES = (
    Harness("request", lines.request, lines.requests),
    Harness("reply", lines.reply, lines.replies),
    Harness("banner", lines.banner, lines.banners, 512),
    Harness("stream-header", lines.stream_header, lines.headers, 512),
    Harness("boot", lines.boot, lines.boots),
    Harness("rsync-server", lines.rsync_server, lines.rsync_servers, 1024),
    Harness("criu-log", lines.criu_log, lines.criu_logs),
    Harness("stat", lines.stat, lines.stats, 1024),
    Harness("systemd", lines.systemd, lines.shown),
    Harness("target", lines.target, lines.targets, 256),
    Harness("plan", lines.plan, lines.plans),
    Harness("answers", answers.answers, answers.answers_seeds, 8192),
    Harness("report", answers.report, answers.reports, 512),
    Harness("verdict", answers.verdict, answers.verdicts),
    Harness("status", answers.status_of, answers.statuses, 8192),
    Harness("outcome", answers.outcome, answers.outcomes),
    Harness("told", records.told, records.journals),
    Harness("obeyed", records.obeyed, records.journals),
    Harness("beside", records.beside, records.words, 1024),
    Harness("kept-report", kept.kept_report, kept.kept_reports, 8192),
    Harness("configuration", kept.configuration, kept.configurations),
    Harness("drain", kept.drain, kept.drains),
    Harness("history", kept.history, kept.histories),
    Harness("journal", files.journal, files.journals),
    Harness("ledger", files.ledger, files.ledgers),
    Harness("archive", files.archive, files.archives, 8192),
    Harness("deltas", files.incoming, files.incomings),
    Harness("held", files.held, files.helds),
    Harness("elf", files.elf_of, files.elves),
    Harness("pagemap", memory.pagemap, memory.pagemaps),
    Harness("areas", memory.areas, memory.mms),
    Harness("index", memory.index, memory.rounds, 8192),
    Harness("core", memory.core, memory.cores),
    Harness("terminal-images", memory.terminal, memory.terminals),
    Harness("statistics", memory.statistics, memory.statistics_files, 512),
    Harness("traits", memory.traits, memory.traits_files),
    Harness("frames", memory.frames, memory.packed_streams, 8192),
    Harness("typed", memory.typed, memory.keys),
    Harness("manifest", frozen.manifest, frozen.manifests, 8192),
    Harness("restored", frozen.restored, frozen.restoreds, 512),
    Harness("unchanged", memory.unchanged, memory.page_streams, 16384),
    Harness("neighbour", network.neighbour, network.neighbours, 256),
    Harness("inventory", network.inventory, network.inventories, 512),
)

BY_NAME = {harness.name: harness for harness in HARNESSES}

READERS: dict[str, tuple[str, ...] | str] = {
    "agent/addresses.py": "the kernel's list of addresses",
    "agent/announce.py": "sums up frames of its own",
    "agent/boot.py": ("told", "obeyed"),
    "agent/bulk.py": ("stream-header",),
    "agent/claim.py": "takes a lock, and reads nothing",
    "agent/criu.py": ("criu-log", "statistics"),
    "agent/deltas.py": ("deltas", "held"),
    "agent/deposing.py": "the kernel's struct flock",
    "agent/duplicates.py": ("neighbour",),
    "agent/elf.py": ("elf",),
    "agent/floating.py": ("inventory",),
    "agent/fill.py": "lines of our own pager, through a socketpair",
    "agent/frames.py": ("frames",),
    "agent/freezer.py": ("beside",),
    "agent/hold.py": ("beside", "told"),
    "agent/holder.py": ("typed",),
    "agent/host.py": "cpuinfo.img, which goes on to criu as it is",
    "agent/ice.py": ("manifest", "restored"),
    "agent/images.py": ("archive", "core"),
    "agent/journal.py": ("journal", "told", "obeyed"),
    "agent/journald.py": "writes to journald, which answers nothing",
    "agent/ledger.py": ("ledger", "told"),
    "agent/leftovers.py": ("told",),
    "agent/lodging.py": ("beside",),
    "agent/namespace.py": ("beside",),
    "agent/pagemap.py": ("pagemap", "areas", "index"),
    "agent/pager.py": "the hello of criu, in a socket of its own; the record is `record`'s",
    "agent/placing.py": ("deltas",),
    "agent/prepared.py": "writes a journal's first line; what it takes is a request",
    "agent/process.py": ("stat",),
    "agent/record.py": "memory that pager and warden share, and nobody else has",
    "agent/rsync.py": ("rsync-server",),
    "agent/rules.py": ("obeyed",),
    "agent/service.py": ("systemd",),
    "agent/settle.py": ("journal", "told", "obeyed"),
    "agent/sockets.py": "netlink messages of the kernel",
    "agent/standing.py": ("told",),
    "agent/story.py": ("told",),
    "agent/strays.py": ("beside",),
    "agent/target.py": "has `arriving` unpack an archive, which `images` does",
    "agent/throttle.py": ("beside",),
    "agent/traits.py": ("traits",),
    "agent/ttyimages.py": ("terminal-images",),
    "agent/userfault.py": "events of the kernel",
    "agent/warden.py": "lines of our own agent, through a socketpair",
    "agent/watches.py": "the kernel's /proc/PID/fdinfo",
    "agent/wire.py": ("request", "reply"),
    "migrator/channel.py": ("target",),
    "migrator/config.py": ("configuration",),
    "migrator/forward.py": ("outcome",),
    "migrator/history.py": ("history",),
    "migrator/kept.py": "the files' names; what stands in them is `report`'s",
    "migrator/recovery.py": ("verdict", "outcome"),
    "migrator/report.py": ("kept-report",),
    "migrator/runbook.py": ("plan",),
    "migrator/standing.py": ("drain",),
    "migrator/status_words.py": ("status",),
    "migrator/unchanged.py": ("unchanged",),
}
"""Who takes bytes apart: the harnesses that get there, or why none is needed."""
