"""The grid as data: faults, victims and instants, which of them go together, and what must come of each. Pure.

What must come of a cell follows from DESIGN's rules, never from what was seen: before HELD is on the target's disk
whatever breaks is undone; then the target keeps what it holds; COMMIT, once it is on the source's disk, or asked for
and not refused, makes everything go forward.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

# --- instants --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Instant:
    """A point of a migration: on which host somebody stands there, and by what name (agent/instants.py)."""

    name: str
    host: str
    at: str


INSTANTS = (
    Instant("connect", "beta", "connect"),
    Instant("preflight", "beta", "preflight"),
    Instant("round 1", "alpha", "round 1"),
    Instant("round 2", "alpha", "round 2"),
    Instant("freeze", "alpha", "freeze"),
    Instant("dump", "alpha", "dump"),
    Instant("images sent", "alpha", "images sent"),
    Instant("restore", "beta", "restore"),
    Instant("restoring", "beta", ""),
    Instant("held", "beta", "held"),
    Instant("commit asked", "alpha", "commit asked"),
    Instant("committed", "alpha", "committed"),
    Instant("source killed", "alpha", "source killed"),
    Instant("commit acknowledged", "alpha", "phase resume"),
    Instant("resume asked", "beta", "resume asked"),
    Instant("resuming", "beta", "resuming"),
    Instant("resumed", "beta", "resumed"),
    Instant("fill", "beta", "fill"),
    Instant("acknowledged", "alpha", "phase fill"),
    Instant("clean", "beta", "clean"),
)
"""In their order. At `dump` and `restoring` criu itself is stopped half-way, by somebody who does not take its pages,
or does not give it any: `migrate`, which stands still until the harm is done, and the pager."""

NAMES = tuple(instant.name for instant in INSTANTS)
INSTANT = {instant.name: instant for instant in INSTANTS}
PHASES = ("commit acknowledged", "acknowledged")
"""Here no agent stands, but `migrate`: it has an answer that nobody else knows of."""


def _from(first: str, last: str) -> tuple[str, ...]:
    """The instants from one to another."""
    return NAMES[NAMES.index(first) : NAMES.index(last) + 1]


ROUNDS = ("round 1", "round 2")

# --- victims ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Victim:
    """A process: on which host, what the hand there calls it, and at which instants it is there."""

    name: str
    host: str
    kind: str
    there: tuple[str, ...]
    why_not: str
    """Why it has no cells elsewhere."""


VICTIMS = {
    victim.name: victim
    for victim in (
        Victim("migrate", "alpha", "migrate", NAMES, ""),
        Victim("source agent", "alpha", "agent", NAMES, ""),
        Victim("target agent", "beta", "agent", NAMES, ""),
        Victim(
            "source criu", "alpha", "dump", tuple({*ROUNDS, *_from("dump", "committed")}),
            "it is started at a round or at the freeze, and leaves when it is released",
        ),
        Victim(
            "target criu", "beta", "restore", _from("freeze", "resuming"),
            "it waits from `prepare` on, where nothing yet happens to it, and leaves when it is released",
        ),
        Victim("page server", "beta", "page server", tuple({*ROUNDS, "freeze", "dump"}),
               "it ends when the last page has come"),
        Victim("source hook", "alpha", "hook", _from("images sent", "committed"), "it is there while criu is held"),
        Victim("target hook", "beta", "hook", _from("held", "resuming"), "it is there while criu is held"),
        Victim("ssh", "alpha", "ssh", _from("round 1", "clean"), "it is started for the streams"),
        Victim("pager", "beta", "pager", (*_from("freeze", "resuming"), "fill"),
               "when the tree runs it may be done at any time, but for `fill`, where it stands before it begins"),
        Victim("warden", "beta", "warden", (*_from("freeze", "resuming"), "fill"), "as the pager"),
    )
}  # fmt: skip

# --- faults ----------------------------------------------------------------------------------------------------------

KILL, TERM, STOP = "SIGKILL", "SIGTERM", "SIGSTOP 5 s"
DROP, HOLE = "link dropped", "link black-holed"
TMPFS, DISK, LIMIT = "tmpfs full", "disk full", "memory limit"
DAMAGED, CUT = "stream corrupted", "stream cut short"
CLOCK, REBOOT = "clock jump", "host rebooted"

FEW = ("preflight", "round 1", "freeze", "dump", "restore", "held", "committed", "resume asked", "resuming", "fill")
"""For faults that cost seconds, or that most victims do not heed."""
HOLES = ("freeze", "restore", "held", "committed", "resuming", "clean")

SOURCE, TARGET, CRIU_LOST, HOST_LOST = "source", "target", "criu-lost", "lost with its host"
MIGRATED, UNDONE, FAILED = frozenset({0}), frozenset(range(30, 40)), frozenset(range(10, 40))
KILLED = -1
"""In the place of an exit status: it was killed."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One of the grid's. `places` and `codes` are where the process may end, and with what `migrate` may."""

    fault: str
    victim: str
    instant: str
    backend: str
    places: tuple[str, ...]
    codes: frozenset[int]

    @property
    def id(self) -> str:
        """A name for it."""
        return "-".join((self.fault, self.victim, self.instant)).replace(" ", "_")


