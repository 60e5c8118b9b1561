"""What becomes of a tree's terminal: an obstacle, or criu's options that hand it over."""

from __future__ import annotations

import pytest

from agent.protocol import CriuOptions, Peculiarity, TaskFacts, Terminal, TreeFacts
from migrator import terminals

SHELL = TaskFacts(4000, 1, 4000, 4000, (4000,), "bash", "S", 1, 0)
ONE = Peculiarity("terminal", 4000, "/dev/pts/3", "the terminal 136:3 of bash (pid 4000)")
OTHER = Peculiarity("terminal", 4000, "/dev/tty1", "the console 4:1 of bash (pid 4000)")
KEYS = ("tty[500:5]", "tty[8803:1a]")


def tree(*oddities: Peculiarity) -> TreeFacts:
    """A shell."""
    held = (Terminal("/dev/pts/3", KEYS),) if oddities else ()
    return TreeFacts(4000, (SHELL,), (), oddities, 1 << 20, terminals=held)


@pytest.mark.parametrize(("oddities", "wish", "ids"), [
    ((), "", []),
    ((ONE,), "", ["terminal"]),
    ((ONE, OTHER), "", ["terminal", "terminal"]),
    ((ONE,), "attach", []),
    ((ONE,), "detach", []),
    ((), "attach", ["no-terminal"]),
    ((), "detach", ["no-terminal"]),
    ((ONE, OTHER), "detach", ["terminals"]),
])  # fmt: skip
def test_obstacles(oddities: tuple[Peculiarity, ...], wish: str, ids: list[str]) -> None:
    found = terminals.obstacles("alpha", tree(*oddities), wish)
    assert [one.id for one in found] == ids


def test_the_obstacle_names_both_ways_and_who_is_attached() -> None:
    (found,) = terminals.obstacles("alpha", tree(ONE), "")
    assert "--attach" in found.remedy
    assert "--detach" in found.remedy
    assert ONE.detail in found.problem


def test_the_options_that_hand_it_over() -> None:
    given = CriuOptions(for_dump=("--timeout=9",), for_restore=("--weak-sysctls",))
    options = terminals.options(tree(ONE), "attach", given)
    assert options.shell_job
    assert options.for_dump == ("--external", KEYS[0], "--external", KEYS[1], "--timeout=9")
    assert options.for_restore == (
        "--inherit-fd", f"fd[3]:{KEYS[0]}", "--inherit-fd", f"fd[4]:{KEYS[1]}", "--weak-sysctls",
    )  # fmt: skip


def test_without_a_wish_nothing_is_handed_over() -> None:
    assert terminals.options(tree(ONE), "", CriuOptions()) == CriuOptions()


def test_its_own_pseudo_terminals() -> None:
    assert terminals.own(tree(Peculiarity("pty", 4000, "12"), ONE, Peculiarity("pty", 4000, "7"))) == (7, 12)
