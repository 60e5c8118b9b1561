"""What a tree needs of the target beside files and numbers: addresses, users, limits, labels, cgroups, memory. Pure.

`questions` adds to what the target is asked; `judge` reads the answers.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator

from agent.protocol import Account, Address, Check, HostFacts, HugePages, Ice, TargetCheck, TreeFacts
from migrator import units
from migrator.obstacle import Obstacle, make
from migrator.words import bytes_text

_MISSING = {"user": "user-missing", "group": "group-missing"}
_DIFFERS = {"user": "user-differs", "group": "group-differs"}
_PROTOCOLS = {"listen": "tcp", "receive": "udp"}
_STRICT = 2
"""vm.overcommit_memory: never promise more than there is (Documentation/mm/overcommit-accounting.rst)."""
_MOST_CPUS = 1 << 16
"""No kernel can have so many (CONFIG_NR_CPUS)."""
_OPEN_FILES = "Max open files"
_RESERVE = 64 << 20
"""Bytes that are left on a disk besides."""
_FEW_THREADS = 64
"""Threads that the target needs besides: criu's own, ours, and whatever starts meanwhile."""


def questions(tree: TreeFacts, check: Check, *, unit: bool = False) -> Check:
    """The same questions, and these."""
    addresses = [
        Address(_PROTOCOLS[one.kind], one.object, "only-ipv6" in one.detail, "shared" in one.detail)
        for one in tree.peculiarities
        if one.kind in _PROTOCOLS
    ]
    addresses += [Address(f"unix {one.detail}", one.object) for one in tree.peculiarities if one.kind == "unix-name"]
    labels = {one.object for one in tree.peculiarities if one.kind == "lsm-label" and one.detail == "apparmor"}
    terminals = {int(one.object) for one in tree.peculiarities if one.kind == "pty"}
    return dataclasses.replace(
        check, accounts=tree.accounts, addresses=tuple(addresses), labels=tuple(sorted(labels)),
        terminals=tuple(sorted(terminals)), units=units.questions(tree, unit),
    )  # fmt: skip


def judge(
    here: str, source: HostFacts, there: str, target: HostFacts, tree: TreeFacts, check: TargetCheck, *,
    unit: bool = False,
) -> Iterator[Obstacle]:  # fmt: skip
    """Everything of it that the target lacks. Raises ValueError when `check` answers other questions."""
    asked = questions(tree, Check((), ()))
    if [(one.kind, one.number) for one in asked.accounts] != [(one.kind, one.number) for one in check.accounts]:
        raise ValueError("the target answered other questions than it was asked")
    if [(one.protocol, one.address) for one in asked.addresses] != [
        (one.protocol, one.address) for one in check.addresses
    ]:
        raise ValueError("the target answered other questions than it was asked")
    for address, answer in zip(asked.addresses, check.addresses, strict=True):
        yield from _of_address(there, address, answer)
    for account, found in zip(asked.accounts, check.accounts, strict=True):
        yield from _of_account(here, there, account, found)
    yield from _of_limits(there, target, tree)
    if any(one.kind == "seccomp" for one in tree.peculiarities) and not target.conditions.seccomp:
        yield make("seccomp", there, f"kernel {target.kernel}")
    if source.conditions.time_namespaces and not target.conditions.time_namespaces:
        yield make("clocks", there, f"kernel {target.kernel}")
    yield from _of_processors(there, target, tree)
    for number in check.taken_terminals:
        yield make("terminal-taken", there, f"/dev/pts/{number}", number=number)
    yield from _of_labels(here, there, target, tree, check)
    kept = units.systemd(here, tree, unit).suspended if target.systemd else ""
    yield from _of_cgroups(here, source, there, target, tree, kept)
    yield from _of_memory(here, source, there, target, tree)


def _of_address(there: str, asked: Address, answer: Address) -> Iterator[Obstacle]:
    name = f"{answer.protocol} {answer.address}"
    if answer.address.startswith("@"):
        if answer.holder:
            problem = f"{answer.holder} has this name there, and criu cannot bind it as well"
            yield make("socket-taken", there, answer.address, problem=problem, remedy="end that service there")
        return
    if not answer.owned:
        host = answer.address.rpartition(":")[0].strip("[]")
        if ":" in host:  # criu binds such a one with IP_FREEBIND, for the sake of tentative addresses
            yield make(
                "address-missing", there, name, stops=False, address=host, bits=128,
                problem="this address is not on this host: the socket is restored, and nobody reaches it",
            )  # fmt: skip
        else:
            yield make("address-missing", there, name, address=host, bits=32)
    if answer.holder and answer.listens and asked.shared and answer.shared:
        yield make(
            "address-taken", there, name, stops=False, holder=answer.holder,
            problem=f"{answer.holder} has it too, and both let others have it: they share what comes in",
        )  # fmt: skip
    elif answer.holder and answer.listens:
        yield make("address-taken", there, name, holder=answer.holder)
    elif answer.holder:
        yield make(
            "address-taken", there, name, stops=False, holder=answer.holder,
            problem=f"is the near end of a connection of {answer.holder}, which may still be there then",
        )  # fmt: skip


