"""Every parser of something that somebody else has written, as a function of bytes.

Each catches what its parser is documented to raise; whatever else comes out of it is a finding, and so is an assertion
that does not hold. What a parser may cost, `limits` says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from tests.fuzz import answers, files, lines, memory


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
    Harness("target", lines.target, lines.targets, 256),
    Harness("plan", lines.plan, lines.plans),
    Harness("answers", answers.answers, answers.answers_seeds, 8192),
    Harness("report", answers.report, answers.reports, 512),
    Harness("verdict", answers.verdict, answers.verdicts),
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
    Harness("unchanged", memory.unchanged, memory.page_streams, 16384),
)

BY_NAME = {harness.name: harness for harness in HARNESSES}
