"""Every parser against what hypothesis makes up, and against good input with some bytes of it changed."""

from __future__ import annotations

import functools
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import table
from tests.fuzz.limits import Hang, less_memory, less_time

EVERY = pytest.mark.parametrize("harness", table.HARNESSES, ids=lambda harness: harness.name)
EXAMPLES = 100


@functools.cache
def seeds(name: str) -> tuple[bytes, ...]:
    return tuple(table.BY_NAME[name].seeds())


def changed(seed: bytes, chance: random.Random) -> bytes:
    """A few bytes of it are others, gone, or there twice."""
    data = bytearray(seed)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 4, 8, 40))
        what = chance.randrange(4)
        if what == 0:
            data[at : at + length] = bytes(
                chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))) for _ in range(length)
            )
        elif what == 1:
            del data[at : at + length]
        elif what == 2:
            data[at:at] = data[at : at + length]
        else:
            del data[at:]
    return bytes(data)


@EVERY
def test_good_input_is_taken(harness: table.Harness) -> None:
    assert seeds(harness.name)
    for seed in seeds(harness.name):
        with less_memory(), less_time():
            harness.run(seed)


@EVERY
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=200))
def test_any_bytes(harness: table.Harness, data: bytes) -> None:
    with less_memory(), less_time():
        harness.run(data)


@EVERY
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(chance=st.randoms(use_true_random=False))
def test_nearly_good_bytes(harness: table.Harness, chance: random.Random) -> None:
    data = changed(chance.choice(seeds(harness.name)), chance)
    with less_memory(), less_time():
        harness.run(data)


def test_a_parser_that_takes_too_much_memory_is_found() -> None:
    with pytest.raises(MemoryError), less_memory():
        bytearray(1 << 40)


def test_a_parser_that_does_not_end_is_found() -> None:
    with pytest.raises(Hang), less_time(0.05):
        while True:
            pass
