"""Addresses that move with a tree: what the operator's word means on either host, and what is in the way. Pure.

Refuses to do anything about them: the agents' `floating` does, each on its own host.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterable, Iterator

from agent.protocol import Floating, Heard, HostAddress, HostFacts, Peculiarity, TargetCheck
from migrator.obstacle import Obstacle, make

_WORD = re.compile(r"(?P<address>[0-9A-Fa-f:.]+)(/(?P<prefix>\d{1,3}))?(@(?P<here>[^@:/\s]+)(:(?P<there>[^@:/\s]+))?)?")
_MAPPED = "::ffff:"
_BOUND = ("listen", "receive", "tcp-established")
WAITS = "waits to be accepted"
"""Detail of a connection that criu can't take along wherever its address goes."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One `--move-address`."""

    address: str
    prefix: int = 0
    """0: as it is on the source."""
    here: str = ""
    """Interface on the source; "": wherever it is."""
    there: str = ""
    """Interface on the target; "": where the same subnet is."""


AUTO = Wanted("auto")
"""Those that the tree's sockets are bound to, the host's own ones left out."""


@dataclasses.dataclass(frozen=True)
class Move:
    """What moves, as it is on the source and as it will be on the target."""

    here: tuple[Floating, ...] = ()
    there: tuple[Floating, ...] = ()

    @property
    def addresses(self) -> frozenset[str]:
        """The addresses themselves."""
        return frozenset(one.address for one in self.here)


NOTHING = Move()


def parse(word: str) -> Wanted:
    """ADDR[/LEN][@IFACE[:DSTIFACE]], or `auto`. Raises ValueError with what is wrong."""
    if word == AUTO.address:
        return AUTO
    found = _WORD.fullmatch(word)
    try:
        address = ipaddress.ip_address(found["address"]) if found else None
    except ValueError:
        address = None
    if found is None or address is None:
        raise ValueError(f"{word!r} is no address: ADDR[/LEN][@IFACE[:DSTIFACE]], like 192.0.2.7/24@eth0:ens3, or auto")
    if _stays(str(address)):
        raise ValueError(f"{address} belongs to each host by itself, and can't move")
    prefix = int(found["prefix"] or 0)
    if found["prefix"] and not 0 < prefix <= address.max_prefixlen:
        raise ValueError(f"{word!r}: no prefix of {address} has {prefix} bits")
    return Wanted(str(address), prefix, found["here"] or "", found["there"] or found["here"] or "")


def chosen(
    source: HostFacts, target: HostFacts, wanted: Iterable[Wanted], oddities: Iterable[Peculiarity]
) -> tuple[Wanted, ...]:
    """What was asked for, with addresses in `auto`'s place: where a socket listens, receives or is connected."""
    asked = tuple(dict.fromkeys(wanted))
    named = {one.address for one in asked}
    if AUTO.address not in named:
        return asked
    used = {host_of(one.object.split(" -> ")[0]) for one in oddities if one.kind in _BOUND}
    besides = _own(source) | set(source.session + target.session) | named
    found = (one for one in source.addresses if one.address in used - besides and not _stays(one.address))
    return (*(one for one in asked if one != AUTO), *(Wanted(one.address, here=one.interface) for one in found))


def _own(source: HostFacts) -> set[str]:
    """What is the host's: what it was lent, and the oldest one of each interface and family. IPv6 lists the youngest
    first."""
    first: dict[str, list[str]] = {}
    last: dict[str, list[str]] = {}
    for one in source.addresses:
        if one.address and not _stays(one.address):
            (last if ":" in one.address else first).setdefault(one.interface, []).append(one.address)
    lent = {one.address for one in source.addresses if one.lent}
    return lent | {all_of[0] for all_of in first.values()} | {all_of[-1] for all_of in last.values()}


def _stays(address: str) -> bool:
    """Whether it belongs to each host by itself."""
    one = ipaddress.ip_address(address)
    return one.is_loopback or one.is_link_local or one.is_multicast or one.is_unspecified


def notes(wanted: Iterable[Wanted], move: Move) -> Iterator[str]:
    """What `auto` has come to."""
    if AUTO in wanted:
        yield f"--move-address auto: {', '.join(one.address for one in move.here) or 'no address'} moves along"


