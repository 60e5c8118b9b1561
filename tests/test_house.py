"""The rules of the house, kept by reading the source: which way imports go, whose the doors are, how long a room is."""

from __future__ import annotations

import ast
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator import catalogue

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path for package in ("agent", "migrator") for path in (ROOT / package).rglob("*.py"))
LONGEST = 400
"""Lines of a module; beyond it, it has two owners."""
TABLES = {"agent/protocol.py"}
"""Data that is read as one table, however long it gets."""
DOORS = {
    "asyncssh": {"migrator/transport.py"},
    "psutil": {"migrator/selection.py"},
    "tqdm": {"migrator/progress.py"},
    "zstandard": {"migrator/packing.py"},
    "matplotlib": {"migrator/picture.py"},
    "compression": {"agent/zstd.py"},  # the standard library's, from 3.14 on
}
"""Third-party package -> the one module that may import it."""
SHARED = {"agent", "agent.protocol", "agent.wire"}
"""What the migrator may import of the agent."""
PRINTERS = {"migrator/cli.py"}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "core", "manager", "base", "misc", "lib", "tools"}


def parse(source: str, **options: Any) -> ast.Module:
    """`ast.parse` without a garbage collection inside it, whose finalizers trip CPython 3.11 (its issue 106905)."""
    gc.disable()
    try:
        tree: ast.Module = ast.parse(source, **options)
        return tree
    finally:
        gc.enable()


def name(path: Path) -> str:
    """A module's path as people say it."""
    return path.relative_to(ROOT).as_posix()


def imports(source: str) -> Iterator[str]:
    """Every module that a source imports, late and conditional imports as well, `from a import b` as a and a.b."""
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which way an import goes"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def modules_of_ours() -> set[str]:
    """Dotted names of all our modules and packages."""
    names = {name(path).removesuffix(".py").replace("/", ".") for path in ROOMS}
    return {each.removesuffix(".__init__") for each in names}


OURS = modules_of_ours()


def every_room() -> list[object]:
    """The rooms as parameters."""
    return [pytest.param(path, id=name(path)) for path in ROOMS]


def breaches(path: str, source: str) -> list[str]:
    """What this source imports against the rules, in words."""
    found = []
    for imported in sorted(set(imports(source))):
        top = imported.split(".")[0]
        if path.startswith("agent/"):
            if top == "migrator":
                found.append(f"the agent imports {imported}")
            elif top != "agent" and top not in sys.stdlib_module_names and path not in DOORS.get(top, ()):
                found.append(f"the agent imports {imported}, which a target does not have")
        elif top == "agent" and imported in OURS and imported not in SHARED:
            found.append(f"the migrator imports {imported}")
        if top not in ("agent", "migrator", *sys.stdlib_module_names) and path not in DOORS.get(top, ()):
            found.append(f"{imported} is imported beside its door")
    return found


@pytest.mark.parametrize("path", every_room())
def test_imports_go_one_way_and_through_their_doors(path: Path) -> None:
    assert breaches(name(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("agent/source.py", "import migrator.errors"),
        ("agent/source.py", "def f():\n    from migrator import errors"),
        ("agent/target.py", "import psutil"),
        ("agent/target.py", "import asyncssh"),
        ("migrator/peer.py", "from agent import criu"),
        ("migrator/peer.py", "import agent.criu"),
        ("migrator/cli.py", "from tqdm import tqdm"),
        ("migrator/cli.py", "import asyncssh"),
        ("migrator/cli.py", "import numpy"),
    ],
)
def test_a_breach_is_seen(path: str, source: str) -> None:
    assert breaches(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("migrator/peer.py", "from agent import protocol, wire"),
        ("migrator/peer.py", "from agent.protocol import VERSION"),
        ("migrator/progress.py", "from tqdm import tqdm"),
        ("agent/server.py", "from agent import criu\nimport json"),
    ],
)
def test_what_is_allowed_is_not_seen_as_a_breach(path: str, source: str) -> None:
    assert breaches(path, source) == []


@pytest.mark.parametrize("path", every_room())
def test_no_room_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST or name(path) in TABLES


@pytest.mark.parametrize("path", every_room())
def test_every_room_says_what_it_owns(path: Path) -> None:
    assert ast.get_docstring(parse(path.read_text()))


def test_names_say_what_a_room_is_for() -> None:
    named = {
        path.stem.lower()
        for folder in ("agent", "migrator", "vagrant", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert named
    assert not named & FORBIDDEN_NAMES


@pytest.mark.parametrize("path", every_room())
def test_only_the_command_line_speaks(path: Path) -> None:
    calls = [node.func for node in ast.walk(parse(path.read_text())) if isinstance(node, ast.Call)]
    prints = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    assert not prints or name(path) in PRINTERS


@pytest.mark.parametrize("path", every_room())
def test_no_shell_strings_and_no_code_from_outside(path: Path) -> None:
    for node in ast.walk(parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads")
            assert called not in ("asyncio.create_subprocess_shell", "subprocess.getoutput")
            assert not any(word.arg == "shell" for word in node.keywords), ast.unparse(node)


@pytest.mark.parametrize("path", every_room())
def test_every_public_function_says_what_it_does(path: Path) -> None:
    bare = [
        node.name
        for node in parse(path.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert bare == []


def test_the_readme_lists_every_obstacle() -> None:
    tables = (ROOT / "README.md").read_text().split("about each of these:\n\n")[1].split("\n\n## ")[0]
    assert tables + "\n" == catalogue.readme_tables()  # what it should be: print(catalogue.readme_tables())


def test_obstacles_are_only_made_from_rows_and_no_row_is_idle() -> None:
    made: set[str] = set()
    for room in (ROOT / "migrator").glob("*.py"):
        if room.stem == "catalogue" or room.stem.startswith("kinds"):
            continue
        tree = parse(room.read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert room.stem == "obstacle" or "Obstacle" not in [ast.unparse(call.func) for call in calls], room
        made |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    assert set(catalogue.KINDS) <= made


def test_no_work_is_left_for_later() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    for path in ROOMS:
        text = path.read_text()
        assert not [mark for mark in marks if mark in text], name(path)


def test_the_agent_runs_on_python_3_9() -> None:
    for path in ROOMS:
        if name(path).startswith("agent/"):
            source = path.read_text()
            parse(source, feature_version=(3, 9))
            assert "from __future__ import annotations" in source or not parse(source).body[1:], name(path)
            for node in ast.walk(parse(source)):
                written = ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Name)) else ""
                assert written not in ("asyncio.timeout", "asyncio.TaskGroup", "ExceptionGroup", "itertools.pairwise")