def _of_account(here: str, there: str, account: Account, found: Account) -> Iterator[Obstacle]:
    label = "uid" if account.kind == "user" else "gid"
    shown = f"{label} {account.number} ({account.name})" if account.name else f"{label} {account.number}"
    if found.name == account.name:
        return
    if not found.name:
        named = f"; {account.name} is {label} {found.named} there" if found.named >= 0 else ""
        remedy = ""
        if named:
            remedy = f"let {account.name} have the same number on both hosts"
        yield make(
            _MISSING[account.kind], there, shown, remedy=remedy, problem=f"nobody has this number{named}",
            number=account.number, name=shlex.quote(account.name),
        )  # fmt: skip
    else:
        was = f"it is {account.name}" if account.name else "it has no name"
        yield make(_DIFFERS[account.kind], there, shown, name=found.name, here=here, was=was, label=label)


def _of_limits(there: str, target: HostFacts, tree: TreeFacts) -> Iterator[Obstacle]:
    known = target.conditions
    theirs = {limit.name: limit.hard for limit in known.limits}
    for limit in tree.limits:
        if limit.name == _OPEN_FILES and known.nr_open and limit.hard > known.nr_open:
            yield make("limit-files", there, f"RLIMIT_NOFILE {limit.hard}", most=known.nr_open, wanted=limit.hard)
        most = theirs.get(limit.name, -1)
        if most != -1 and (limit.hard > most or limit.hard == -1):
            now = "none" if limit.hard == -1 else str(limit.hard)
            yield make("limit-lower", there, limit.name, most=most, now=now)
    threads = sum(len(task.tids) for task in tree.tasks)
    if known.threads_max and known.threads + threads + _FEW_THREADS > known.threads_max:
        yield make("limit-threads", there, f"{threads} threads", now=known.threads, most=known.threads_max)


def _of_processors(there: str, target: HostFacts, tree: TreeFacts) -> Iterator[Obstacle]:
    known = _numbers(target.conditions.cpus)
    for one in tree.peculiarities:
        if one.kind == "affinity" and known and not _numbers(one.object) <= known:
            yield make("cpus", there, f"CPU {one.object}", here=target.conditions.cpus, pid=one.pid)


def _numbers(text: str) -> set[int]:
    """Of a list as the kernel writes it: 0-3,8. What is none, or has more than any kernel can have, holds nothing."""
    found: set[int] = set()
    for first, last in re.findall(r"(?:^|,)([0-9]{1,6})(?:-([0-9]{1,6}))?(?=,|$)", text):
        found |= set(range(int(first), min(int(last or first), _MOST_CPUS) + 1))
    return found


def _of_labels(here: str, there: str, target: HostFacts, tree: TreeFacts, check: TargetCheck) -> Iterator[Obstacle]:
    seen = set()
    for one in tree.peculiarities:
        if one.kind != "lsm-label" or one.object in seen:
            continue
        seen.add(one.object)
        if one.detail not in target.conditions.lsms:
            yield make("lsm", there, one.object, module=one.detail, here=here)
        elif one.object in check.missing_labels:
            yield make("lsm-profile", there, one.object)


def _of_cgroups(
    here: str, source: HostFacts, there: str, target: HostFacts, tree: TreeFacts, unit: str
) -> Iterator[Obstacle]:
    """The limits of `unit` go along."""
    for one in tree.peculiarities:
        if one.kind == "cgroup-limits" and not (unit and one.object.endswith(f"/{unit}")):
            yield make("cgroup-limits", here, one.object, limits=one.detail, there=there)
    ours, theirs = source.conditions.cgroups, target.conditions.cgroups
    if ours and theirs and ours != theirs:
        yield make("cgroup-version", there, f"cgroups {theirs}", here=here, version=ours)


def _of_memory(here: str, source: HostFacts, there: str, target: HostFacts, tree: TreeFacts) -> Iterator[Obstacle]:
    wanted: dict[int, int] = {}
    for one in tree.peculiarities:
        if one.kind == "hugetlb":
            size, _, page = one.detail.partition(" ")
            if size.isdigit() and page.isdigit() and int(page):
                wanted[int(page)] = wanted.get(int(page), 0) + -(-int(size) // int(page))
    pools = {pages.size: pages for pages in target.conditions.huge_pages}
    for size_of_page, count in sorted(wanted.items()):
        pool = pools.get(size_of_page, HugePages(size_of_page, 0))
        if count > pool.free:
            yield make(
                "no-huge-pages", there, f"{count} pages of {bytes_text(size_of_page)}", free=pool.free,
                kilobytes=size_of_page // 1024, count=pool.total - pool.free + count,
            )  # fmt: skip
    ours, theirs = source.conditions, target.conditions
    if theirs.overcommit == _STRICT != ours.overcommit:
        yield make("overcommit", there, "vm.overcommit_memory", here=here, was=ours.overcommit)
    if ours.thp and theirs.thp and ours.thp != theirs.thp:
        yield make("thp", there, f"transparent huge pages: {theirs.thp}", here=here, was=ours.thp)


def of_ice(host: str, directory: str, size: int, ice: Ice) -> Iterator[Obstacle]:
    """What of a directory on this host stands in the way of images of that size, which are to stay there."""
    if ice.volatile:
        yield make("ice-volatile", host, directory, kind=ice.volatile)
    if ice.room < size + _RESERVE:
        problem = f"{bytes_text(size)} of images do not fit on its disk ({bytes_text(ice.room)} free)"
        remedy = f"free {bytes_text(size + _RESERVE - ice.room)} there, or name a directory on another disk"
        yield make("no-room", host, directory, problem=problem, remedy=remedy)
