"""A server moves with its address, and a client on a third host goes on over the connection that it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.conftest import Run, Started
from tests.live.lab_host import LabHost, until

pytestmark = pytest.mark.backends("netns")

LOG = "/root/client.log"
CLIENT = "ip netns exec client python3 /root/programs/numbering_client.py"
BEFORE = [
    ("commit", "kill-source-criu"), ("commit", "kill-source-agent"), ("freeze", "kill-restoring-criu"),
    ("restore", "kill-target-agent"), ("restore", "cut-link"), ("freeze", "interrupt"),
]  # fmt: skip
"""A phase, and what is done as it begins: COMMIT is not written yet, and the tree is held, or about to be."""
BEHIND = [("resume", "kill-target-criu"), ("resume", "kill-target-agent"), ("resume", "cut-link")]
"""COMMIT is written: the target goes forward, and restores once more where it has to."""


@pytest.fixture
def third_host(lab: tuple[LabHost, LabHost]) -> Iterator[None]:
    """A namespace `client` on the link between the hosts: it reaches alpha by `svc0` there, and beta by `eth0`.

    It has the same hardware address each time: beta remembers that of the test before.
    """
    alpha, beta = lab
    alpha.run(
        "ip link add svc0 link eth0 type macvlan mode bridge; ip link set svc0 up; "
        "ip address add 10.78.0.11/24 dev svc0; ip address add fd78::11/64 dev svc0 nodad; "
        "sysctl -qw net.ipv4.conf.svc0.promote_secondaries=1; "
        "ip netns add client; "
        "ip link add cl0 link eth0 address 02:00:0a:4e:00:3c netns client type macvlan mode bridge; "
        "ip -n client link set lo up; ip -n client link set cl0 up; "
        "ip -n client address add 10.78.0.60/24 dev cl0; ip -n client address add fd78::60/64 dev cl0 nodad"
    )
    beta.run("ip address add 10.78.0.12/24 dev eth0; ip address add fd78::12/64 dev eth0 nodad")
    yield
    # a connection that is still being closed keeps the namespace: its link would go on having the client's addresses
    alpha.run("ip -n client link delete cl0; ip netns delete client; ip link delete svc0")
    beta.run("ip address delete 10.78.0.12/24 dev eth0; ip address delete fd78::12/64 dev eth0")


@dataclasses.dataclass
class Service:
    """A server on an address of its own, and its client."""

    alpha: LabHost
    address: str
    pid: int

    def lines(self) -> list[list[str]]:
        """What the client has written down, the line that it is at left out."""
        return [line.split() for line in self.alpha.run(f"cat {LOG}").out.split("\n")[:-1]]

    def answers(self) -> list[int]:
        """The numbers that came back on the one connection, in the order in which they did."""
        return [int(line[0]) for line in self.lines() if line[0].isdigit()]

    def goes_on(self) -> None:
        """All answers once and in order, none for an error, and a hundred more of them; every new client served."""
        first = len(self.answers())
        until(lambda: len(self.answers()) >= first + 100, f"no answers any more: {self.lines()[-3:]}", 120)
        lines, answers = self.lines(), self.answers()
        assert [line for line in lines if line[0] == "error"] == []
        assert answers == list(range(1, len(answers) + 1))
        new = [line for line in lines if line[0] == "new"]
        assert new
        assert [line for line in new if line[2:] != ["served"]] == []


@pytest.fixture(params=["10.78.0.50/24", "fd78::50/64"], ids=["ipv4", "ipv6"])
def service(
    request: pytest.FixtureRequest,
    third_host: None,
    nothing_behind: None,
    lab: tuple[LabHost, LabHost],
    started: Started,
) -> Iterator[Service]:
    """The server on alpha, with a client that has its first answers."""
    alpha, beta = lab
    where = str(request.param)
    address = where.split("/")[0]
    alpha.run(f"ip address add {where} dev svc0 {'nodad' if ':' in where else ''}; rm -f {LOG}")
    pid = started.launch("python3", "/root/programs/echo_server.py", "--address", address, "--mib", "64")
    until(lambda: alpha.run("ss -Hltn sport = :7000").out != "", "the server does not listen")
    client = alpha.launch([*CLIENT.split(), "--address", address, "--log", LOG, "--new", "3"])
    one = Service(alpha, address, pid)
    until(lambda: alpha.run(f"wc -l {LOG}", check=False).out > "2", "the client gets no answer")
    yield one
    alpha.run(f"pkill -KILL -s {client}", check=False)
    for host, interface in ((alpha, "svc0"), (beta, "eth0")):
        host.run(f"ip address delete {where} dev {interface}", check=False)


def has(host: LabHost, address: str) -> bool:
    """Whether this host has the address now."""
    return f" {address}/" in host.run("ip -o address").out


def test_its_clients_do_not_notice(
    service: Service, both_ways: None, alpha: LabHost, beta: LabHost, migrate: Any
) -> None:
    """To and fro, twice: the one connection goes on, and new clients find the server wherever it is."""
    for source, target in ((alpha, beta), (beta, alpha)) * 2:
        run = migrate("--copy-files", "--move-address", service.address, str(service.pid), target.name, on=source)
        assert run.status == 0, run.explain()
        assert (has(source, service.address), has(target, service.address)) == (False, True)
        service.goes_on()
        assert "table" not in source.run("nft list tables").out + target.run("nft list tables").out


def still_on_source(service: Service, alpha: LabHost, beta: LabHost) -> None:
    """The connection was never broken, and nothing is left of what should have moved it."""
    service.goes_on()
    assert (has(alpha, service.address), has(beta, service.address)) == (True, False)
    assert "table" not in alpha.run("nft list tables").out + beta.run("nft list tables").out


def test_rehearsed(service: Service, alpha: LabHost, beta: LabHost, migrate: Any) -> None:
    """The target had the address for a moment: the neighbours learn where it is."""
    run = migrate("rehearse", "--copy-files", "--move-address", service.address, str(service.pid), "beta")
    assert run.status == 0, run.explain()
    still_on_source(service, alpha, beta)


@pytest.mark.parametrize(("at", "harm"), BEFORE)
@pytest.mark.parametrize("service", ["10.78.0.50/24"], ids=["ipv4"], indirect=True)
def test_before_commit_it_goes_on_at_the_source(
    service: Service, alpha: LabHost, beta: LabHost, sabotage: Any, at: str, harm: str
) -> None:
    """Whatever dies. A criu that is killed in its hold leaves the sockets in repair mode, and its lock: both are put
    right before a task runs on."""
    run = sabotage(service.pid, at, harm, options=f"--copy-files --move-address {service.address}")
    assert run.status != 0, run.explain()
    until(lambda: not has(beta, service.address), "the target keeps the address", 60)
    still_on_source(service, alpha, beta)


@pytest.mark.parametrize(("at", "harm"), BEHIND)
@pytest.mark.parametrize("service", ["10.78.0.50/24"], ids=["ipv4"], indirect=True)
def test_behind_commit_it_goes_on_at_the_target(
    service: Service, alpha: LabHost, beta: LabHost, sabotage: Any, at: str, harm: str
) -> None:
    run = sabotage(service.pid, at, harm, options=f"--copy-files --move-address {service.address}")
    assert run.status in (0, 3), run.explain()
    service.goes_on()
    assert (has(alpha, service.address), has(beta, service.address)) == (False, True)


WRONG = [
    ("10.78.0.99", "move-not-here"),
    ("10.78.0.50@eth0:eth0", "move-not-here"),
    ("10.78.0.50@svc0:eth7", "move-interface"),
    ("10.78.0.12", "move-not-here"),
    ("10.77.0.11", "move-session"),
]


@pytest.mark.parametrize("service", ["10.78.0.50/24"], ids=["ipv4"], indirect=True)
def test_what_can_not_move_is_named_at_preflight(service: Service, alpha: LabHost, beta: LabHost, migrate: Any) -> None:
    for word, expected in WRONG:
        assert expected in obstacles(migrate("check", "--move-address", word, str(service.pid), "beta")), word
    alpha.run("sysctl -qw net.ipv4.conf.svc0.promote_secondaries=0; ip address add 10.78.0.51/24 dev svc0")
    assert "move-primary" in obstacles(migrate("check", "--move-address", "10.78.0.11", str(service.pid), "beta"))
    alpha.run("ip address delete 10.78.0.51/24 dev svc0")
    beta.run("ip address add 10.78.0.50/32 dev lo")
    assert "move-there" in obstacles(migrate("check", "--move-address", "10.78.0.50", str(service.pid), "beta"))
    beta.run("ip address delete 10.78.0.50/32 dev lo")
    assert "tcp-established" in obstacles(migrate("check", str(service.pid), "beta"))
    still_on_source(service, alpha, beta)


def obstacles(run: Run) -> set[str]:
    """The ids of what stands in the way."""
    assert run.status != 0, run.explain()
    return {one["id"] for one in run.of("obstacle") if one["stops"]}
