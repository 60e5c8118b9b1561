"""agent/accounts.py: users and groups of real processes, by number and name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import accounts
from agent.protocol import Account
from tests.children import child


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_every_number_that_a_process_runs_as(tmp_path: Path) -> None:
    source = "os.setgroups([61234, 0])\nos.setgid(61235)\nready()"
    with child(source, tmp_path) as pid:
        assert accounts.of_tasks([pid, 4_000_000]) == (Account("group", 61234, ""), Account("group", 61235, ""))


def test_root_is_the_same_everywhere() -> None:
    numbers = {one.number for one in accounts.of_tasks([os.getpid()])}
    assert 0 not in numbers
    assert os.getuid() in numbers | {0}


def test_a_number_and_a_name_are_looked_up_each_for_itself() -> None:
    asked = (
        Account("user", 0, "root"), Account("user", 0, "no such user"), Account("user", 61234, "root"),
        Account("group", 0, "root"), Account("group", 61234, ""), Account("user", 2**32 - 1, "x\0y"),
    )  # fmt: skip
    assert accounts.answers(asked) == (
        Account("user", 0, "root", 0), Account("user", 0, "root", -1), Account("user", 61234, "", 0),
        Account("group", 0, "root", 0), Account("group", 61234, "", -1), Account("user", 2**32 - 1, "", -1),
    )  # fmt: skip
