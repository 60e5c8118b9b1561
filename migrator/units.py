"""The systemd unit of a tree: what stands in the way, and what it becomes on the target. Pure.

A service does not go on as that on the target: systemd takes no process for a service's that it has not started. It
goes on in a scope, which has limits, a status and an end as a service has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from agent.protocol import HostFacts, Logged, Scope, TargetCheck, TreeFacts, Unit
from migrator.obstacle import Obstacle, make

_PREFIX, _SCOPE, _SERVICE = "migrated-", ".scope", ".service"


@dataclasses.dataclass(frozen=True)
class Systemd:
    """What systemd has to do with a migration, on either host."""

    suspended: str = ""
    """The unit that is kept from reviving on the source meanwhile; "" for none, as of a scope, which does not."""
    scope: Scope = Scope()  # noqa: RUF009 - frozen
    """The tree's on the target."""
    logged: tuple[Logged, ...] = ()
    """Its streams to the source's journal, which become such to the target's."""


NOTHING = Systemd()


def own(tree: TreeFacts) -> Unit | None:
    """The unit that --unit is about: that of the root."""
    return next((unit for unit in tree.units if tree.root in unit.pids), None)


def is_moved(unit: Unit) -> bool:
    """Whether a unit is a scope that an earlier migration has made."""
    return unit.name.startswith(_PREFIX) and unit.name.endswith(_SCOPE) and not unit.manager


def service_of(unit: Unit) -> str:
    """The service that a unit is, or was before it moved: redis.service for migrated-redis.scope."""
    return unit.name[len(_PREFIX) : -len(_SCOPE)] + _SERVICE if is_moved(unit) else unit.name


def scope_name(unit: Unit) -> str:
    """The scope that it becomes. An instance's @ is no character of a scope's name."""
    return f"{_PREFIX}{service_of(unit).removesuffix(_SERVICE).replace('@', '-')}{_SCOPE}"


def questions(tree: TreeFacts, wish: bool) -> tuple[str, ...]:
    """Units that the target is asked about: those that must not be active there."""
    unit = own(tree)
    return (scope_name(unit), service_of(unit)) if wish and unit is not None and _movable(unit) else ()


def _movable(unit: Unit) -> bool:
    return not unit.manager and (unit.name.endswith(_SERVICE) or is_moved(unit))


def obstacles(
    here: str, there: str, source: HostFacts, tree: TreeFacts, check: TargetCheck, wish: bool
) -> Iterator[Obstacle]:
    """What of the tree's units stands in the way; with `wish` that of the root is moved."""
    moved = own(tree) if wish and source.systemd else None
    if wish and source.systemd and (moved is None or not _movable(moved)):
        where = moved.name if moved is not None else "no unit"
        yield make("no-unit", here, f"pid {tree.root}", where=where)
        moved = None
    for unit in tree.units:
        name = next((task.name for task in tree.tasks if task.pid == unit.main), "")
        if unit is moved:
            yield from _of_moved(here, there, unit, check)
        elif unit.main and unit.manager:
            yield make("unit-user", here, unit.name, detail=name, manager=unit.manager)
        elif unit.main and (unit.reacts or unit.on_success or unit.starters or not unit.answered):
            started = [f"TriggeredBy={name}" for name in unit.starters]
            started += [f"OnSuccess={name}" for name in unit.on_success]
            why = ", ".join((*unit.reacts, *started)) or "it does not say how"
            yield make("unit", here, unit.name, detail=name, reacts=why)
        elif unit.main:
            yield make("unit-fails", here, unit.name, detail=name)


def _of_moved(here: str, there: str, unit: Unit, check: TargetCheck) -> Iterator[Obstacle]:
    if unit.others or (not unit.main and not is_moved(unit)):
        yield make("unit-shared", here, unit.name, others=", ".join(unit.others) or "its main process")
    if not unit.answered:
        yield make("unit", here, unit.name, problem="systemd does not answer", remedy="see `systemctl status` there")
    if unit.on_success:
        yield make("unit-success", here, unit.name, units=" ".join(unit.on_success))
    if unit.starters:
        yield make("unit-triggered", here, unit.name, starters=" ".join(unit.starters))
    if unit.at_boot:
        yield make("unit-boot", here, unit.name, name=unit.name)
    if unit.local:
        yield make("unit-local", here, unit.name, limits=", ".join(unit.local), here=here)
    for name in check.active_units:
        yield make("unit-taken" if name.endswith(_SCOPE) else "unit-active", there, name, name=name)


def no_journal(here: str, target: HostFacts, tree: TreeFacts) -> Iterator[Obstacle]:
    """That of a tree whose output goes to the journal."""
    for one in tree.peculiarities:
        if one.kind == "journal" and not target.journal:
            yield make("journal-missing", here, f"pid {one.pid}")


def systemd(here: str, tree: TreeFacts, wish: bool) -> Systemd:
    """What both hosts' systemd have to do with it; `here` is the source's name."""
    unit = own(tree) if wish else None
    if unit is None or not _movable(unit):
        return Systemd(logged=logged(tree))
    scope = Scope(scope_name(unit), f"{service_of(unit)}, moved here from {here}", unit.limits)
    return Systemd("" if is_moved(unit) else unit.name, scope, logged(tree))


def logged(tree: TreeFacts) -> tuple[Logged, ...]:
    """The tree's streams to the journal."""
    chosen = {pid: unit.identifier for unit in tree.units for pid in unit.pids}
    found = [one for one in tree.peculiarities if one.kind == "journal" and one.object.isdecimal()]
    return tuple(Logged(int(one.object), chosen.get(one.pid) or one.detail) for one in found)


def notes(here: str, there: str, source: HostFacts, target: HostFacts, tree: TreeFacts, wish: bool) -> Iterator[str]:
    """What the operator is told: the unit's name, and what becomes of it."""
    unit = own(tree)
    if wish and not source.systemd:
        yield f"{here} runs no systemd: there is no unit to move, and the tree moves as it is"
    if unit is None or not (_movable(unit) or unit.manager):
        return
    if not wish:
        main = "the main process of" if unit.main == tree.root else "in"
        yield f"pid {tree.root} is {main} {unit.name}" + (f" of {unit.manager}" if unit.manager else "")
    elif not target.systemd:
        yield f"{there} runs no systemd: what was in {unit.name} runs there in no unit, without its limits"
    elif _movable(unit):
        back = f"; {service_of(unit)} stays inactive there" if is_moved(unit) else f", and {unit.name} ends here"
        yield f"{unit.name} goes on in {scope_name(unit)} on {there}{back}"
