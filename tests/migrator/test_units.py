"""The systemd unit of a tree: what stands in the way with --unit and without, and what it becomes on the target."""

from __future__ import annotations

import dataclasses

import pytest

from agent.protocol import HostFacts, Logged, Peculiarity, Scope, TargetCheck, TaskFacts, TreeFacts, Unit
from migrator import units
from migrator.plan import Wishes, make_plan, questions
from tests.migrator.test_plan import PLAIN, host

ROOT = TaskFacts(100, 1, 100, 100, (100,), "app", "S", 7, 0)
BARE = Unit("x.service", (100,), main=100)
SERVICE = dataclasses.replace(BARE, reacts=("Restart=always", "ExecStopPost="), limits=("TasksMax=9",))
MOVED = Unit("migrated-x.scope", (100,))
SESSION = Unit("session-3.scope", (100,))
PART = Unit("x.service", (100,), others=("main (pid 7)",))
USERS = Unit("x.service", (100,), main=100, manager="user@7.service", answered=False)
WITHOUT = dataclasses.replace(host("old"), systemd=False)


def tree(*found: Unit, odd: tuple[Peculiarity, ...] = ()) -> TreeFacts:
    return TreeFacts(100, (ROOT,), (), odd, 1 << 20, units=found)


def ids(*found: Unit, wish: bool, active: tuple[str, ...] = (), source: HostFacts | None = None) -> list[str]:
    check = TargetCheck((), (), 1 << 30, 1 << 30, active_units=active)
    return [one.id for one in units.obstacles("alpha", "beta", source or host("alpha"), tree(*found), check, wish)]


@pytest.mark.parametrize(("found", "wish", "expected"), [
    ((), False, []),
    ((SERVICE,), False, ["unit"]),
    ((SERVICE,), True, []),
    ((BARE,), False, ["unit-fails"]),
    ((BARE,), True, []),
    ((dataclasses.replace(BARE, starters=("x.socket",)),), False, ["unit"]),
    ((dataclasses.replace(BARE, starters=("x.socket",)),), True, ["unit-triggered"]),
    ((dataclasses.replace(BARE, on_success=("y.service",)),), False, ["unit"]),
    ((dataclasses.replace(BARE, on_success=("y.service",)),), True, ["unit-success"]),
    ((dataclasses.replace(BARE, answered=False),), False, ["unit"]),
    ((dataclasses.replace(BARE, answered=False),), True, ["unit"]),
    ((dataclasses.replace(BARE, at_boot=True),), True, ["unit-boot"]),
    ((dataclasses.replace(BARE, at_boot=True),), False, ["unit-fails"]),
    ((dataclasses.replace(BARE, local=("IOReadBandwidthMax=/dev/vda 1",)),), True, ["unit-local"]),
    ((dataclasses.replace(SERVICE, others=("helper (7)",)),), True, ["unit-shared"]),
    ((dataclasses.replace(SERVICE, others=("helper (7)",)),), False, ["unit"]),
    ((PART,), False, []),
    ((PART,), True, ["unit-shared"]),
    ((SESSION,), False, []),
    ((SESSION,), True, ["no-unit"]),
    ((), True, ["no-unit"]),
    ((USERS,), False, ["unit-user"]),
    ((USERS,), True, ["no-unit", "unit-user"]),
    ((dataclasses.replace(USERS, main=0),), False, []),
    ((MOVED,), False, []),
    ((MOVED,), True, []),
    # another unit's main process is a child of the tree: that one is not moved
    ((SESSION, dataclasses.replace(SERVICE, pids=(200,), main=100)), False, ["unit"]),
    ((BARE, dataclasses.replace(SERVICE, name="y.service", pids=(200,))), True, ["unit"]),
])  # fmt: skip
def test_obstacles(found: tuple[Unit, ...], wish: bool, expected: list[str]) -> None:
    assert ids(*found, wish=wish) == expected


def test_a_unit_that_is_active_there() -> None:
    assert ids(SERVICE, wish=True, active=("migrated-x.scope",)) == ["unit-taken"]
    assert ids(SERVICE, wish=True, active=("x.service",)) == ["unit-active"]


def test_without_systemd_here_nothing_is_in_the_way() -> None:
    assert ids(wish=True, source=WITHOUT) == []


def test_the_obstacle_says_what_systemd_would_do_and_names_the_option() -> None:
    check = TargetCheck((), (), 1 << 30, 1 << 30)
    (found,) = units.obstacles("alpha", "beta", host("alpha"), tree(SERVICE), check, False)
    assert found.object == "x.service"
    assert "Restart=always, ExecStopPost=" in found.problem
    assert "app" in found.problem
    assert "--unit" in found.remedy


