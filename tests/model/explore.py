"""Every order of events, breadth first: what clients, agents, hooks and criu do next, and what may go wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from agent.journal import Record
from migrator import recovery
from tests.model import agents, clients
from tests.model.agents import FAULT
from tests.model.clients import CANCELLED, LOST, Over, Stage, meet
from tests.model.world import (
    BLOCKED,
    DEAD,
    ENDED,
    FAILED,
    HISTORIES,
    IN_HOOK,
    NONE,
    PAST,
    RUNS,
    STOPPED,
    TRACED,
    WORKING,
    Agent,
    Client,
    Host,
    Op,
    World,
    check,
    criu_steps,
    hook_steps,
)  # fmt: skip

Step = tuple[str, World]


def beginning(*, faults: int, durable: bool) -> World:
    """BEGIN and PREPARED are written, both agents wait, a restore is warm; `migrate` is about to freeze."""
    source = Host("source", (Record.BEGIN,), 1, RUNS, first="S0", owner="S0")
    target = Host("target", (Record.PREPARED,), 1, NONE, first="T0", owner="T0", criu=WORKING, holder="T0")
    both = (Agent("S0", "source", "M", (Record.BEGIN,)), Agent("T0", "target", "M", (Record.PREPARED,)))
    return World(source, target, both, (), (Client("M", "migrate"),), faults, durable)


def committed(*, faults: int, durable: bool, target_is_dead: bool = False) -> World:
    """COMMIT and KILLED are written, then `migrate` and its agent have died, and nobody has told the target, which
    waits for its lease; or everything there that knew of the tree is dead as well, so that only its images are left.
    """
    whole = (Record.BEGIN, Record.FROZEN, Record.COMMIT, Record.KILLED)
    held = (Record.PREPARED, Record.HELD)
    source = Host("source", whole, 4, DEAD, first="", owner="", criu=ENDED)
    target = Host("target", held, 2, NONE, first="", owner="", criu=FAILED, asked=True, listed=True, kept=durable)
    agents: tuple[Agent, ...] = ()
    if not target_is_dead:
        target = target._replace(
            tree=TRACED, criu=IN_HOOK, hook="waits", first="T0", owner="T0", holder="T0", maker="T0",
        )  # fmt: skip
        agents = (Agent("T0", "target", "", held),)
    return World(source, target, agents, (), (), faults, durable)


class Programs:
    """What a program does next, by what it has seen so far. Runs it again from its beginning, and remembers."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[bool, Any]] = {}

    def command(self, op: Op) -> tuple[bool, Any]:
        """(whether it is at its end, its answer or next act)."""
        key = (op.program, op.arguments, op.history)
        if key not in self._known:
            self._known[key] = _run(agents.COMMANDS[op.program](*op.arguments), HISTORIES.of(op.history))
        return self._known[key]

    def client(self, client: Client) -> tuple[bool, Any]:
        """The same, of the product's own coroutines."""
        key = (client.program, client.history)
        if key not in self._known:
            stage = Stage()
            running = clients.PROGRAMS[client.program](stage)
            self._known[key] = _run(running, HISTORIES.of(client.history))
            stage.over = True
            with contextlib.suppress(Over, StopIteration, RuntimeError):
                running.throw(Over)
        return self._known[key]