def _is_before(instant: str, other: str) -> bool:
    return NAMES.index(instant) < NAMES.index(other)


def _undone(instant: str) -> tuple[tuple[str, ...], frozenset[int]]:
    return (SOURCE,), FAILED if _is_before(instant, "round 1") else UNDONE


FORWARD = ((TARGET,), MIGRATED)


def _killed(victim: str, instant: str) -> tuple[tuple[str, ...], frozenset[int]]:
    """What must come of it when this victim dies at this instant."""
    if victim == "migrate":
        # at `commit asked` the source's agent has its order, and carries it out
        return ((TARGET,) if _is_before("held", instant) else (SOURCE,)), frozenset({KILLED})
    if victim == "source criu" and (instant == "dump" or instant in ROUNDS):
        return (SOURCE, CRIU_LOST), UNDONE | {21}  # CRIU's limit (DESIGN: the commit, rule 6)
    if victim in ("source criu", "source hook") and instant in ("held", "commit asked"):
        # not seen dead yet when COMMIT is asked for, COMMIT stands: SIGSTOP has kept the tree from running
        return (SOURCE, TARGET), UNDONE | MIGRATED
    if victim in ("source agent", "source criu", "source hook"):
        return _undone(instant) if _is_before(instant, "committed") else FORWARD
    if victim == "target agent":  # at `held` nobody has its word yet
        return _undone(instant) if _is_before(instant, "commit asked") else FORWARD
    if victim in ("target criu", "page server"):
        return _undone(instant) if _is_before(instant, "held") else FORWARD
    if victim == "ssh":
        if instant == "images sent":  # whether criu has the word of the last page already is nobody's to say
            return (SOURCE, TARGET), UNDONE | MIGRATED
        return _undone(instant) if _is_before(instant, "restore") else FORWARD
    return FORWARD  # the target's hook, pager and warden are replaced, or what they held is restored once more


def _ended(victim: str, instant: str) -> tuple[tuple[str, ...], frozenset[int]]:
    """What must come of a SIGTERM."""
    if victim == "migrate":
        return ((SOURCE,), frozenset({143})) if _is_before(instant, "commit asked") else FORWARD
    if (victim, instant) in (("source agent", "commit asked"), ("target agent", "held")):
        return FORWARD  # it hears of it when it has carried out, and answered, what it is at
    if victim in ("source criu", "source hook", "page server", "pager", "warden"):
        return FORWARD  # they do not heed it; a hook has that from its criu
    return _killed(victim, instant)


def _signals(instants: tuple[str, ...]) -> Iterator[tuple[str, str, str, tuple[tuple[str, ...], frozenset[int]]]]:
    for victim in VICTIMS.values():
        for instant in instants:
            if instant in victim.there:
                yield KILL, victim.name, instant, _killed(victim.name, instant)
                if instant in FEW or victim.name in ("migrate", "source agent", "target agent"):
                    yield TERM, victim.name, instant, _ended(victim.name, instant)
                if instant in FEW:
                    yield STOP, victim.name, instant, FORWARD


def _links(instants: tuple[str, ...]) -> Iterator[tuple[str, str, str, tuple[tuple[str, ...], frozenset[int]]]]:
    for instant in instants:
        outcome = _undone(instant) if _is_before(instant, "commit asked") else FORWARD
        yield DROP, "link", instant, outcome
        if instant in HOLES:
            yield HOLE, "link", instant, outcome