@pytest.mark.parametrize(("unit", "scope", "service"), [
    ("redis.service", "migrated-redis.scope", "redis.service"),
    ("postgresql@17-main.service", "migrated-postgresql-17-main.scope", "postgresql@17-main.service"),
    ("migrated-redis.scope", "migrated-redis.scope", "redis.service"),
])  # fmt: skip
def test_the_name_of_its_scope(unit: str, scope: str, service: str) -> None:
    found = Unit(unit, (100,))
    assert units.scope_name(found) == scope
    assert units.service_of(found) == service


def test_what_systemd_has_to_do() -> None:
    made = units.systemd("alpha", tree(SERVICE), True)
    assert made.suspended == "x.service"
    assert made.scope == Scope("migrated-x.scope", "x.service, moved here from alpha", ("TasksMax=9",))
    assert units.systemd("alpha", tree(SERVICE), False) == units.NOTHING
    assert units.systemd("alpha", tree(SESSION), True) == units.NOTHING
    back = units.systemd("beta", tree(MOVED), True)
    assert (back.suspended, back.scope.name) == ("", "migrated-x.scope")


def test_its_output_goes_to_the_journal_there() -> None:
    odd = (Peculiarity("journal", 100, "4711", "app"), Peculiarity("journal", 200, "4712", "helper"))
    named = dataclasses.replace(BARE, identifier="shown")
    assert units.systemd("alpha", tree(named, odd=odd), False).logged == (Logged(4711, "shown"), Logged(4712, "helper"))
    there = dataclasses.replace(host("beta"), journal=True)
    assert list(units.no_journal("alpha", there, tree(odd=odd))) == []
    assert {one.id for one in units.no_journal("alpha", host("beta"), tree(odd=odd))} == {"journal-missing"}


def test_the_target_is_asked_about_both_units() -> None:
    assert units.questions(tree(SERVICE), True) == ("migrated-x.scope", "x.service")
    assert units.questions(tree(SERVICE), False) == ()
    assert units.questions(tree(SESSION), True) == ()


@pytest.mark.parametrize(("found", "wish", "systemd", "words"), [
    (SERVICE, False, True, "the main process of x.service"),
    (PART, False, True, "pid 100 is in x.service"),
    (USERS, False, True, "x.service of user@7.service"),
    (SERVICE, True, True, "goes on in migrated-x.scope on beta, and x.service ends here"),
    (SERVICE, True, False, "beta runs no systemd"),
    (MOVED, True, True, "x.service stays inactive there"),
])  # fmt: skip
def test_notes(found: Unit, wish: bool, systemd: bool, words: str) -> None:
    there = dataclasses.replace(host("beta"), systemd=systemd)
    (note,) = units.notes("alpha", "beta", host("alpha"), there, tree(found), wish)
    assert words in note


def test_a_session_is_not_worth_a_note() -> None:
    assert list(units.notes("alpha", "beta", host("alpha"), host("beta"), tree(SESSION), False)) == []


def test_a_source_without_systemd_is_said() -> None:
    (note,) = units.notes("alpha", "beta", WITHOUT, host("beta"), tree(), True)
    assert "alpha runs no systemd" in note


@pytest.mark.parametrize(("wish", "systemd", "ids_of"), [
    (True, True, []), (True, False, ["cgroup-limits"]), (False, True, ["cgroup-limits", "unit-fails"]),
])  # fmt: skip
def test_limits_of_a_unit_that_moves_are_no_warning(wish: bool, systemd: bool, ids_of: list[str]) -> None:
    world = PLAIN.odd("cgroup-limits", "/system.slice/x.service", "memory.max 9")
    found = dataclasses.replace(world.tree, units=(BARE,))
    there = dataclasses.replace(world.target, systemd=systemd)
    wishes = Wishes(unit=wish)
    check = dataclasses.replace(world.checked(), active_units=())
    plan, obstacles = make_plan(world.source, there, found, check, wishes)
    assert [one.id for one in obstacles] == ids_of
    assert plan.systemd.suspended == ("x.service" if wish else "")
    assert questions(found, wishes).units == (("migrated-x.scope", "x.service") if wish else ())


def test_criu_is_told_of_streams_to_the_journal() -> None:
    there = PLAIN.odd("journal", "4711", "app").on_target(journal=True)
    plan, obstacles = there.plan()
    assert obstacles == ()
    assert plan.criu.for_dump == ("--external", "unix[4711]")
    assert plan.systemd.logged == (Logged(4711, "app"),)
