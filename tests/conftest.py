"""Fixtures that several rooms' tests need."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from migrator import config, logbook
from tests.fake_hosts import Pair
from tests.fork_server import ForkServer


def pytest_addoption(parser: pytest.Parser) -> None:
    """`vagrant/lab test` sees to it that all is here that a test can need."""
    parser.addoption("--no-skips", action="store_true", help="a fast test that is skipped has failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What nobody ran was not seen to work."""
    report = yield
    if report.skipped and item.config.getoption("--no-skips") and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped, where nothing may be: {report.longrepr[-1]}"  # type: ignore
    return report


@pytest.fixture(autouse=True)
def _apart_from_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine's admin has set is no matter of the tests, and what they do is no matter of its log."""
    monkeypatch.setattr(config, "files", lambda: ())
    monkeypatch.setattr(logbook, "JOURNAL", "")
    monkeypatch.setattr(logbook, "SYSLOG", "")


@pytest.fixture
def cgroups_of_the_host() -> Iterator[None]:
    """For who makes cgroups, or looks for all of ours: one test at a time, of however many runs."""
    with (Path(tempfile.gettempdir()) / "migrate-tests-cgroups").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Where agents come from."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def pair(fork_server: ForkServer) -> Iterator[Pair]:
    """Two fake hosts, closed afterwards."""
    pair = Pair(fork_server)
    yield pair
    pair.close()
