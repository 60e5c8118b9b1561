"""Namespaces that criu carries with a tree: those of System V IPC and of the host's name, where it has one to itself.

Others need more than their content: mounts, addresses and users of the target. One that a process outside the tree is
in as well would become two, and what is shared in it with that process, two copies.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from agent.descriptors import namespace, same_namespace

KINDS = ("ipc", "uts")


def of_tree(pids: Iterable[int]) -> tuple[str, ...]:
    """The kinds of namespaces that the processes of a tree have to themselves."""
    tree = set(pids)
    own = {}
    for kind in KINDS:
        places = {namespace(pid, kind) for pid in tree} - {""}
        if len(places) == 1 and not any(same_namespace(pid, kind) for pid in tree):
            own[kind] = places.pop()
    others = {int(name) for name in os.listdir("/proc") if name.isdigit()} - tree if own else set()
    return tuple(kind for kind, place in own.items() if not any(namespace(pid, kind) == place for pid in others))