def _run(program: Any, history: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        act = program.send(None)
        for seen in history:
            act = program.send(seen)
    except StopIteration as end:
        return True, end.value
    return False, act


class Explorer:
    """One exploration. `beside`: whether a `recover` may begin beside another client. `words`: the operator's, which
    are said as often as `recover` is run, always while the source can be asked."""

    def __init__(self, beside: bool = True, words: tuple[str, ...] = ()) -> None:
        self._words = words
        self._programs = Programs()
        self._most = 1 if beside else 0

    # --- what happens by itself ---

    def steps(self, world: World) -> Iterator[Step]:
        """Everything that can happen next without anything going wrong; no new `recover`.

        What nobody else can notice, be it now or later, happens at once: the orders in which it happens are the same.
        Where nothing happens any more the time of those is up who wait for an agent that stands still.
        """
        nothing = True
        for step in self._next(world):
            nothing = False
            yield step
        if nothing:
            for client in world.clients:
                ended, act = self._programs.client(client)
                agent = world.agent(act[1]) if not ended and act[0] == "receive" else None
                if agent is not None and agent.stopped:
                    yield f"{client.name}: the time of {agent.name} is up", _seen(world, client.name, LOST)

    def _next(self, world: World) -> Iterator[Step]:
        for step in self._unnoticed(world):
            yield step
            return
        for client in world.clients:
            yield from self._client_steps(world, client)
        for op in world.ops:
            yield from self._command_steps(world, op)
        for agent in world.agents:
            yield from self._end_of_input(world, agent)
        for role in ("source", "target"):
            yield from hook_steps(world, role)
            yield from criu_steps(world, role)

    def _unnoticed(self, world: World) -> Iterator[Step]:
        for client in world.clients:
            ended, act = self._programs.client(client)
            if not ended and act[0] != "hang up":
                yield from self._client_steps(world, client)
        for op in world.ops:
            if op.answer is None and op.history and _unnoticed(world, op, self._programs.command(op)[1][0]):
                yield from self._command_steps(world, op)
        for role in ("source", "target"):
            host = world.host(role)
            # a hook that knows its answer carries it out, and its criu after it; what it reads in the journal it may
            # read before or after somebody else writes there
            if host.hook and (host.hook != "waits" or host.fifo) and not host.hook.startswith("abort"):
                yield from hook_steps(world, role)
            elif host.criu == PAST:
                yield from criu_steps(world, role)

    def _client_steps(self, world: World, client: Client) -> Iterator[Step]:
        ended, act = self._programs.client(client)
        if ended:
            yield f"{client.name} ends", gone(world, client.name)
            return
        for label, after, seen in _client_act(world, client, act):
            yield f"{client.name}: {label}", _seen(after, client.name, seen)

    def _command_steps(self, world: World, op: Op) -> Iterator[Step]:
        agent = world.agent(op.agent)
        if op.answer is not None or agent is None or agent.stopped:
            return
        if (
            not op.history
            and op.program in _ONE_AT_A_TIME
            and any(
                other.agent == op.agent and other.program in _ONE_AT_A_TIME and other.history and other.answer is None
                for other in world.ops
            )
        ):
            return
        _, act = self._programs.command(op)
        for after, seen in act[0](world, op.agent, *act[1:]):
            now = op._replace(history=HISTORIES.after(op.history, seen))
            ended, answer = self._programs.command(now)
            if ended:
                now = now._replace(history=0, answer=answer if answer is not None else FAULT)
            yield f"{op.agent} {op.program}: {_words(act)} -> {_word(seen)}", _replaced(after, op, now)

    def _end_of_input(self, world: World, agent: Agent) -> Iterator[Step]:
        """The client is gone, and so, in the end, is the agent."""
        if agent.client or agent.stopped:
            return
        mine = [op for op in world.ops if op.agent == agent.name]
        if any(not op.history and op.answer is None for op in mine):
            return  # what came before the end is read first
        if agent.over or not agent.name.endswith("0"):
            return
        if any(op.program in _ONE_AT_A_TIME and op.answer is None for op in mine):
            return
        committed = Record.COMMIT in agent.memory
        world = world.with_agent(agent.name, over=True)
        if agent.name == "T0":
            yield "T0 hears nobody any more", _asked(world, Op("T0", "", "contact lost", ()))
        elif not committed:
            yield "S0 hears nobody any more", _asked(world, Op("S0", "", "abort source", ()))
        else:
            yield "S0 hears nobody any more", left(world, "S0")

    # --- what an operator does ---

    def recoveries(self, world: World, quiet: bool) -> Iterator[Step]:
        """`migrate recover` is run: once all is quiet; or in the midst of something, which counts as a fault."""
        names = {client.name for client in world.clients}
        if not names and quiet:
            yield "an operator runs recover", _started(world, "R1")
            yield "an operator runs recover on the target", _started(world, "R1", "recover there")
            for word in self._words:
                yield f"an operator says {word}", _started(world, "R1", word)
        elif world.faults and len(names) <= self._most and not world.source.owner:
            name = "R2" if "R1" in names else "R1"
            fewer, beside = world._replace(faults=world.faults - 1), f"beside {min(names, default='others')}"
            yield f"an operator runs recover {beside}", _started(fewer, name)
            yield f"an operator runs recover on the target {beside}", _started(fewer, name, "recover there")
            for word in self._words:
                yield f"an operator says {word} {beside}", _started(fewer, name, word)

    # --- what goes wrong ---

    def faults(self, world: World) -> Iterator[Step]:
        """Everything that can go wrong next."""
        if not world.faults:
            return
        world = world._replace(faults=world.faults - 1)
        for client in world.clients:
            yield f"{client.name} is killed", gone(world, client.name)
            ended, act = self._programs.client(client)
            if not ended and act[0] == "receive":
                yield from _message_faults(world, client, act[1])
            if not ended and act[0].startswith("reach "):
                yield f"{client.name}: can't {act[0]}", _seen(world, client.name, False)
        for agent in world.agents:
            yield f"{agent.name} is killed", world.without({agent.name})
        for op in world.ops:
            yield from self._torn(world, op)
        yield from _criu_faults(world)
        yield from _reboots(world)

    def _torn(self, world: World, op: Op) -> Iterator[Step]:
        """An agent dies while it writes a record."""
        agent = world.agent(op.agent)
        if op.answer is not None or agent is None or agent.stopped:
            return
        _, act = self._programs.command(op)
        if act[0] in (agents.append, agents.commit_now, agents.held_now, agents.give_up):
            role = agent.role
            if any(
                after.host(role).records != world.host(role).records for after, _ in act[0](world, op.agent, *act[1:])
            ):
                yield f"{op.agent} is killed over half a record", world.without({op.agent}).on(role, torn=True)


def _unnoticed(world: World, op: Op, act: Any) -> bool:
    """A sync, of which only a reboot can tell; and what comes to nothing, everything having been given up."""
    agent = world.agent(op.agent)
    vain = (agents.spawn_dump, agents.dump_is_held, agents.protect, agents.restore_is_held, agents.held_now)
    return act is agents.sync or (act in vain and agent is not None and Record.ABORT in agent.memory)


_ONE_AT_A_TIME = ("abort source", "abort target", "contact lost")


def _words(act: tuple[Any, ...]) -> str:
    return " ".join([act[0].__name__.replace("_", " "), *(_word(word) for word in act[1:])])


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + " ".join(map(_word, value)) + ")"
    if hasattr(value, "records"):
        return "journal " + " ".join(value.records)
    return str(getattr(value, "value", value))


def _replaced(world: World, old: Op, new: Op) -> World:
    """With a command's new state. One whose agent has just died is gone, an answer that nobody waits for too."""
    ops = list(world.ops)
    if old not in ops:
        return world
    ops.remove(old)
    if new.answer is None or new.client:
        ops.append(new)
    world = world._replace(ops=tuple(sorted(ops, key=repr)))
    return left(world, new.agent) if new.answer is not None else world


def left(world: World, name: str) -> World:
    """Without this agent, if it is at the end of its input and of its work."""
    agent = world.agent(name)
    if agent is None or agent.client or not (agent.over or not name.endswith("0")):
        return world
    if any(op.agent == name and op.answer is None for op in world.ops):
        return world
    return world.without({name})


def _asked(world: World, op: Op) -> World:
    return world._replace(ops=tuple(sorted((*world.ops, op), key=repr)))


def _seen(world: World, name: str, seen: Any) -> World:
    found = tuple(
        client._replace(history=HISTORIES.after(client.history, seen)) if client.name == name else client
        for client in world.clients
    )
    return world._replace(clients=found)


def _started(world: World, name: str, program: str = "recover") -> World:
    return world._replace(clients=tuple(sorted((*world.clients, Client(name, program)))))


def gone(world: World, name: str) -> World:
    """A client has ended: its agents hear the end of input, its answers nobody."""
    world = world._replace(clients=tuple(client for client in world.clients if client.name != name))
    return _hung_up(world, [agent.name for agent in world.agents if agent.client == name])


def _hung_up(world: World, names: list[str]) -> World:
    for name in names:
        world = world.with_agent(name, client="")
    ops = tuple(op._replace(client="") for op in world.ops if op.agent in names and op.answer is None)
    others = tuple(op for op in world.ops if op.agent not in names)
    world = world._replace(ops=tuple(sorted((*ops, *others), key=repr)))
    for name in names:
        world = left(world, name)
    return world


def _client_act(world: World, client: Client, act: tuple[Any, ...]) -> Iterator[tuple[str, World, Any]]:
    kind = act[0]
    if kind == "send":
        _, agent, program, arguments = act
        if world.agent(agent) is None or world.agent(agent).client != client.name:  # type: ignore[union-attr]
            yield f"{agent} is not there", world, False
        else:
            yield (
                f"asks {agent}: {program} {_word(arguments)}",
                _asked(world, Op(agent, client.name, program, arguments)),
                True,
            )
    elif kind == "receive":
        agent = world.agent(act[1])
        if agent is None or agent.client != client.name:
            yield f"{act[1]} does not answer", world, LOST
            return
        for op in world.ops:
            if op.agent == act[1] and op.client == client.name and op.answer is not None:
                ops = tuple(other for other in world.ops if other != op)
                yield f"{act[1]} answers {_word(op.answer)}", world._replace(ops=ops), op.answer
                return
    elif kind == "hang up":
        agent = world.agent(act[1])
        mine = agent is not None and agent.client == client.name
        yield f"hangs up on {act[1]}", _hung_up(world, [act[1]]) if mine else world, True
    elif kind.startswith("reach "):
        yield kind, world, True
    elif kind == "meet":
        names = {agent.name for agent in world.agents}
        letter = client.name + act[1][0]
        name = next(f"{letter}{number}" for number in range(1, 9) if f"{letter}{number}" not in names)
        new = Agent(name, act[1], client.name)
        yield f"starts {name}", world._replace(agents=tuple(sorted((*world.agents, new)))), name


def at(client: Client) -> str:
    """The host that a client runs on."""
    return "source" if client.program in ("migrate", "recover", "recover by ID") else "target"


def _message_faults(world: World, client: Client, name: str) -> Iterator[Step]:
    """The question or its answer is lost, or comes late; or nobody waits for it any more."""
    agent = world.agent(name)
    pending = next((op for op in world.ops if op.agent == name and op.client == client.name), None)
    if agent is None or pending is None:
        return
    quiet = world._replace(ops=tuple(op for op in world.ops if op != pending))
    late = quiet if pending.answer is not None else _asked(quiet, pending._replace(client=""))
    yield f"{client.name} waits no longer for {name}", _seen(late, client.name, LOST)
    if client.name == "M" and pending.program in ("dump", "restore"):
        yield f"Ctrl-C while {name} is at {pending.program}", _seen(late, client.name, CANCELLED)
    if agent.role != at(client):
        yield f"the link to {name} is cut", _seen(_hung_up(late, [name]), client.name, LOST)
        if not pending.history and pending.answer is None:
            yield f"the link to {name} is cut, a question lost", _seen(_hung_up(quiet, [name]), client.name, LOST)


def _criu_faults(world: World) -> Iterator[Step]:
    source, target = world.source, world.target
    if source.criu == WORKING:
        yield "the dump fails", world.on("source", criu=FAILED)
        dead = world.on("source", criu=FAILED, tree=DEAD).marked(SEIZED)
        yield "the dump is killed, and takes the tree with it", dead
    if source.criu == IN_HOOK:
        yield "the dump is killed in its hold", _let_go(world.on("source", criu=FAILED))
        if source.hook:
            yield "the source's hook is killed", _let_go(world.on("source", criu=FAILED, hook="", fifo=""))
    elif source.hook:
        yield "the source's hook is killed, criu being dead", world.on("source", hook="", fifo="")
    if target.criu == WORKING and target.asked:
        yield "the restore fails", world.on("target", criu=FAILED, tree=target.tree if target.tree == BLOCKED else NONE)
        maker = target.maker if target.tree == BLOCKED else target.holder
        yield (
            "the restore is killed half-way",
            world.on("target", criu=FAILED, tree=BLOCKED, maker=maker, listed=target.tree == BLOCKED and target.listed),
        )
    if target.criu == IN_HOOK:
        yield "the restore is killed in its hold", world.on("target", criu=FAILED, tree=BLOCKED)
        if target.hook:
            yield "the target's hook is killed", world.on("target", criu=FAILED, tree=NONE, hook="", fifo="")
    if target.criu == PAST:
        doubt = world.on("target", criu=FAILED).marked(LET_GO)
        yield "the restore is killed, the tree runs", doubt.runs("target")
        yield "the restore is killed, the tree with it", doubt.on("target", tree=DEAD)


def _let_go(world: World) -> World:
    """criu is gone in its hold, without a verdict: the kernel lets the tree run, or stop."""
    if world.source.tree != TRACED:
        return world
    return world.on("source", tree=STOPPED) if world.source.stop_queued else world.runs("source")


def _reboots(world: World) -> Iterator[Step]:
    for role in ("source", "target"):
        yield from _reboots_of(world, role)
    for first, once in _reboots_of(world, "source"):
        for second, both in _reboots_of(once, "target"):
            yield f"a power cut: {first}, {second}", both


def _reboots_of(world: World, role: str) -> Iterator[Step]:
    host = world.host(role)
    for kept in {len(host.records), host.safe} if host.same_boot else ():
        yield f"the {role} reboots, {len(host.records) - kept} records lost", _rebooted(world, role, kept)


def _rebooted(world: World, role: str, kept: int) -> World:
    host = world.host(role)
    world = world.without({agent.name for agent in world.agents if agent.role == role})
    for client in world.clients:
        if at(client) == role:
            world = gone(world, client.name)
    world = world.on(
        role, records=host.records[:kept], safe=kept, torn=False, same_boot=False, criu=NONE, hook="", fifo="",
        holder="", stop_queued=False, log="", asked=False, listed=False, first="", owner="", noted="", taker="",
        maker="", tree=DEAD if role == "source" or host.tree in (RUNS, DEAD) else NONE,
        images=host.images and host.kept, resuming_here=False,
    )  # fmt: skip
    if host.tree == RUNS:
        return world.marked(RAN)
    if role == "source" and Record.ABORT in host.records[:kept]:
        return world.marked(UNDONE)
    return world.marked(UNHELD) if role == "source" and Record.HELD not in world.target.records else world


# --- the whole of it -------------------------------------------------------------------------------------------------


class Broken(AssertionError):
    """An invariant does not hold; says which, and by which way it came to that."""

    def __init__(self, problem: str, steps: str) -> None:
        super().__init__(f"{problem}\n{steps}")
        self.problem = problem
        self.steps = steps


class Found:
    """What an exploration came to."""

    def __init__(self) -> None:
        self.states = 0
        self.settled: dict[str, int] = {}
        """How a migration ends -> in how many worlds."""


def explore(
    *,
    faults: int,
    durable: bool = False,
    start: Callable[..., World] = beginning,
    beside: bool = True,
    words: tuple[str, ...] = (),
) -> Found:
    """Go through all worlds. Raises Broken with the shortest way to the first that breaks an invariant.

    `beside`: a `recover` may begin beside `migrate` or another one; that multiplies the worlds.
    """
    with mock.patch.object(recovery, "meet", meet):
        return _explore(Explorer(beside, words), start(faults=faults, durable=durable))


def _explore(explorer: Explorer, start: World) -> Found:
    came: dict[World, tuple[World | None, str]] = {start: (None, "")}
    row, found = [start], Found()
    ends: dict[World, str] = {}
    while row:
        following: list[World] = []
        for world in row:
            quiet, over = True, True
            for label, after in explorer.steps(world):
                quiet, over = quiet and "lease ends" in label, False
                _enter(came, following, world, label, after)
            for label, after in (*explorer.recoveries(world, quiet), *explorer.faults(world)):
                _enter(came, following, world, label, after)
            if over and world.clients:
                raise Broken("it waits for ever", way(came, world))
            if over:
                try:
                    end = _how_it_ends(explorer, world._replace(faults=0), ends)
                except Broken as broken:
                    raise Broken(broken.problem, f"{way(came, world)}\n{broken.steps}") from None
                found.settled[end] = found.settled.get(end, 0) + 1
        row = following
    found.states = len(came)
    return found


def _enter(
    came: dict[World, tuple[World | None, str]], row: list[World], world: World, label: str, after: World
) -> None:
    if after in came:
        return
    came[after] = (world, label)
    if problem := check(after):
        raise Broken(problem, way(came, after))
    row.append(after)


def way(came: dict[World, tuple[World | None, str]], world: World | None) -> str:
    """How it came to this, a line a step, and what it came to."""
    lines = [f"source: {world.source}", f"target: {world.target}"] if world else []
    steps = []
    while world is not None:
        world, label = came[world]
        steps.append(label)
    return "\n".join([*reversed(steps), *lines])


def _how_it_ends(explorer: Explorer, world: World, known: dict[World, str]) -> str:
    """Nothing moves any more, nothing goes wrong any more: recover is run until it changes nothing."""
    if world in known:
        return known[world]
    known[world] = "?"
    results = {_plain(end) for end in _alone(explorer, world, "recover")} - {_plain(world)}
    end = LATER
    if not results:
        results = {_plain(end) for end in _alone(explorer, world, "recover by ID")} - {_plain(world)}
        end = BY_ID
        told = Record.RESUMED in world.target.records  # then `migrate` has named it to whoever ran it, as left behind
        if results and Record.FROZEN in world.source.records and not told:
            raise Broken("recover does not find by itself what is left to do", "")
    for other in results:
        _how_it_ends(explorer, other, known)
    known[world] = end if results else verdict(world)
    return known[world]


def _plain(world: World) -> World:
    return world._replace(clients=())


def _alone(explorer: Explorer, world: World, program: str) -> set[World]:
    """Where one `recover` leads, undisturbed."""
    begun = _started(world, "R1", program)
    came: dict[World, tuple[World | None, str]] = {begun: (None, f"an operator runs {program}, undisturbed")}
    row, ends = [begun], set()
    while row:
        now = row.pop()
        steps = list(explorer.steps(now))
        if not steps:
            ends.add(now)
        for label, after in steps:
            _enter(came, row, now, label, after)
    return ends


def verdict(world: World) -> str:
    """What a migration has come to that is over: where the tree runs, or the exception by which it runs nowhere."""
    running = [role for role in ("source", "target") if world.host(role).tree == RUNS]
    tidy = all(Record.DONE in world.host(role).records for role in ("source", "target"))
    if len(running) == 1 and tidy and world.target.tree in (RUNS, NONE, DEAD):
        return f"it runs on the {running[0]}"
    if reason := _exception(world):
        return f"it runs, not tidied up: {reason}" if running else f"it runs nowhere: {reason}"
    problem = "it runs, but what is left can't be tidied up" if running else "it runs nowhere"
    raise Broken(problem, "recover changes nothing any more")


def _exception(world: World) -> str:
    """Why nothing could be done: DESIGN's exceptions, by what has happened and what the journals say."""
    source, target = world.source, world.target
    for mark in (SEIZED, LET_GO, RAN, UNHELD, UNDONE):
        if mark in world.marks:
            return mark
    if not target.same_boot and Record.RESUMING in target.records and Record.RESUMED not in target.records:
        return IN_BETWEEN
    if not target.same_boot and not world.durable and Record.COMMIT in source.records:
        return IN_MEMORY
    if not source.same_boot and Record.HELD not in target.records:
        return UNHELD
    return ""


LATER = "later: it has to be recovered"
BY_ID = "later: it runs, and what a dead agent has left of images on the target has to be named to recover"
SEIZED = "criu killed between seizing and its hold"
LET_GO = "criu killed after it let the tree go"
RAN = "the host that it ran on rebooted"
UNDONE = "the source rebooted after ABORT, before the tree ran again"
UNHELD = "the source rebooted in the freeze, before HELD"
IN_BETWEEN = "the target rebooted between RESUMING and RESUMED"
IN_MEMORY = "the target rebooted with the only copy, in memory"
