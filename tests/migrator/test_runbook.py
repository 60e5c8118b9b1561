"""A plan of a drain: what it says, and every mistake in it with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomllib
from hypothesis import given
from hypothesis import strategies as st

from migrator import runbook
from migrator.runbook import BadPlan, Move, Selection

README = (Path(__file__).parents[2] / "README.md").read_text()
WHOLE = """\
target = ["db2", "root@db3:2222"]
parallel = 3
max-total-downtime = 2
keep-going = true

[options]
copy-files = true
max-downtime = 0.5

[[move]]
name = "database"
pidfile = "/run/db.pid"
target = "db2"

[[move]]
name = "cache"
process = "redis-server"
after = ["database"]
together = true
options = { max-downtime = 1.5, criu-option = ["log-level=4", "dump:ghost-limit=1M"], copy-files = false }

[[move]]
user = "www-data"

[[move]]
unit = "cron.service"
[move.options]
namespaces = "auto"
"""


def mistakes(text: str) -> list[tuple[int, str]]:
    """What is wrong with it."""
    with pytest.raises(BadPlan) as caught:
        runbook.parse(text)
    return [(one.line, one.text) for one in caught.value.mistakes]


def example() -> str:
    """The plan in README, word by word."""
    section = README.split("### Emptying a host")[1]
    return section.split("```toml\n")[1].split("```")[0]


def test_the_plan_in_the_readme_has_no_mistake() -> None:
    book = runbook.parse(example())
    assert [move.name for move in book.moves] == ["database", "workers", "user www-data"]
    assert book.moves[1].after == ("database",)


def test_a_whole_plan() -> None:
    book = runbook.parse(WHOLE)
    assert (book.parallel, book.max_total_downtime, book.keep_going) == (3, 2.0, True)
    common = ("--copy-files", "--max-downtime=0.5")
    both = ("db2", "root@db3:2222")
    assert book.moves == (
        Move("database", Selection("pidfile", "/run/db.pid"), ("db2",), options=common, line=10),
        Move(
            "cache", Selection("process", "redis-server"), both, ("database",), True,
            ("--max-downtime=1.5", "--criu-option=log-level=4", "--criu-option=dump:ghost-limit=1M"), 15,
        ),
        Move("user www-data", Selection("user", "www-data"), both, options=common, line=22),
        Move(
            "unit cron.service", Selection("unit", "cron.service"), both, options=(*common, "--namespaces=auto"),
            line=25,
        ),
    )  # fmt: skip


def test_options_go_through_the_command_lines_own_parser() -> None:
    move = runbook.parse(WHOLE).moves[3]
    options = runbook.options_of(move, "db2", 4711)
    assert (options.pid, options.host, options.max_downtime, options.namespaces) == (4711, "db2", 0.5, "auto")


def test_all_mistakes_are_named_at_once_each_with_its_line() -> None:
    assert mistakes(
        """\