def resolve(
    here: str, source: HostFacts, there: str, target: HostFacts, wanted: Iterable[Wanted]
) -> tuple[Move, tuple[Obstacle, ...]]:
    """What moves from where to where, and everything that is in the way of it. `wanted` as it was `chosen`."""
    asked = tuple(dict.fromkeys(wanted))
    obstacles = list(_of_hosts(here, source, there, target)) if asked else []
    starts, ends = [], []
    for one in asked:
        found = [each for each in source.addresses if each.address == one.address]
        found = [each for each in found if one.here in ("", each.interface)]
        if not found:
            where = f" on {one.here}" if one.here else ""
            obstacles.append(make("move-not-here", here, one.address, where=where))
            continue
        interface = one.there or _by_subnet(one.address, target)
        prefix = one.prefix or found[0].prefix
        starts.append(Floating(one.address, found[0].prefix, found[0].interface))
        ends.append(Floating(one.address, prefix, interface))
        obstacles += _of_one(here, source, found[0])
        if one.address in source.session or one.address in target.session:
            obstacles.append(make("move-session", here, one.address))
        if any(each.address == one.address for each in target.addresses):
            obstacles.append(make("move-there", there, one.address))
        elif interface not in {each.interface for each in target.addresses}:
            problem = f"it has no interface {interface}" if interface else ""
            obstacles.append(
                make(
                    "move-interface",
                    there,
                    one.address,
                    problem=problem,
                    address=one.address,
                    here=starts[-1].interface,
                )
            )
    return Move(tuple(starts), tuple(ends)), tuple(obstacles)


def elsewhere(there: str, source: HostFacts, heard: Iterable[Heard]) -> Iterator[Obstacle]:
    """Each address that a third host says is its: whoever is heard, and is no interface of the source."""
    for one in heard:
        if one.hardware not in source.hardware:
            yield make("move-elsewhere", there, one.address, hardware=one.hardware)


def _of_hosts(here: str, source: HostFacts, there: str, target: HostFacts) -> Iterator[Obstacle]:
    for name, host in ((here, source), (there, target)):
        if not host.net_admin:
            yield make("no-net-admin", name, f"uid {host.uid}")
        if not (host.nft or host.iptables):
            yield make("move-program", name, "nft", package="nftables")
        if not host.addresses:
            yield make("move-program", name, "ip", package="iproute2")


def _of_one(here: str, source: HostFacts, found: HostAddress) -> Iterator[Obstacle]:
    """The kernel takes a subnet's secondary addresses away together with the first one (promote_secondaries)."""
    if found.secondary:
        return
    subnet = _network(found)
    others = [each.address for each in source.addresses if each.secondary and each.interface == found.interface]
    if others := [each for each in others if ipaddress.ip_address(each) in subnet]:
        yield make("move-primary", here, found.address, others=", ".join(others), interface=found.interface)


def _network(one: HostAddress) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(f"{one.address}/{one.prefix}", strict=False)


def _by_subnet(address: str, target: HostFacts) -> str:
    """The one interface of the target that is in the address's subnet; "" where there is none, or more than one."""
    wanted = ipaddress.ip_address(address)
    fitting = {
        one.interface for one in target.addresses
        if one.address and not ipaddress.ip_address(one.address).is_link_local and wanted in _network(one)
    }  # fmt: skip
    return fitting.pop() if len(fitting) == 1 else ""


def host_of(endpoint: str) -> str:
    """The host in `192.0.2.1:80` or `[2001:db8::1]:80`; an IPv4 address inside IPv6 as the IPv4 one."""
    host = endpoint.rpartition(":")[0].strip("[]")
    return host[len(_MAPPED) :] if host.startswith(_MAPPED) and "." in host else host


def go_along(one: Peculiarity, move: Move) -> bool:
    """Whether it is a connection that moves, its near end being at an address that does."""
    near = host_of(one.object.split(" -> ")[0])
    return one.kind == "tcp-established" and one.detail != WAITS and near in move.addresses


def owned_then(check: TargetCheck, move: Move) -> TargetCheck:
    """The target's answers as they will be once it has the addresses."""
    addresses = tuple(
        dataclasses.replace(one, owned=one.owned or host_of(one.address) in move.addresses) for one in check.addresses
    )
    return dataclasses.replace(check, addresses=addresses)
