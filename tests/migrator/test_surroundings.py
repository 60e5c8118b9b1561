"""migrator/surroundings.py: each of its obstacles provoked once, beside a target that has everything."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from agent.protocol import Account, Address, Conditions, HugePages, Limit
from migrator import surroundings
from migrator.obstacle import Obstacle
from migrator.plan import make_plan, questions
from tests.fuzz.limits import less_memory, less_time
from tests.migrator.test_plan import PLAIN, TREE, World

APP = Account("user", 1000, "app")
GROUP = Account("group", 27, "video")


def found(world: World) -> list[tuple[str, str, str, bool]]:
    """id, host, object and whether it stops, of each obstacle."""
    return [(one.id, one.host, one.object, one.stops) for one in world.plan()[1]]


def alone(world: World) -> Obstacle:
    """The one obstacle."""
    (one,) = world.plan()[1]
    assert "{" not in one.problem + one.remedy
    assert one.remedy
    return one


def as_(*accounts: Account) -> World:
    """A tree that runs as these."""
    return PLAIN.with_(tree=dataclasses.replace(TREE, accounts=accounts))


def answered(world: World, *accounts: Account) -> World:
    """The target makes this of them."""
    return world.with_(accounts=accounts)


def on_target(world: World, **changes: Any) -> World:
    """A target under other conditions."""
    return world.on_target(conditions=Conditions(**changes))


def test_a_target_that_has_everything() -> None:
    world = as_(APP, GROUP).odd("listen", "192.0.2.1:80").odd("receive", "[::]:53").odd("lsm-label", "app", "apparmor")
    world = on_target(world, lsms=("apparmor",), nr_open=4096, threads_max=9999)
    assert found(world) == []
    asked = questions(world.tree)
    assert asked.addresses == (Address("tcp", "192.0.2.1:80"), Address("udp", "[::]:53"))
    assert (asked.accounts, asked.labels) == ((APP, GROUP), ("app",))


@pytest.mark.parametrize(("address", "remedy"), [
    ("192.0.2.1:80", "there: ip address add 192.0.2.1/32 dev INTERFACE"),
    ("[2001:db8::1]:80", "there: ip address add 2001:db8::1/128 dev INTERFACE"),
])  # fmt: skip
def test_an_address_that_the_target_does_not_have(address: str, remedy: str) -> None:
    world = PLAIN.odd("listen", address).with_(addresses=(Address("tcp", address, owned=False),))
    one = alone(world)
    stops = address.startswith("192")  # criu sets IP_FREEBIND for IPv6
    assert (one.id, one.host, one.object, one.stops) == ("address-missing", "beta", f"tcp {address}", stops)
    assert one.remedy == remedy


def test_a_port_that_is_taken_stops_and_the_near_end_of_a_connection_warns() -> None:
    taken = Address("udp", "0.0.0.0:53", holder="dnsmasq (pid 7)", listens=True)
    one = alone(
        PLAIN.odd("receive", "0.0.0.0:53").with_(
            addresses=(taken,),
        )
    )
    assert (one.id, one.object, one.stops, one.problem) == (
        "address-taken",
        "udp 0.0.0.0:53",
        True,
        "dnsmasq (pid 7) has it",
    )
    sharing = dataclasses.replace(taken, shared=True)
    for manner, stops in (("", True), ("shared", False), ("only-ipv6", True), ("only-ipv6 shared", False)):
        one = alone(PLAIN.odd("receive", "0.0.0.0:53", manner).with_(addresses=(sharing,)))
        assert (one.id, one.stops) == ("address-taken", stops), manner
    assert "share what comes in" in one.problem
    near = dataclasses.replace(taken, listens=False)
    one = alone(
        PLAIN.odd("receive", "0.0.0.0:53").with_(
            addresses=(near,),
        )
    )
    assert (one.id, one.stops) == ("address-taken", False)
    assert "near end" in one.problem


def test_a_name_of_a_unix_socket_that_is_taken() -> None:
    world = PLAIN.odd("unix-name", "@app", "dgram")
    asked = Address("unix dgram", "@app")
    assert questions(world.tree).addresses == (asked,)
    assert found(world.with_(addresses=(asked,))) == []
    one = alone(world.with_(addresses=(dataclasses.replace(asked, holder="app (pid 7)", listens=True),)))
    assert (one.id, one.host, one.object, one.stops) == ("socket-taken", "beta", "@app", True)
    assert "app (pid 7)" in one.problem


@pytest.mark.parametrize(("account", "answer", "id_", "remedy", "problem"), [
    (APP, Account("user", 1000, ""), "user-missing", "there: useradd --uid 1000 app", "nobody has this number"),
    (APP, Account("user", 1000, "", 1003), "user-missing", "let app have the same number on both hosts",
     "nobody has this number; app is uid 1003 there"),
    (APP, Account("user", 1000, "www", 1003), "user-differs", "give that user the same uid on both hosts",
     "is www there, on alpha it is app"),
    (GROUP, Account("group", 27, ""), "group-missing", "there: groupadd --gid 27 video", "nobody has this number"),
    (GROUP, Account("group", 27, "sudo"), "group-differs", "give that group the same gid on both hosts",
     "is sudo there, on alpha it is video"),
    (Account("user", 5, ""), Account("user", 5, "games"), "user-differs", "give that user the same uid on both hosts",
     "is games there, on alpha it has no name"),
])  # fmt: skip
def test_users_and_groups(account: Account, answer: Account, id_: str, remedy: str, problem: str) -> None:
    one = alone(answered(as_(account), answer))
    assert (one.id, one.host, one.stops, one.remedy, one.problem) == (id_, "beta", False, remedy, problem)


def test_a_number_without_a_name_on_either_host_is_nothing() -> None:
    assert found(as_(Account("user", 61234, ""))) == []


def test_limits_of_the_kernel() -> None:
    tree = dataclasses.replace(TREE, limits=(Limit("Max open files", 1 << 20),))
    one = alone(on_target(PLAIN.with_(tree=tree), nr_open=65536))
    assert (one.id, one.stops, one.remedy) == ("limit-files", False, "there: sysctl fs.nr_open=1048576")
    assert found(on_target(PLAIN.with_(tree=tree), nr_open=1 << 20)) == []
    assert found(PLAIN.with_(tree=tree)) == []  # not known
    assert alone(on_target(PLAIN, threads_max=1000, threads=990)).id == "limit-threads"


def test_labels_of_security_modules() -> None:
    world = PLAIN.odd("lsm-label", "app", "apparmor").odd("lsm-label", "app", "apparmor")
    one = alone(on_target(world, lsms=("capability", "selinux")))
    assert (one.id, one.object, one.remedy) == ("lsm", "app", "boot the target with security=apparmor")
    one = alone(on_target(world, lsms=("apparmor",)).with_(missing_labels=("app",)))
    assert (one.id, one.stops) == ("lsm-profile", True)
    selinux = on_target(PLAIN.odd("lsm-label", "u:r:t:s0", "selinux"), lsms=("selinux",))
    assert (found(selinux), questions(selinux.tree).labels) == ([], ())


def test_filters_of_system_calls_and_clocks() -> None:
    assert alone(on_target(PLAIN.odd("seccomp", "seccomp filter"), seccomp=False)).id == "seccomp"
    assert found(on_target(PLAIN, seccomp=False)) == []
    assert found(PLAIN.odd("seccomp", "seccomp filter")) == []
    one = alone(on_target(PLAIN, time_namespaces=False))
    assert (one.id, one.stops) == ("clocks", False)
    without = PLAIN.on_source(conditions=Conditions(time_namespaces=False))
    assert found(on_target(without, time_namespaces=False)) == []


def test_cgroups() -> None:
    one = alone(PLAIN.odd("cgroup-limits", "/app.scope", "memory.max 1073741824"))
    assert (one.id, one.host, one.stops) == ("cgroup-limits", "alpha", False)
    assert "memory.max 1073741824" in one.problem
    world = on_target(PLAIN.on_source(conditions=Conditions(cgroups="v2")), cgroups="v1")
    assert alone(world).problem == "on alpha they are v2"


def test_processors() -> None:
    bound = PLAIN.odd("affinity", "2-3,7")
    assert found(on_target(bound, cpus="0-7")) == []
    assert found(on_target(bound)) == []  # nobody knows
    one = alone(on_target(bound, cpus="0-3"))
    assert (one.id, one.host, one.object, one.stops) == ("cpus", "beta", "CPU 2-3,7", False)
    assert "0-3" in one.problem
    assert "pid 100" in one.problem


def test_terminals() -> None:
    world = PLAIN.odd("pty", "3").odd("pty", "0")
    assert questions(world.tree).terminals == (0, 3)
    assert found(world) == []
    one = alone(world.with_(taken_terminals=(0,)))
    assert (one.id, one.host, one.object, one.stops) == ("terminal-taken", "beta", "/dev/pts/0", True)
    assert "pts/0" in one.remedy


def test_memory() -> None:
    world = PLAIN.odd("hugetlb", "/anon_hugepage", f"{4 << 20} {2 << 20}").odd("hugetlb", "/x", f"{1 << 20} {2 << 20}")
    one = alone(on_target(world, huge_pages=(HugePages(2 << 20, 2, 7), HugePages(1 << 30, 9))))
    assert (one.id, one.object, one.problem) == ("no-huge-pages", "3 pages of 2.0 MiB", "2 are free there")
    assert one.remedy == "there: echo 8 >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    assert found(on_target(world, huge_pages=(HugePages(2 << 20, 3),))) == []
    assert found(on_target(PLAIN, overcommit=2)) == [("overcommit", "beta", "vm.overcommit_memory", False)]
    strict = PLAIN.on_source(conditions=Conditions(overcommit=2))
    assert found(on_target(strict, overcommit=2)) == []
    world = on_target(PLAIN.on_source(conditions=Conditions(thp="always")), thp="never")
    assert alone(world).remedy == "there: echo always >/sys/kernel/mm/transparent_hugepage/enabled"


def test_answers_to_other_questions_are_refused() -> None:
    world = as_(APP).odd("listen", "0.0.0.0:80")
    good = world.checked()
    for spoilt in (
        dataclasses.replace(good, accounts=()), dataclasses.replace(good, addresses=()),
        dataclasses.replace(good, accounts=(GROUP,)),
        dataclasses.replace(good, addresses=(Address("udp", "0.0.0.0:80"),)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="other questions"):
            make_plan(world.source, world.target, world.tree, spoilt, world.wishes)


@pytest.mark.parametrize(("here", "there", "said"), [
    (4096, 4096, None), (4096, 8192, None), (8192, 4096, "is 4096 at most there, and 8192 here"), (8192, -1, None),
    (-1, 4096, "is 4096 at most there, and none here"), (-1, -1, None),
])  # fmt: skip
def test_a_limit_that_the_target_cannot_give(here: int, there: int, said: str | None) -> None:
    world = PLAIN.with_(tree=dataclasses.replace(TREE, limits=(Limit("Max locked memory", here),)))
    world = on_target(world, limits=(Limit("Max locked memory", there),))
    _, obstacles = world.plan()
    assert [(one.id, one.object, one.stops) for one in obstacles] == (
        [("limit-lower", "Max locked memory", False)] if said else []
    )
    assert all(said and said in one.problem for one in obstacles)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,8", {0, 1, 2, 3, 8}), ("7", {7}), ("", set()), ("x", set()), ("3-", set()), ("²", set()), ("5-2", set())],
)
def test_lists_of_processors(text: str, numbers: set[int]) -> None:
    assert surroundings._numbers(text) == numbers


def test_a_target_with_more_processors_than_there_can_be_costs_nothing() -> None:
    with less_memory(), less_time():
        assert surroundings._numbers("0-99999999999999") == set()
        assert max(surroundings._numbers("0-999999")) == 1 << 16