def _room(instants: tuple[str, ...]) -> Iterator[tuple[str, str, str, tuple[tuple[str, ...], frozenset[int]]]]:
    either = ((SOURCE, TARGET), UNDONE | MIGRATED)
    for instant in ("freeze", "dump", "restore", "held", "commit asked", "resuming", "fill"):
        if instant in instants:
            place = _undone(instant) if instant in ("freeze", "dump") else either if instant == "restore" else FORWARD
            yield TMPFS, "target", instant, place
    for victim in ("source", "target"):
        for instant in ("connect", "freeze", "restore", "held", "commit asked", "committed", "resume asked", "resuming",
                        "clean"):  # fmt: skip
            if instant in instants:
                yield DISK, victim, instant, either if _is_before(instant, "committed") else FORWARD
    for victim, where in (
        ("migrate", ("freeze", "held")), ("source agent", ("preflight", "freeze", "held", "committed")),
        ("target agent", ("preflight", "freeze", "restore", "held", "resuming")), ("source criu", ("dump",)),
        ("target criu", ("freeze", "held")), ("page server", ("freeze",)), ("pager", ("freeze", "restore", "fill")),
        ("warden", ("restore", "fill")),
    ):  # fmt: skip
        for instant in where:
            if instant in instants:
                # whether it needs more than it has is its allocator's to say
                done = FORWARD if _is_before("commit asked", instant) else (either[0], FAILED | MIGRATED)
                if victim == "migrate":  # without memory it can't undo anything: it ends, and the agents do
                    done = (either[0], FAILED | MIGRATED | {71})
                yield LIMIT, victim, instant, done


def _streams() -> Iterator[tuple[str, str, str, tuple[tuple[str, ...], frozenset[int]]]]:
    for stream in STREAMS:
        yield DAMAGED, stream, "freeze", _undone("freeze")
        yield CUT, stream, "freeze", _undone("freeze")


STREAMS = {"pages at once": "pages:0", "pages half-way": "pages:3000000", "images": "images:0"}
"""Which stream, and after how many bytes."""

CLOCKS = ("-1 day", "+1 day")


def _machines() -> Iterator[tuple[str, str, str, tuple[tuple[str, ...], frozenset[int]]]]:
    for victim in ("source", "target"):
        for instant, _ in zip(("freeze", "held", "committed", "resumed"), range(4)):
            yield CLOCK, victim, instant, FORWARD
    # the process ends with its host, unless the target has HELD and the source said neither COMMIT nor ABORT (rule 4)
    gone = frozenset({KILLED})
    yield REBOOT, "source", "freeze", ((HOST_LOST,), gone)
    # whether the target, which needs nothing more, has HELD on its disk before somebody recovers is nobody's to say
    yield REBOOT, "source", "restore", ((HOST_LOST, TARGET), gone)
    for instant in ("held", "source killed"):
        yield REBOOT, "source", instant, ((TARGET,), gone)
    yield REBOOT, "target", "freeze", _undone("freeze")
    yield REBOOT, "target", "held", _undone("held")


ON_NETNS = tuple(name for name in NAMES if name not in ROUNDS)
ON_VM = ("round 1", "round 2", "dump", "held", "committed")
"""Emulated machines are for what namespaces do not have: rounds, clocks and boots of their own, systemd's cgroups."""


def _all(backend: str) -> Iterator[tuple[str, str, str, tuple[tuple[str, ...], frozenset[int]]]]:
    if backend == "netns":
        yield from _signals(ON_NETNS)
        yield from _links(ON_NETNS)
        yield from _room(ON_NETNS)
        yield from _streams()
        return
    for fault, victim, instant, outcome in _signals(ON_VM):
        if fault == KILL and (instant in ROUNDS or victim in ("migrate", "source agent", "target agent")):
            yield fault, victim, instant, outcome
    for fault, victim, instant, outcome in _links(("round 1", "held")):
        if fault == DROP:
            yield fault, victim, instant, outcome
    yield from _machines()


def cells(backend: str) -> tuple[Cell, ...]:
    """All cells of a backend, in a fixed order."""
    return tuple(
        Cell(fault, victim, instant, backend, places, codes)
        for fault, victim, instant, (places, codes) in _all(backend)
    )


