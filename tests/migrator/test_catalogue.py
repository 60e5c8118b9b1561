"""migrator/catalogue.py and its rows, and that an obstacle is always one of them."""

from __future__ import annotations

import re

import pytest

from migrator import catalogue, obstacle
from migrator.kinds import Kind
from migrator.obstacle import Obstacle


def test_ids_are_unique_and_plain() -> None:
    rows = [kind for group in catalogue.GROUPS.values() for kind in group]
    assert len(rows) == len(catalogue.KINDS) > 40
    for id_ in catalogue.KINDS:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", id_)


@pytest.mark.parametrize("kind", catalogue.KINDS.values(), ids=lambda kind: kind.id)
def test_a_row_is_whole(kind: Kind) -> None:
    assert kind.title
    assert not kind.title.endswith(".")
    assert "|" not in kind.title
    assert kind.problem
    assert kind.remedy
    assert len(kind.explanation) > 60
    assert kind.explanation.endswith(".")
    assert "  " not in kind.explanation + kind.title + kind.problem + kind.remedy


def test_an_obstacle_of_no_kind_cannot_be() -> None:
    with pytest.raises(ValueError, match="no-such-kind"):
        Obstacle("no-such-kind", "db2", "x", "p", "r")
    with pytest.raises(KeyError):
        obstacle.make("no-such-kind", "db2", "x")


def test_an_obstacle_has_the_words_of_its_row_or_better_ones() -> None:
    plain = obstacle.make("criu-old", "db2", "criu 3.16", needed="3.17")
    assert (plain.problem, plain.remedy, plain.stops) == ("is too old", "install criu 3.17 or newer", True)
    better = obstacle.make("criu-old", "db2", "criu 3.16", problem="p {", remedy="r }", stops=False)
    assert (better.problem, better.remedy, better.stops) == ("p {", "r }", False)
    assert (
        obstacle.make("criu-older", "db2", "x", here="a {b}", version="5").problem == "criu is older than on a {b} (5)"
    )


def test_the_nearest_ids() -> None:
    assert catalogue.nearest("file-mod")[0] == "file-mode"
    assert "socket-taken" in catalogue.nearest("taken")
    assert catalogue.nearest("") == []
