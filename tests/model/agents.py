"""What agents do, one act after the other, as their code does it: `agent/source.py`, `target.py`, `settle.py`.

Each command is a generator: it yields an act and gets what the act has seen; between two acts anybody else may act,
and its agent may die. What it decides it asks `agent.rules`, as the product does. An act of two is a write that is not
on the disk yet and the sync after it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from agent import rules
from agent.journal import JournalError, Record
from agent.protocol import JournalState, Verdict, Word
from tests.model.world import (
    BLOCKED,
    DEAD,
    ENDED,
    FAILED,
    IN_HOOK,
    NONE,
    STOPPED,
    TRACED,
    WORKING,
    World,
    allowed,
)  # fmt: skip

Seen = Any
Act = tuple[Any, ...]
Command = Generator[Act, Seen, Any]
Outcomes = list[tuple[World, Seen]]
ID = "m"
FAULT = "fault"
CRIU_FAULT = "criu fault"
OK = "ok"
HAD = "had"
WROTE = "wrote"

BROKEN: set[str] = set()
"""Rules that a test has broken on purpose."""


# --- acts ------------------------------------------------------------------------------------------------------------


def append(world: World, me: str, role: str, record: Record) -> Outcomes:
    """Write a record, if the order allows it: in the file, and not yet on the disk."""
    agent, host = world.agent(me), world.host(role)
    assert agent is not None
    if not allowed(role, agent.memory, record):
        return [(world, False)]
    resuming = host.resuming_here or record is Record.RESUMING
    world = world.on(role, records=(*host.records, record), torn=False, resuming_here=resuming)
    return [(world.with_agent(me, memory=(*agent.memory, record)), True)]


def sync(world: World, me: str, role: str) -> Outcomes:
    return [(world.on(role, safe=len(world.host(role).records)), True)]


def memory(world: World, me: str) -> Outcomes:
    agent = world.agent(me)
    assert agent is not None
    return [(world, agent.memory)]


def criu_is_gone(world: World, me: str, role: str) -> Outcomes:
    host = world.host(role)
    return [] if host.criu_lives else [(world, (host.criu, host.log))]


def spawn_dump(world: World, me: str) -> Outcomes:
    if Record.ABORT in _memory(world, me):
        return [(world, False)]
    return [(world.on("source", criu=WORKING, holder=me, hook="", fifo=""), True)]


def dump_is_held(world: World, me: str) -> Outcomes:
    host = world.source
    return [] if host.criu == WORKING else [(world, host.criu == IN_HOOK)]


def protect(world: World, me: str) -> Outcomes:
    """A SIGSTOP is queued to every task; False where it came too late, or the dump was given up."""
    if Record.ABORT in _memory(world, me):
        return [(world, False)]
    if world.source.criu != IN_HOOK:
        return [(world, False)]
    return [(world.on("source", stop_queued="no SIGSTOP is queued" not in BROKEN), True)]


def commit_now(world: World, me: str) -> Outcomes:
    """COMMIT, if the tree is held and criu alive."""
    if world.source.criu != IN_HOOK and "commit without a hold" not in BROKEN:
        return [(world, False)]
    return append(world, me, "source", Record.COMMIT)


def kill_tree(world: World, me: str) -> Outcomes:
    """The hook is let go, and every task gets a SIGKILL."""
    fifo = "go" if world.source.hook == "waits" and world.source.holder == me else world.source.fifo
    return [(world.on("source", fifo=fifo, tree=DEAD, stop_queued=False), True)]


def give_up(world: World, me: str, role: str, source_aborted: bool) -> Outcomes:
    """ABORT, if that may be and is not written yet."""
    known = _memory(world, me)
    if Record.DONE in known:
        return [(world, OK)]
    if role == "target" and not rules.may_discard(known[-1], source_aborted=source_aborted):
        return [(world, FAULT)]
    if Record.ABORT in known:
        return [(world, HAD)]
    return [(after, WROTE if wrote else FAULT) for after, wrote in append(world, me, role, Record.ABORT)]


def crash(world: World, me: str) -> Outcomes:
    return [(world.without({me}), True)]


def undo(world: World, me: str) -> Outcomes:
    """SIGCONT, then the veto."""
    host = world.source
    if host.tree == STOPPED:
        world = world.runs("source")
    if host.holder == me:
        world = world.on("source", fifo="veto", stop_queued=False)
    return [(world, True)]


def take_back(world: World, me: str) -> Outcomes:
    """criu is gone: whoever is still stopped goes on, and the images go."""
    if world.source.tree == STOPPED:
        world = world.runs("source")
    return [(world.on("source", stop_queued=False, holder="", fifo=""), True)]


def start_restore(world: World, me: str) -> Outcomes:
    host = world.target
    if _memory(world, me)[-1] is not Record.PREPARED or host.asked or host.criu != WORKING:
        return [(world, False)]
    return [(world.on("target", asked=True), True)]


def restore_is_held(world: World, me: str) -> Outcomes:
    host = world.target
    return [] if host.criu == WORKING else [(world, host.criu == IN_HOOK)]


def keep_images(world: World, me: str) -> Outcomes:
    """What a restore needs is on the disk, if that was ordered."""
    return [(world.on("target", kept=world.durable), True)]


def held_now(world: World, me: str) -> Outcomes:
    """HELD, of the tasks that stand there."""
    if world.target.tree != TRACED:
        return [(world, False)]
    done = append(world, me, "target", Record.HELD)
    return [(after.on("target", listed=True), seen) if seen else (after, seen) for after, seen in done]


def say(world: World, me: str, verdict: str) -> Outcomes:
    """The target's hook is told, if criu still is there to be told."""
    host = world.target
    if host.holder == me and host.criu == WORKING and not host.asked:
        world = world.on("target", criu=FAILED)  # it still waited for its images: its input is closed
    elif host.holder == me and host.criu_lives:
        world = world.on("target", fifo=verdict)
    return [(world, True)]