paralel = 2
max-total-downtime = 0
[options]
max-downtime = "soon"
help = true
[[move]]
name = "a"
target = "-oProxyCommand=x"
pid = 0
[[move]]
name = "a"
user = 3
target = "db2"
[[move]]
name = "b"
target = []
pid = 3
unit = "x.service"
"""
    ) == [
        (1, "'paralel' is not known: is it parallel?"),
        (2, "max-total-downtime: 0.0 is no time in seconds"),
        (4, "argument --max-downtime: 'soon' is no time in seconds (see migrate --help)"),
        (5, "'help' is no option of a move"),
        (8, "target: '-oProxyCommand=x' is no host: it looks like an option"),
        (9, "pid: 0 is no process id"),
        (12, "user has to be text"),
        (14, "a move has one of pid, pidfile, unit, process, user; this one has several of them"),
        (16, "target: the list is empty"),
    ]


@pytest.mark.parametrize(
    ("moves", "line", "text"),
    [
        ("[[move]]\nname='a'\npid=1\n[[move]]\nname='a'\npid=2", 5, "'a' is the name of the move in line 2 as well"),
        ("[[move]]\nname='a'\npid=1\n[[move]]\nname='b'\npid=1", 5, "pid 1 is moved by 'a' already"),
        (
            "[[move]]\nname='a'\npid=1\nafter=['bb']\n[[move]]\nname='b'\npid=2", 5,
            "after: there is no move 'bb': is it 'b'?",
        ),
        ("[[move]]\nname='a'\npid=1\nafter=['a']", 5, "after: in a circle: a after a"),
        (
            "[[move]]\nname='a'\npid=1\nafter=['b']\n[[move]]\nname='b'\npid=2\nafter=['a']", 5,
            "after: in a circle: a after b after a",
        ),
        ("[[move]]\npid=1\nafter=[1]", 4, "after: each has to be the name of a move"),
        ("[[move]]\npid=true", 3, "pid has to be a number"),
        ("[[move]]\npidfile='run/x'", 3, "pidfile: 'run/x' is no absolute path"),
        ("[[move]]\nname=''\npid=1", 3, "name: it is empty, too long, or has characters that are none"),
        ("[[move]]\npid=1\noptions={overwrite-files=true}", 4, "--overwrite-files is for --copy-files"),
        ("[[move]]\npid=1\noptions={attach=true}", 4, "'attach' is no option of a move: is it detach?"),
        ("[[move]]\npid=1\noptions={copy-files='yes'}", 4, "argument --copy-files: ignored explicit argument 'yes'"),
        ("[[move]]\npid=1\noptions={max-rounds=true}", 4, "--max-rounds takes a value, as on the command line"),
        ("move = [1]", 2, "each move has to be a table: [[move]]"),
    ],
)  # fmt: skip
def test_one_mistake(moves: str, line: int, text: str) -> None:
    ((where, what),) = mistakes(f'target = "db2"\n{moves}\n')
    assert (where, what.removesuffix(" (see migrate --help)")) == (line, text)


def test_a_plan_that_is_no_toml_has_a_line_as_well() -> None:
    ((line, text),) = mistakes("target = 'x'\n[[move]]\npid = = 3\n")
    assert line == 3
    assert text == "Invalid value"


def test_a_plan_without_moves() -> None:
    assert mistakes("") == [(0, "nothing is to be moved: it has no [[move]]")]


def test_a_move_without_a_target() -> None:
    assert mistakes("[[move]]\npid = 3\n") == [(1, "it has no target")]


def test_too_long_a_plan() -> None:
    assert mistakes("#" * (runbook.LARGEST + 1)) == [(0, f"longer than {runbook.LARGEST} bytes")]


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.sampled_from("abcd"), max_size=4), min_size=1))
def test_circles_are_found_where_there_are_some(waits: dict[str, list[str]]) -> None:
    moves = [
        Move(name, Selection("pid", at), ("x",), tuple(one for one in after if one in waits))
        for at, (name, after) in enumerate(waits.items())
    ]
    left = {move.name: set(move.after) for move in moves}
    while free := [name for name, after in left.items() if not after]:
        for name in free:
            del left[name]
        for after in left.values():
            after.difference_update(free)
    found = runbook.circles(moves)
    assert bool(found) == bool(left)
    for circle in found:
        for one, other in zip(circle, (*circle[1:], circle[0]), strict=True):
            assert other in waits[one]


@given(st.text() | st.text(alphabet="[]move.pid=1\"\n{}a,#'\\"))
def test_any_text_is_a_plan_or_has_mistakes(text: str) -> None:
    try:
        assert runbook.parse(text).moves
    except BadPlan as bad:
        assert bad.mistakes


@given(st.recursive(st.integers() | st.text() | st.booleans() | st.floats(), lambda each: st.lists(each, max_size=3)))
def test_any_value_for_a_key(value: object) -> None:
    for key in ("target", "parallel", "max-total-downtime", "keep-going", "options", "move"):
        text = f"{key} = {_toml(value)}\n"
        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            continue
        try:
            runbook.parse(text)
        except BadPlan as bad:
            assert bad.mistakes


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(char):08x}" for char in value) + '"'
    return str(value)