_NATIVE = "nothing in it depends on the kernel, the boot or the clock, and netns does it at native speed"
THINNED = {
    (
        "netns",
        TERM,
    ): f"criu, hooks, page server, pager and warden do not heed it, and ssh ends by it as by {KILL}, which is "
    f"done everywhere: to them at {', '.join(name for name in FEW if name in ON_NETNS)}",
    ("netns", STOP): "nobody dies of it, and each costs the seconds that it lasts: so in what each host waits for",
    (
        "netns",
        HOLE,
    ): f"each costs half a minute, and when the silence is noticed it ends as `{DROP}`, which is done at all "
    "instants: so once each before and in the restore, with HELD, COMMIT and RESUMING, and when all is done",
    ("netns", TMPFS): "nothing lies in it before the freeze, and at the others nobody begins to read or to write there",
    (
        "netns",
        DISK,
    ): "what is written there are journals, and at the others the next record is the next one at these, too",
    ("netns", LIMIT): "each victim where it takes memory: elsewhere it may need none, and then nothing is seen",
    ("netns", DAMAGED): "without rounds all pages and images go over in the freeze, and are there before `restore`",
    ("netns", CUT): "without rounds all pages and images go over in the freeze, and are there before `restore`",
    ("netns", CLOCK): "namespaces have the machine's real-time clock",
    ("netns", REBOOT): "a namespace has the machine's boot id",
    (
        "vm",
        KILL,
    ): "an emulated cell takes minutes: so all victims in the rounds, which netns has not, and else those whom "
    "systemd's sessions hold, migrate and the agents, before, in and after the decision",
    ("vm", DROP): "once in a round, which netns has not, and once in doubt",
    ("vm", CLOCK): "before, in and after the decision, and once when it runs",
    (
        "vm",
        REBOOT,
    ): "once for each state of the journals in which another thing is decided; after COMMIT a target's images in "
    "memory are lost with it (exit code 74): tests/live/test_power.py does that, with --durable and without",
    **{("vm", fault): _NATIVE for fault in (TERM, STOP, HOLE, TMPFS, DISK, LIMIT, DAMAGED, CUT)},
}
"""Why a fault is not done to all its victims at all instants of a backend."""


def _thinned() -> Iterator[tuple[str, str]]:
    """In words, those with the same words together."""
    said: dict[tuple[str, str], list[str]] = {}
    for (backend, fault), why in THINNED.items():
        done = {cell.instant for cell in cells(backend) if cell.fault == fault}
        names = ", ".join(name for name in NAMES if name in done)
        everywhere = done.issuperset(ON_NETNS)
        where = "not to everybody everywhere" if everywhere else f"at {names} only" if done else "not at all"
        said.setdefault((backend, f"{where}: {why}"), []).append(fault)
    for (backend, text), faults in said.items():
        yield f"{', '.join(faults)}, on {backend}", text


EXCLUDED = (
    *_thinned(),
    *(
        (victim.name, f"not at {', '.join(name for name in NAMES if name not in victim.there)}: {victim.why_not}")
        for victim in VICTIMS.values()
        if victim.why_not
    ),
    (
        " and ".join(ROUNDS),
        "on vm only: the kernel of netns does not track dirty memory, nothing moves before the freeze",
    ),
    (LIMIT, "as RLIMIT_AS, set to what the victim has: a host made of namespaces has no memory controller"),
    (DAMAGED, "at the head of a frame only; elsewhere on its way SSH's own check ends the connection: `link dropped`"),
)
"""What the grid leaves out, and why."""

# --- what CI runs ----------------------------------------------------------------------------------------------------

SLICE = {
    "netns": (
        "SIGKILL-migrate-freeze", "SIGKILL-migrate-held", "SIGKILL-migrate-commit_asked", "SIGKILL-migrate-resuming",
        "SIGKILL-source_agent-dump", "SIGKILL-source_agent-commit_asked", "SIGKILL-source_agent-committed",
        "SIGKILL-target_agent-restoring", "SIGKILL-target_agent-held", "SIGKILL-target_agent-resumed",
        "SIGKILL-source_criu-dump", "SIGKILL-source_criu-committed", "SIGKILL-target_criu-restoring",
        "SIGKILL-target_criu-resuming", "SIGKILL-source_hook-commit_asked", "SIGKILL-target_hook-resume_asked",
        "SIGKILL-pager-fill", "SIGKILL-warden-fill", "SIGTERM-target_agent-held", "SIGTERM-migrate-held",
        "link_dropped-link-held", "link_dropped-link-committed", "link_dropped-link-resumed",
        "tmpfs_full-target-freeze", "disk_full-target-resuming",
    ),
    "vm": ("SIGKILL-source_agent-round_2", "host_rebooted-source-held"),
}  # fmt: skip
"""About 25 cells, one for each rule of the commit."""
DRAWN = {"netns": 5, "vm": 0}
LONG = (STOP, HOLE)
"""Faults that take longer than CI has."""


def chosen(backend: str, seed: str) -> tuple[Cell, ...]:
    """The slice of CI, and some more that this seed draws."""
    everything = {cell.id: cell for cell in cells(backend)}
    fixed = [everything[name] for name in SLICE[backend]]
    others = [cell for cell in everything.values() if cell not in fixed and cell.fault not in LONG]
    return (*fixed, *random.Random(seed).sample(others, DRAWN[backend]))