def lease_ends(world: World, me: str) -> Outcomes:
    """Nobody came: a tree that is still only held goes."""
    if _memory(world, me)[-1] is not Record.HELD:
        return [(world, False)]
    return [(say(world, me, "veto")[0][0], True)]


def clear(world: World, me: str, everything: bool) -> Outcomes:
    """Kill what a dead criu left blocked: what HELD names, what criu's log names, or all that one's own restore made.
    Whether all is gone."""
    host = world.target
    known = host.listed or (everything and host.maker == me) or "strays are not looked for" not in BROKEN
    if host.tree in (TRACED, BLOCKED) and known:
        world = world.on("target", tree=NONE)
    return [(world, world.target.tree == NONE)]


def discard_images(world: World, me: str, role: str) -> Outcomes:
    if role == "target":
        world = world.on("target", holder="" if world.target.holder == me else world.target.holder, fifo="")
        world = world.on("target", images=False)
    return [(world, True)]


def restore_once_more(world: World, me: str) -> Outcomes:
    """A new restore, whose hook may succeed at once."""
    return [(world.on("target", criu=WORKING, log="", holder=me, fifo="go", hook="", listed=False, asked=True), True)]


def close(world: World, me: str, role: str) -> Outcomes:
    host = world.host(role)
    return [(world.on(role, owner="") if host.owner == me else world, True)]


def owners(world: World, me: str, role: str) -> Outcomes:
    """Load the journal; the agents, beside us, that have owned it and live."""
    host = world.host(role)
    found = {host.first, host.noted} - {me, ""}
    return [(world, tuple(sorted(found)))]


def wait_for_turn(world: World, me: str, role: str) -> Outcomes:
    """The lock of who takes over, and the journal as it is by then."""
    host = world.host(role)
    if "nobody waits for his turn" in BROKEN:
        return [(world, True)]
    return [(world.on(role, taker=me), True)] if host.taker in ("", me) else []


def end_of_turn(world: World, me: str, role: str) -> Outcomes:
    return [(world.on(role, taker="") if world.host(role).taker == me else world, True)]


def stop(world: World, me: str, names: tuple[str, ...]) -> Outcomes:
    for name in names:
        world = world.with_agent(name, stopped=True)
    return [(world, True)]


def let_go_on(world: World, me: str, names: tuple[str, ...]) -> Outcomes:
    for name in names:
        world = world.with_agent(name, stopped=False)
    return [(world, True)]


def kill(world: World, me: str, names: tuple[str, ...]) -> Outcomes:
    return [(world.without(set(names)), True)]


def look(world: World, me: str, role: str) -> Outcomes:
    """Read the journal's newest state."""
    host = world.host(role)
    world = world.with_agent(me, memory=host.records)
    return [(world, (host.records, host.same_boot, host.images, host.resuming_here))]


def take_over(world: World, me: str, role: str) -> Outcomes:
    """Become the owner, and read what stands there; None while another agent is it."""
    host = world.host(role)
    if host.owner not in ("", me):
        return [(world, None)]
    world = world.on(role, owner=me, torn=False)
    return look(world, me, role)


