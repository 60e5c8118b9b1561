"""Fixtures that several rooms' tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fake_hosts import Pair
from tests.fork_server import ForkServer


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
