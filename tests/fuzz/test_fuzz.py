"""Every parser against what hypothesis makes up, and against good input with some bytes of it changed."""

from __future__ import annotations

import ast
import functools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import table
from tests.fuzz.limits import Hang, less_memory, less_time
from tests.test_house import ROOMS, name, parse

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


TAKES_APART = {
    "json.loads", "json.load", "tomllib.loads", "tomllib.load", "wire.loads", "tarfile.open", "shlex.split",
    "base64.b64decode", "bytes.fromhex", "int.from_bytes", "*.unpack", "*.unpack_from", "*.iter_unpack",
}  # fmt: skip
"""Calls that make something of bytes; of a struct whatever it is called."""
ROOT = Path(__file__).parents[2]


def takes_apart(source: str) -> Iterator[str]:
    """The calls of these in a source."""
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of, called = ast.unparse(node.func.value), node.func.attr
            yield from TAKES_APART & {f"{of}.{called}", f"*.{called}"}


@pytest.mark.parametrize("path", ROOMS, ids=name)
def test_whoever_takes_bytes_apart_is_in_the_table(path: Path) -> None:
    found = sorted(set(takes_apart(path.read_text())))
    assert not found or name(path) in table.READERS, f"{found}: name a harness in table.READERS, or say why none"


def test_such_calls_are_seen() -> None:
    assert set(takes_apart("x.HEAD.unpack_from(y)\njson.loads(z)\nother.loads(z)\njson.dumps(z)")) == {
        "*.unpack_from", "json.loads",
    }  # fmt: skip


@pytest.mark.parametrize("path", table.READERS)
def test_what_the_table_says_of_a_module_is_so(path: str) -> None:
    """Good input to each of its harnesses gets there."""
    module, known = ROOT / path, table.READERS[path]
    assert module.is_file()
    reached: set[str] = set()
    harness = ""

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename == str(module) and frame.f_code.co_name != "<module>":
            reached.add(harness)

    for harness in () if isinstance(known, str) else known:
        good = seeds(harness)
        sys.setprofile(look)
        try:
            for seed in good:
                table.BY_NAME[harness].run(seed)
        finally:
            sys.setprofile(None)
    assert reached == (set() if isinstance(known, str) else set(known))


def test_every_harness_is_for_somebody() -> None:
    named = {harness for known in table.READERS.values() if not isinstance(known, str) for harness in known}
    # these are for what becomes of the answers, and of what an agent's start says
    assert set(table.BY_NAME) - named == {"banner", "boot", "answers", "report"}


def test_readme_says_how_many_parsers_there_are() -> None:
    assert f"`tests/fuzz` ({len(table.HARNESSES)} parsers)" in (ROOT / "README.md").read_text()


def test_a_parser_that_takes_too_much_memory_is_found() -> None:
    with pytest.raises(MemoryError), less_memory():
        bytearray(1 << 40)


def test_a_parser_that_does_not_end_is_found() -> None:
    with pytest.raises(Hang), less_time(0.05):
        while True:
            pass
