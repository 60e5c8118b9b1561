"""Cells as parameters, one lab for all of them, and their table at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.faults import table
from tests.live.faults.runner import Runner, versions
from tests.live.lab_host import LabHost

_rows = pytest.StashKey[table.Rows]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each cell of this run."""
    if "cell" in metafunc.fixturenames:
        chosen = table.chosen(metafunc.config)
        metafunc.parametrize("cell", chosen, ids=[cell.id for cell in chosen])


@pytest.fixture(scope="module")  # its hands on the hosts are nobody's that a later test may meet, or kill
def runner(request: pytest.FixtureRequest, lab: tuple[LabHost, LabHost], backend: str) -> Iterator[Runner]:
    """Who runs cells."""
    runs = Runner(lab, request.config.getoption("--lab-name"), backend)
    yield runs
    runs.close()


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest, lab: tuple[LabHost, LabHost], backend: str) -> table.Rows:
    """Their table."""
    kept = table.Rows(backend, f"{versions(lab[0])}; agent and migrator {table.sources()[:12]}")
    request.config.stash[_rows] = kept
    return kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table, which is kept when it is all of it."""
    if (kept := config.stash.get(_rows, None)) is not None:
        terminalreporter.write_sep("=", "fault grid")
        terminalreporter.write_line(kept.text())
        terminalreporter.write_line(kept.summary() + (f"; kept as {table.GRID.name}" if kept.keep() else ""))
