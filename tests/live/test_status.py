"""`migrate status` and `migrate abort` from another shell, with a migration that stays where it is meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.live.conftest import Run
from tests.live.lab_host import Done, LabHost, until, wait_for_sweeps
from tests.live.test_failures import still_right, undone
from tests.live.test_recover import settled

pytestmark = pytest.mark.long_on("vm")

Lingering = Callable[..., str]


@pytest.fixture
def lingering(alpha: LabHost) -> Iterator[Lingering]:
    """Start a migration that stays at the brink of a phase; its id."""

    def start(pid: int, at: str) -> str:
        alpha.run("rm -f /run/lingers /run/go /run/code")
        words = f"--at {at} --act linger --before -- --json --copy-files {pid} beta"
        saboteur = f"/opt/migrate/bin/python /root/programs/saboteur.py {words} >/run/out 2>/run/err"
        alpha.start(f"{saboteur}; echo $? >/run/code")
        until(lambda: alpha.run("test -s /run/lingers", check=False).status == 0, "it does not come so far")
        return alpha.run("basename $(dirname $(ls -t /var/lib/migrate/*/journal | head -1))").out.strip()

    yield start
    alpha.run("touch /run/go; until [ -s /run/code ]; do sleep 0.1; done; rm -f /run/go /run/lingers /run/code")


def nothing_left(run: Run) -> None:
    """Both hosts say so."""
    assert run.status == 0, run.explain()
    assert [(one["left"], one["in_use"]) for one in run.of("leftovers")] == [(0, 0), (0, 0)], run.explain()


@pytest.mark.parametrize("at", ["freeze", "commit"])
def test_status_and_abort_from_another_shell(
    alpha: LabHost, beta: LabHost, witness: int, migrate: Any, lingering: Lingering, at: str
) -> None:
    migration = lingering(witness, at)
    held = at == "commit"

    listed = migrate("status").of("migration")
    (mine,) = (one for one in listed if one["id"] == migration)
    assert (mine["role"], mine["pid"], mine["at_work"], mine["finished"]) == ("source", witness, True, False)
    assert mine["follows"] == f"migrate abort {migration}"

    told = migrate("status", migration)
    source, target = told.of("story")
    assert [line["record"] for line in source["lines"] if line["record"].isupper()][-1] == (
        "FROZEN" if held else "BEGIN"
    )
    assert [line["record"] for line in target["lines"] if line["record"].isupper()][-1] == (
        "HELD" if held else "PREPARED"
    )
    assert (source["held"], target["held"]) == (held, held)
    assert {"migrate", "agent", "task"} <= {one["kind"] for one in source["living"]}
    for story in (source, target) if held else ():
        assert {"criu", "hook"} <= {one["kind"] for one in story["living"]}, told.explain()

    used = migrate("status", "--leftovers", "beta")
    assert used.status == 0, used.explain()
    assert all(one["left"] == 0 and one["in_use"] > 0 for one in used.of("leftovers")), used.explain()

    second = migrate(str(witness), "beta")
    assert second.status == 22, second.explain()
    assert migration in second.of("error")[0]["message"]
    at_work = migrate("recover", migration)
    assert at_work.status == 22, at_work.explain()

    aborted = migrate("abort", migration)
    assert aborted.status == 0, aborted.explain()
    until(lambda: alpha.run("cat /run/code", check=False).out.strip() == "143", "migrate does not say what it should")
    still_right(alpha, beta, witness)
    nothing_left(migrate("status", "--leftovers", "beta"))
    again = migrate("abort", migration)
    assert (again.status, again.of("recovered")[0]["course"]) == (0, "nothing"), again.explain()


@pytest.mark.parametrize(("at", "by"), [("pre-copy", "alpha"), ("pre-copy", "beta"), ("commit", "beta")])
def test_abort_from_either_shell(
    both_ways: None, alpha: LabHost, beta: LabHost, witness: int, migrate: Any, lingering: Lingering, at: str, by: str
) -> None:
    """Who aborts exits with 0 and says where the process runs; whose migration it was with 143, in words and events."""
    migration = lingering(witness, at)
    there = {"alpha": alpha, "beta": beta}[by]
    aborted = migrate("abort", migration, on=there)
    assert aborted.status == 0, aborted.explain()
    assert [note["text"].split(" to migrate")[0] for note in aborted.of("note")] == ["alpha: SIGTERM"]
    (told,) = aborted.of("recovered")
    assert (told["course"], told["host"], told["pid"]) == ("undo", "alpha", witness), aborted.explain()
    assert told["text"] == "undone: the process runs on alpha"

    until(lambda: alpha.run("test -s /run/code", check=False).status == 0, "migrate does not end")
    run = Run(Done(int(alpha.read("/run/code")), alpha.read("/run/out"), alpha.read("/run/err")))
    undone(run, codes=(143,))
    (error,) = run.of("error")
    assert (error["error"], error["message"]) == ("Interrupted", "stopped by SIGTERM"), run.explain()
    assert error["where"] == "undone: the process runs on the source"
    assert "migrate: SIGTERM: " in run.err
    still_right(alpha, beta, witness)
    nothing_left(migrate("status", "--leftovers", "beta"))
    for host in (alpha, beta):
        settled(host)


def test_abort_after_commit(alpha: LabHost, beta: LabHost, witness: int, migrate: Any, lingering: Lingering) -> None:
    """Refused, and the migration goes on to its end."""
    migration = lingering(witness, "resume")
    late = migrate("abort", migration)
    assert late.status == 73, late.explain()
    alpha.run("touch /run/go")
    until(lambda: alpha.run("cat /run/code", check=False).out.strip() == "0", "it does not go on")
    assert {line[3] for line in wait_for_sweeps(beta, 1)} == {0}, "bad pages"
    assert migrate("abort", migration).status == 73


def test_everything_killed_is_found_named_and_removed(
    alpha: LabHost, beta: LabHost, witness: int, sabotage: Any, migrate: Any
) -> None:
    """SIGKILL to all that knew of it: what is left is named on both hosts, and one command removes it."""
    sabotage(witness, "commit", "kill-everything")
    wait_for_sweeps(alpha, 1)
    left = migrate("status", "--leftovers", "beta")
    assert left.status == 3, left.explain()
    for host in ("alpha", "beta"):
        mine = [item for item in left.of("leftover") if item["host"] == host]
        assert {"mount", "journal"} <= {item["kind"] for item in mine}, left.explain()
        assert {item["remove"].split()[:2] == ["migrate", "recover"] for item in mine} == {True}, left.explain()
    assert migrate("recover").status == 0
    nothing_left(migrate("status", "--leftovers", "beta"))
    still_right(alpha, beta, witness)


def test_an_id_that_nobody_knows(migrate: Any) -> None:
    for command in ("status", "abort", "recover"):
        run = migrate(command, "20260101-010101-abcdef")
        assert run.status == 20, run.explain()
        assert run.of("error")[0]["where"] == "nothing was changed"
