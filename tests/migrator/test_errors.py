"""The tree of errors: one documented exit code each, in the band that says where the process is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator import errors
from migrator.errors import MigrateError

README = Path(__file__).parents[2] / "README.md"


def tree(root: type[MigrateError] = MigrateError) -> Iterator[tuple[type[MigrateError], type[MigrateError]]]:
    """Every public error with its nearest public ancestor, in the order of the file."""
    for child in root.__subclasses__():
        if not child.__name__.startswith("_"):
            ancestor = next(kind for kind in child.__mro__[1:] if not kind.__name__.startswith("_"))
            yield child, ancestor
        yield from tree(child)


def code_of(kind: type[MigrateError]) -> str:
    """The code as documents write it."""
    return "128+N" if kind is errors.Interrupted else str(kind.exit_code)


def drawn() -> list[tuple[str, str, str]]:
    """(name, parent, code) of each line of the tree that the docstring draws."""
    found: list[tuple[str, str, str]] = []
    parents = {0: "MigrateError"}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ((?:│   |    )*)(?:├|└)── (\w+) +(\S+) ", line)
        if match:
            depth = len(match[1]) // 4
            found.append((match[2], parents[depth], match[3]))
            parents[depth + 1] = match[2]
    return found


def test_the_docstring_draws_the_tree_that_is_there() -> None:
    assert drawn() == [(kind.__name__, ancestor.__name__, code_of(kind)) for kind, ancestor in tree()]
    assert len(drawn()) > 20


def test_codes_are_distinct() -> None:
    codes = [code_of(kind) for kind, _ in tree()]
    assert len(codes) == len(set(codes))
    assert not {"0", "1", str(errors.EXIT_LEFTOVERS)} & set(codes)


UNTOUCHED = "the process runs on the source and was not touched"
UNDONE = "undone: the process runs on the source"


@pytest.mark.parametrize(("kind", "ancestor"), [pytest.param(*pair, id=pair[0].__name__) for pair in tree()])
def test_the_code_lies_in_the_band_that_says_where_the_process_is(
    kind: type[MigrateError], ancestor: type[MigrateError]
) -> None:
    bands: dict[type[MigrateError], tuple[range, set[str]]] = {
        errors.UsageError: (range(2, 3), {UNTOUCHED}),
        errors.ConnectError: (range(10, 20), {UNTOUCHED}),
        errors.PreflightError: (
            range(20, 30),
            {UNTOUCHED, "nothing was moved", errors.StateError.where, errors.IceError.where},
        ),
        errors.CopyError: (range(30, 50), {UNDONE}),
        errors.NotResumed: (range(70, 71), {errors.NotResumed.where}),
        errors.InDoubt: (range(71, 72), {errors.InDoubt.where}),
        errors.MemoryLost: (range(72, 73), {errors.MemoryLost.where}),
        errors.TooLate: (range(73, 74), {errors.TooLate.where}),
        errors.Lost: (range(74, 75), {errors.Lost.where}),
        errors.Interrupted: (range(129, 193), {UNDONE}),
    }
    band = next(bands[each] for each in kind.__mro__ if each in bands)
    code = errors.Interrupted(2, "").exit_code if kind is errors.Interrupted else kind.exit_code
    assert code in band[0]
    assert kind.where in band[1]
    assert kind.__doc__


def test_a_signal_is_128_plus_its_number() -> None:
    assert [errors.Interrupted(number, "").exit_code for number in (1, 2, 15)] == [129, 130, 143]


def test_the_readme_has_the_same_table() -> None:
    rows = dict(re.findall(r"^\| `?([0-9+N]+)`? \| `(\w+)` \|", README.read_text(), re.MULTILINE))
    assert rows == {code_of(kind): kind.__name__ for kind, _ in tree()}
    for code in (0, errors.EXIT_LEFTOVERS, MigrateError.exit_code):
        assert re.search(rf"^\| {code} \| ", README.read_text(), re.MULTILINE)


def test_an_error_keeps_its_parts() -> None:
    error = errors.DumpError("what", hint="do", log="/x")
    assert (str(error), error.message, error.hint, error.log) == ("what", "what", "do", "/x")
