"""A server's own address, and its clients on a third host: what is set up for them, and what they have seen."""

from __future__ import annotations

import dataclasses

from tests.live.lab_host import LabHost, until

V4, V6 = "10.78.0.50/24", "fd78::50/64"
LOG = "/root/client.log"
CLIENT = "ip netns exec client"
"""Before a command on alpha: it runs on the third host."""
PROGRAM = "python3 /root/programs/numbering_client.py"


def raise_third_host(alpha: LabHost, beta: LabHost) -> None:
    """A namespace `client` on the link between the hosts: it reaches alpha by `svc0` there, and beta by `eth0`.

    Both links have the same hardware addresses each time: beta remembers those of the time before.
    """
    alpha.run(
        "ip link add svc0 link eth0 address 02:00:0a:4e:00:0b type macvlan mode bridge; ip link set svc0 up; "
        "ip address add 10.78.0.11/24 dev svc0; ip address add fd78::11/64 dev svc0 nodad; "
        "sysctl -qw net.ipv4.conf.svc0.promote_secondaries=1; "
        "ip netns add client; "
        "ip link add cl0 link eth0 address 02:00:0a:4e:00:3c netns client type macvlan mode bridge; "
        "ip -n client link set lo up; ip -n client link set cl0 up; "
        "ip -n client address add 10.78.0.60/24 dev cl0; ip -n client address add fd78::60/64 dev cl0 nodad"
    )
    beta.run("ip address add 10.78.0.12/24 dev eth0; ip address add fd78::12/64 dev eth0 nodad")


def remove_third_host(alpha: LabHost, beta: LabHost) -> None:
    """Its link first: a connection that is still being closed keeps the namespace, and its addresses."""
    alpha.run("ip -n client link delete cl0; ip netns delete client; ip link delete svc0; umount /run/netns")
    beta.run("ip address delete 10.78.0.12/24 dev eth0; ip address delete fd78::12/64 dev eth0")
    # alpha answers for all its addresses on svc0, too: beta would go on sending to it what is for eth0
    beta.run("ip neigh flush dev eth0")


def add(alpha: LabHost, where: str) -> str:
    """Give alpha an address, ADDR/LEN, for a server; the address alone."""
    alpha.run(f"ip address add {where} dev svc0 {'nodad' if ':' in where else ''}")
    return where.split("/")[0]


def delete(alpha: LabHost, beta: LabHost, where: str) -> None:
    """The address is on neither host any more."""
    for host, interface in ((alpha, "svc0"), (beta, "eth0")):
        host.run(f"ip address delete {where} dev {interface}", check=False)


def has(host: LabHost, address: str) -> bool:
    """Whether this host has the address now."""
    return f" {address}/" in host.run("ip -o address").out


@dataclasses.dataclass
class Clients:
    """One that numbers its messages and keeps its one connection, and a new one beside it for every `new` of them."""

    host: LabHost
    """Where their log is."""
    session: int
    new: int = 0

    @classmethod
    def of(cls, alpha: LabHost, address: str, *, new: int) -> Clients:
        """Start them, and wait for the first answers."""
        alpha.run(f"rm -f {LOG}")
        words = f"{CLIENT} {PROGRAM} --address {address} --log {LOG} --new {new}"
        one = cls(alpha, alpha.launch(words.split()), new)
        one.begin()
        return one

    def begin(self) -> None:
        """Wait for the first answers."""
        until(lambda: len(self.answers()) > 2, "the client gets no answer")

    def end(self) -> None:
        """No client any more."""
        self.host.run(f"pkill -KILL -s {self.session}", check=False)

    def lines(self) -> list[list[str]]:
        """What they have written down, the line that they are at left out."""
        return [line.split() for line in self.host.run(f"cat {LOG}", check=False).out.split("\n")[:-1]]

    def answers(self) -> list[tuple[int, int]]:
        """Number and time, in ns, of what came back on the one connection, in the order in which it did."""
        return [(int(line[0]), int(line[1])) for line in self.lines() if line[0].isdigit()]

    def errors(self) -> list[list[str]]:
        """How the one connection has ended."""
        return [line for line in self.lines() if line[0] == "error"]

    def go_on(self, more: int = 100) -> None:
        """All answers once and in order, none for an error, and so many more of them; every new client served."""
        first = len(self.answers())
        until(lambda: len(self.answers()) >= first + more, f"no answers any more: {self.lines()[-3:]}", 120)
        lines, numbers = self.lines(), [number for number, _ in self.answers()]
        assert self.errors() == []
        assert numbers == list(range(1, len(numbers) + 1))
        new = [line for line in lines if line[0] == "new"]
        assert bool(new) == bool(self.new)
        assert [line for line in new if line[2:] != ["served"]] == []

    def pause(self, since: int) -> float:
        """Seconds of the longest wait for an answer, behind the first `since` of them."""
        times = [when for _, when in self.answers()[since:]]
        return max(later - earlier for earlier, later in zip(times, times[1:], strict=False)) / 1e9
