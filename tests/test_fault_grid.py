"""The fault grid as far as it can be told without a lab: which cells there are, who judges, what is written down."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent import instants
from tests.live.faults import cells, outside, soak, table
from tests.live.faults.outside import Sign, judge

LEAST = {"netns": 100, "vm": 20}


@pytest.mark.parametrize("backend", ["netns", "vm"])
def test_there_are_as_many_cells_as_there_must_be_and_each_once(backend: str) -> None:
    found = cells.cells(backend)
    assert len(found) >= LEAST[backend]
    assert len({cell.id for cell in found}) == len(found)
    assert all(cell.places and cell.codes for cell in found)


def test_only_criu_between_seizing_and_its_hold_may_cost_the_process() -> None:
    for cell in (*cells.cells("netns"), *cells.cells("vm")):
        if cells.CRIU_LOST in cell.places:
            assert (cell.fault, cell.victim) == (cells.KILL, "source criu")
            assert cell.instant in ("dump", *cells.ROUNDS)
        if cells.HOST_LOST in cell.places:
            assert cell.fault == cells.REBOOT


def test_every_instant_of_an_agent_has_its_name_there() -> None:
    told = set(re.findall(r"`([a-z]+(?: [a-z]+)?)(?: N|)`\s\(", instants.__doc__ or ""))
    names = {re.sub(r" \d", "", instant.at) for instant in cells.INSTANTS if instant.at}
    assert {name for name in names if not name.startswith("phase ")} == told


@pytest.mark.parametrize("backend", ["netns", "vm"])
def test_the_slice_of_ci_is_the_same_for_a_commit_and_has_no_cell_twice(backend: str) -> None:
    one, again, other = (cells.chosen(backend, seed) for seed in ("1", "1", "2"))
    assert one == again
    assert len(set(one)) == len(cells.SLICE[backend]) + cells.DRAWN[backend]
    assert backend == "vm" or one != other
    assert not [cell for cell in one if cell.fault in cells.LONG]


def signs(*told: tuple[str, int], bad: int = 0) -> list[Sign]:
    return [Sign(number / 100, host, sequence, 1, bad, 0) for number, (host, sequence) in enumerate(told)]


def test_a_process_that_stayed_and_one_that_moved() -> None:
    assert judge(signs(("alpha", 0), ("alpha", 1)), 0) == ""
    assert judge(signs(("alpha", 0), ("beta", 1), ("beta", 2)), 1) == ""
    assert judge(signs(("alpha", 0), ("beta", 1), ("alpha", 2)), 2) == ""


@pytest.mark.parametrize(
    ("told", "moves"),
    [
        ((), 0),
        ((("alpha", 0), ("alpha", 2)), 0),  # a sign is missing
        ((("alpha", 0), ("alpha", 1), ("alpha", 1)), 0),  # it went back a step
        ((("alpha", 0), ("beta", 1), ("alpha", 1)), 1),  # two copies
        ((("alpha", 0), ("beta", 1), ("alpha", 2)), 1),  # it came back
        ((("beta", 0), ("beta", 1)), 0),
        ((("alpha", 0), ("alpha", 1)), 1),  # it is said to have moved
        ((("alpha", 0), ("beta", 1)), 0),  # it is said to have stayed
    ],
)
def test_a_process_that_was_lost_or_doubled(told: tuple[tuple[str, int], ...], moves: int) -> None:
    assert judge(signs(*told), moves)


def test_memory_that_is_wrong() -> None:
    assert judge(signs(("alpha", 0), ("alpha", 1), bad=1), 0)


def test_the_table_is_kept_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "GRID", tmp_path / "GRID.md")
    some = table.Rows("netns", "kernel")
    some.add(cells.cells("netns")[0], cells.SOURCE)
    assert not some.keep()
    for backend in ("netns", "vm", "netns"):
        rows = table.Rows(backend, "kernel")
        for cell in cells.cells(backend):
            rows.add(cell, cell.places[0])
        assert rows.keep()
    again = table.Rows("vm", "kernel")
    again.add(cells.cells("vm")[3], "FAIL")
    assert again.keep()  # the others are there, from a run of the same
    assert not table.Rows("vm", "another kernel").keep()
    text = table.GRID.read_text()
    count = len(cells.cells("netns")) + len(cells.cells("vm"))
    assert text.count("| ok |\n") == count  # the head among them
    assert text.count("| FAIL |\n") == 1
    assert ", 0 failed, " in text
    assert ", 1 failed, " in text


@pytest.mark.parametrize("backend", ["netns", "vm"])
def test_where_a_fault_is_not_done_there_is_a_reason_and_nowhere_else(backend: str) -> None:
    possible = set(cells.ON_NETNS if backend == "netns" else cells.NAMES)
    both = (*cells.cells("netns"), *cells.cells("vm"))
    for fault in {cell.fault for cell in both}:
        whole = True
        for victim in {cell.victim for cell in both if cell.fault == fault}:
            there = possible & set(cells.VICTIMS[victim].there if victim in cells.VICTIMS else cells.NAMES)
            done = {cell.instant for cell in cells.cells(backend) if (cell.fault, cell.victim) == (fault, victim)}
            whole = whole and done == there
        assert whole == ((backend, fault) not in cells.THINNED), fault


def test_growth_is_seen() -> None:
    before = {"descriptors": 10, "memory, KiB": 1000, "journals": 3, "reports": 2}
    most = {"descriptors": 10, "memory, KiB": 1000 + soak.NOISE_KIB, "journals": 51, "reports": 100}
    assert soak.grown(before, most) == []
    for what, much in (*((what, number + 1) for what, number in most.items()), ("journals", 60)):
        assert soak.grown(before, {**before, what: much})


def test_each_host_has_an_address_of_its_own_outside() -> None:
    assert len({outside.ADDRESS, *outside.HOSTS.values()}) == 3