def note_owner(world: World, me: str, role: str) -> Outcomes:
    return [(world.on(role, noted=me, safe=len(world.host(role).records)), True)]


def kill_committed(world: World, me: str) -> Outcomes:
    return [(world.on("source", tree=DEAD), True)]


def read(world: World, me: str, role: str, migration: str) -> Outcomes:
    """What `read_journal` answers, as far as anybody asks for it."""
    host = world.host(role)
    if not migration and Record.DONE in host.records:  # nothing is unfinished here
        return [(world, JournalState("", "", (), "", 0, True, False, False, 0, False))]
    known = [agent for agent in world.agents if agent.name in (host.first, host.noted) and agent.name != me]
    left_stopped = bool(known) and all(agent.stopped for agent in known)
    alive = role == "source" and (host.taker != "" or (host.owner not in ("", me) and not left_stopped))
    state = JournalState(
        migration=ID, role=role, records=tuple(record.value for record in host.records), peer="other", root=1,
        same_boot=host.same_boot, agent_alive=alive, criu_alive=False, tasks_alive=0,
        images=host.images, durable=world.durable,
    )  # fmt: skip
    return [(world, state)]


def _memory(world: World, me: str) -> tuple[Record, ...]:
    agent = world.agent(me)
    assert agent is not None
    return agent.memory


# --- commands --------------------------------------------------------------------------------------------------------


def write(role: str, record: Record) -> Command:
    if not (yield append, role, record):
        return False
    if f"{record.value} is not synced" not in BROKEN:
        yield sync, role
    return True


def dump() -> Command:
    if not (yield from write("source", Record.FROZEN)):
        return FAULT
    if not (yield (spawn_dump,)):
        return FAULT
    if not (yield (dump_is_held,)):
        return FAULT
    return OK if (yield (protect,)) else FAULT


def commit() -> Command:
    if not (yield (commit_now,)):
        return FAULT
    if "COMMIT is not synced" not in BROKEN:
        yield sync, "source"
    if "KILLED before the kill" in BROKEN:
        yield from write("source", Record.KILLED)
        return OK
    yield (kill_tree,)
    yield from write("source", Record.KILLED)
    return OK


def abort_source() -> Command:
    did = yield give_up, "source", True
    if did in (OK, FAULT):
        return did
    if did == WROTE and "ABORT is not synced" not in BROKEN:
        yield sync, "source"
    yield (undo,)
    yield criu_is_gone, "source"
    yield (take_back,)
    known = rules.Known("source", (yield (memory,)), True, False)
    if not rules.must_tell(known) or "DONE before the target was told" in BROKEN:
        yield from write("source", Record.DONE)
        yield close, "source"
    return OK


def finish(role: str) -> Command:
    known = yield (memory,)
    if role == "source" and Record.DONE in known:
        return OK
    if not allowed(role, known, Record.DONE):
        return FAULT
    if role == "source" and Record.ABORT in known:
        yield from write(role, Record.DONE)
        yield close, role
        return OK
    yield criu_is_gone, role
    yield discard_images, role
    yield from write(role, Record.DONE)
    yield close, role
    return OK


def restore() -> Command:
    if not (yield (start_restore,)):
        return FAULT
    if not (yield (restore_is_held,)):
        return CRIU_FAULT
    if "HELD before the images are on disk" not in BROKEN:
        yield (keep_images,)
    if not (yield (held_now,)):
        return FAULT
    if "HELD is not synced" not in BROKEN:
        yield sync, "target"
    return OK


def resume() -> Command:
    if "RESUMING after the release" not in BROKEN and not (yield from write("target", Record.RESUMING)):
        return FAULT
    yield say, "go"
    ended, log = yield criu_is_gone, "target"
    if "RESUMING after the release" in BROKEN:
        yield from write("target", Record.RESUMING)
    if ended != ENDED:
        if log:
            return CRIU_FAULT
        if not (yield clear, True):
            return CRIU_FAULT
        if not (yield from restore_again()):
            return CRIU_FAULT
    yield from write("target", Record.RESUMED)
    return OK


def restore_again() -> Command:
    yield (restore_once_more,)
    ended, log = yield criu_is_gone, "target"
    if ended == ENDED:
        return True
    if not log:
        yield clear, True
    return False


