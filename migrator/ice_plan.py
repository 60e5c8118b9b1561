"""Preflight of a tree that goes on ice, or comes from there: a migration's own (`plan`), of one host. Pure.

The files are not taken along: they are to be, on the same host, what they were in the freeze. So none of them counts as
written; criu, and before it preflight, compares each by its size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from agent import protocol
from migrator import plan, surroundings, terminals
from migrator.obstacle import Obstacle, make

Preflight = tuple[plan.Plan, tuple[Obstacle, ...]]
_GONE = ("unit", "unit-fails", "unit-boot", "unit-user")
"""What is about a process that has gone from its unit."""
_RESERVE = 64 << 20
"""Bytes of memory for what is small of the images, and for criu's log beside them."""


def in_place(tree: protocol.TreeFacts) -> protocol.TreeFacts:
    """The tree, as far as what its files need goes."""
    files = (
        dataclasses.replace(file, uses=tuple(use for use in file.uses if use != "write") or ("open",))
        for file in tree.files
    )
    return dataclasses.replace(tree, files=tuple(files))


def wishes(directory: str, *, namespaces: str = "never", terminal: str = "", unit: bool = False) -> plan.Wishes:
    """What a save or a restore asks of the planner."""
    return plan.Wishes(
        instant=False, compress="none", shared=directory, namespaces=namespaces, terminal=terminal, unit=unit
    )


def saving(
    host: protocol.HostFacts, tree: protocol.TreeFacts, found: protocol.TargetCheck, ice: protocol.Ice,
    wished: plan.Wishes, *, stays: bool = False,
) -> Preflight:  # fmt: skip
    """How the tree goes on ice, and what stands in the way. `tree` is in place, `found` answers for this very host.

    One that `stays`, a snapshot's, does not go from its unit either."""
    host = dataclasses.replace(host, dirty_tracking=True)  # it is dumped once, and tracks nothing
    chosen, obstacles = plan.make_plan(host, host, tree, _but_for_itself(found, plan.questions(tree, wished)), wished)
    place = dataclasses.replace(chosen.place, ice=True)
    chosen = dataclasses.replace(chosen, precopy=False, place=place)
    obstacles = tuple(one for one in obstacles if not (stays and one.id in _GONE))
    more = surroundings.of_ice(host.hostname, wished.shared, chosen.memory, ice)
    return chosen, _of_one_host(host.hostname, (*obstacles, *more))


def _but_for_itself(found: protocol.TargetCheck, asked: protocol.Check) -> protocol.TargetCheck:
    """What the host answers, had the tree gone from it: nothing that it holds itself is in its way then, and its files
    are those that it has, though they have grown since it was looked at."""
    addresses = (
        protocol.Address(one.protocol, one.address, one.only_ipv6, one.shared, one.owned) for one in found.addresses
    )
    files = (
        dataclasses.replace(answer, uses=_unbound(answer.uses), size=file.size, mtime_ns=file.mtime_ns)
        for file, answer in zip(asked.files, found.files, strict=True)
    )
    return dataclasses.replace(
        found, taken=(), addresses=tuple(addresses), files=tuple(files), taken_terminals=(), active_units=()
    )


def _unbound(uses: tuple[str, ...]) -> tuple[str, ...]:
    """That a process is bound to a socket matters only where the tree connects to it."""
    return uses if "connect" in uses else tuple(use for use in uses if use != "bound")


def restoring(
    manifest: protocol.Manifest, host: protocol.HostFacts, found: protocol.TargetCheck, wished: plan.Wishes
) -> Preflight:
    """How the tree is restored on this host, and what stands in the way of that."""
    tree, source = in_place(manifest.tree), dataclasses.replace(manifest.source, dirty_tracking=True)
    chosen, obstacles = plan.make_plan(source, host, tree, found, wished)
    chosen = dataclasses.replace(
        chosen, criu=manifest.options, notes=tuple(_notes(tree, host.hostname, found, chosen.namespaces))
    )
    there = f"{host.hostname} (target)" if source.hostname == host.hostname else host.hostname
    # what the tree has in itself was judged when it was saved
    of_host = tuple(one for one in obstacles if one.host == there)
    if wished.terminal and not manifest.terminal:
        of_host = (*of_host, make("no-terminal", host.hostname, f"pid {tree.root}"))
    return chosen, _of_one_host(host.hostname, of_host)


def _notes(tree: protocol.TreeFacts, host: str, found: protocol.TargetCheck, namespaces: bool) -> Iterator[str]:
    if tree.inside:
        yield f"it lived in a PID namespace of its own (pid {tree.inside[0].pid} there), and gets one again"
    elif namespaces and found.taken:
        yield f"a number of it is taken on {host}: it gets a PID namespace of its own"


def _of_one_host(name: str, obstacles: tuple[Obstacle, ...]) -> tuple[Obstacle, ...]:
    """There is one host, which is named as that."""
    sides = {f"{name} (source)", f"{name} (target)"}
    plain = []
    for one in obstacles:
        remedy = one.remedy
        for side in sides:
            remedy = remedy.replace(side, f"{name} when it was saved")
        plain.append(dataclasses.replace(one, host=name if one.host in sides else one.host, remedy=remedy))
    return tuple(dict.fromkeys(plain))


def prepare(
    migration: str, place: str, manifest: protocol.Manifest, chosen: plan.Plan, terminal: str
) -> protocol.Prepare:
    """What the agent is asked for to restore it."""
    numbers = chosen.numbers
    small = sum(one.size for one in manifest.images if not one.name.partition("/")[2].startswith("pages-"))
    return protocol.Prepare(
        migration, numbers[0].pid, manifest.host, small + _RESERVE, False, manifest.options,
        tuple(sorted({number for task in numbers for number in (task.pid, *task.tids)})),
        namespaces=chosen.namespaces, terminal=terminal, ptys=terminals.own(manifest.tree), lease=0.0,
        scope=manifest.scope, logged=manifest.logged, ice=place,
    )  # fmt: skip
