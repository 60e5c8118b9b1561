"""Users and groups of a tree by number and name, and what this host makes of the same numbers and names. Looks only."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable
from pathlib import Path

from agent.descriptors import status_field
from agent.protocol import Account


def of_tasks(pids: Iterable[int]) -> tuple[Account, ...]:
    """Every user and group that these processes run as, supplementary groups too; those that have ended are left out.

    root is the same everywhere.
    """
    users: set[int] = set()
    groups: set[int] = set()
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_bytes()
        except OSError:
            continue
        users.update(_numbers(status, b"Uid"))
        groups.update(_numbers(status, b"Gid"), _numbers(status, b"Groups"))
    return (
        *(Account("user", number, user_name(number)) for number in sorted(users - {0})),
        *(Account("group", number, group_name(number)) for number in sorted(groups - {0})),
    )


def _numbers(status: bytes, field: bytes) -> list[int]:
    return [int(word) for word in status_field(status, field).split() if word.isdigit()]


def answers(asked: Iterable[Account]) -> tuple[Account, ...]:
    """For each: what the number is called here, and which number the name has here."""
    found = []
    for one in asked:
        name = user_name(one.number) if one.kind == "user" else group_name(one.number)
        found.append(Account(one.kind, one.number, name, _number(one.kind, one.name) if one.name else -1))
    return tuple(found)


def user_name(number: int) -> str:
    """What a user is called here; "" where there is none of that number."""
    try:
        return os.fsdecode(os.fsencode(pwd.getpwuid(number).pw_name))
    except (KeyError, OverflowError):
        return ""


def group_name(number: int) -> str:
    """What a group is called here; "" where there is none of that number."""
    try:
        return os.fsdecode(os.fsencode(grp.getgrgid(number).gr_name))
    except (KeyError, OverflowError):
        return ""


def _number(kind: str, name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return -1