def abort_target(source_aborted: bool) -> Command:
    did = yield give_up, "target", source_aborted
    if did in (OK, FAULT):
        return did
    if did == WROTE:
        yield sync, "target"
    yield say, "veto"
    yield criu_is_gone, "target"
    yield clear, True
    yield discard_images, "target"
    yield from write("target", Record.DONE)
    yield close, "target"
    return OK


def contact_lost() -> Command:
    alone = rules.alone((yield (memory,))[-1])
    if alone is rules.Alone.DISCARD:
        if (yield from abort_target(False)) == FAULT:
            yield (crash,)  # a tree that was being restored is held by now: an error that nobody catches
    elif alone is rules.Alone.WAIT and (yield (lease_ends,)):
        yield criu_is_gone, "target"
        yield clear, True
    if rules.alone((yield (memory,))[-1]) is rules.Alone.FINISH:
        yield from finish("target")
    return OK


def settle(role: str, verdict: Verdict, word: Word = Word.NONE) -> Command:
    """As `settle.settle`: take over, decide, act."""
    yield wait_for_turn, role
    found = yield from depose(role, verdict, word)
    yield end_of_turn, role
    if found is None:
        yield close, role
        return FAULT
    undo = verdict is Verdict.ABORT or (verdict is Verdict.CLEAN and Record.ABORT in found[0])
    if undo:
        answer = yield from settle_abort(role, found[1], verdict)
    elif verdict is Verdict.RESUME:
        answer = yield from settle_resume(role, found[3], word)
    else:
        answer = yield from _SETTLE[verdict](role, found[1])
    yield close, role
    return answer


def depose(role: str, verdict: Verdict, word: Word) -> Command:
    """As `deposing.depose`, with the turn in hand; None where it came to nothing."""
    former = yield owners, role
    if not former:
        found = yield take_over, role
        if found is None or not (yield from decide(role, verdict, word, found)):
            return None
    else:
        yield stop, former
        found = yield look, role
        if not (yield from decide(role, verdict, word, found)):
            yield let_go_on, former
            return None
        yield kill, former
        found = yield take_over, role
        if found is None:
            return None
    yield note_owner, role
    return ((yield (memory,)), *found[1:])


def decide(role: str, verdict: Verdict, word: Word, found: Any) -> Command:
    records, same_boot, images, here = found
    known = rules.Known(role, records, same_boot, images, durable=True, resuming_here=here, word=word)
    try:
        record = rules.to_write(verdict, known)
    except JournalError:
        return False
    if record is None:
        return True
    return (yield from write(role, record))


def settle_abort(role: str, same_boot: bool, verdict: Verdict) -> Command:
    if Record.DONE in (yield (memory,)):
        return OK
    if same_boot:
        yield criu_is_gone, role
        if role == "target":
            yield clear, False
        else:
            yield (take_back,)
    yield discard_images, role
    known = rules.Known(role, (yield (memory,)), same_boot, False)
    if verdict is Verdict.CLEAN or not rules.must_tell(known) or "DONE before the target was told" in BROKEN:
        yield from write(role, Record.DONE)
    return OK


def settle_kill(role: str, same_boot: bool) -> Command:
    if Record.KILLED in (yield (memory,)):
        return OK
    if same_boot:
        yield criu_is_gone, role
        yield (kill_committed,)
    yield from write(role, Record.KILLED)
    return OK


def settle_resume(role: str, here: bool, word: Word) -> Command:
    if Record.RESUMED in (yield (memory,)):
        return OK
    _, log = yield criu_is_gone, role
    try:
        again = rules.must_restore(same_boot=True, finished=log == "finished", passed_hold=log != "", word=word)
    except JournalError:
        return CRIU_FAULT
    if again:
        yield clear, False
        if not (yield from restore_again()):
            return CRIU_FAULT
    yield from write(role, Record.RESUMED)
    return OK


def settle_clean(role: str, same_boot: bool) -> Command:
    if Record.DONE in (yield (memory,)):
        return OK
    yield criu_is_gone, role
    yield discard_images, role
    yield from write(role, Record.DONE)
    return OK


def read_journal(role: str, migration: str) -> Command:
    return (yield read, role, migration)


_SETTLE = {Verdict.KILL: settle_kill, Verdict.CLEAN: settle_clean}
COMMANDS: dict[str, Callable[..., Command]] = {
    "dump": dump, "commit": commit, "abort source": abort_source, "finish": finish, "restore": restore,
    "resume": resume, "abort target": abort_target, "contact lost": contact_lost, "settle": settle,
    "journal": read_journal,
}  # fmt: skip
