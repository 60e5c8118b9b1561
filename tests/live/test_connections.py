"""A server moves with its address, and a client on a third host goes on over the connection that it has."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live import serving
from tests.live.conftest import Run, Started
from tests.live.lab_host import LabHost, until
from tests.live.serving import V4, V6, Clients, has

pytestmark = pytest.mark.backends("netns")

SERVER = ("python3", "/root/programs/echo_server.py")
BEFORE = [
    ("commit", "kill-source-criu"), ("commit", "kill-source-agent"), ("freeze", "kill-restoring-criu"),
    ("restore", "kill-target-agent"), ("restore", "cut-link"), ("freeze", "interrupt"),
]  # fmt: skip
"""A phase, and what is done as it begins: COMMIT is not written yet, and the tree is held, or about to be."""
BEHIND = [("resume", "kill-target-criu"), ("resume", "kill-target-agent"), ("resume", "cut-link")]
"""COMMIT is written: the target goes forward, and restores once more where it has to."""


@pytest.fixture
def third_host(lab: tuple[LabHost, LabHost]) -> Iterator[None]:
    """Where clients are."""
    serving.raise_third_host(*lab)
    yield
    serving.remove_third_host(*lab)


@pytest.fixture
def without_nft(lab: tuple[LabHost, LabHost]) -> Iterator[None]:
    """Neither host has the program; iptables has made its tables before anybody looks at what was there before."""
    for host in lab:
        host.run("for one in iptables ip6tables; do $one -I INPUT -j ACCEPT; $one -D INPUT -j ACCEPT; done")
        host.run("mv $(command -v nft) /root/nft.away")
    yield
    for host in lab:
        host.run("mv /root/nft.away /usr/sbin/nft")


@dataclasses.dataclass
class Service:
    """A server on an address of its own, and its clients."""

    address: str
    pid: int
    clients: Clients


def serve(lab: tuple[LabHost, LabHost], started: Started, where: str) -> Iterator[Service]:
    """The server on alpha, with a client that has its first answers."""
    alpha, beta = lab
    address = serving.add(alpha, where)
    pid = started.launch(*SERVER, "--address", address, "--mib", "64")
    until(lambda: alpha.run("ss -Hltn sport = :7000").out != "", "the server does not listen")
    clients = Clients.of(alpha, address, new=2)
    yield Service(address, pid, clients)
    clients.end()
    serving.delete(alpha, beta, where)


@pytest.fixture
def address(third_host: None, nothing_behind: None, lab: tuple[LabHost, LabHost]) -> Iterator[str]:
    """On alpha, for a server."""
    yield serving.add(lab[0], V4)
    serving.delete(*lab, V4)


@pytest.fixture
def service(
    third_host: None, nothing_behind: None, lab: tuple[LabHost, LabHost], started: Started
) -> Iterator[Service]:
    """By IPv4."""
    yield from serve(lab, started, V4)


@pytest.fixture(params=[V4, V6], ids=["ipv4", "ipv6"])
def either(
    request: pytest.FixtureRequest,
    third_host: None,
    nothing_behind: None,
    lab: tuple[LabHost, LabHost],
    started: Started,
) -> Iterator[Service]:
    """By IPv4, by IPv6."""
    yield from serve(lab, started, request.param)


@pytest.fixture(params=[V4, V6], ids=["ipv4", "ipv6"])
def by_iptables(
    request: pytest.FixtureRequest,
    without_nft: None,
    third_host: None,
    nothing_behind: None,
    lab: tuple[LabHost, LabHost],
    started: Started,
) -> Iterator[Service]:
    """The same between hosts without nft."""
    yield from serve(lab, started, request.param)


def rules(host: LabHost) -> str:
    """Every rule that drops something, of nftables or of iptables, and every table of ours."""
    listed = host.run("nft list tables 2>/dev/null | grep inet; iptables-save; ip6tables-save", check=False).out
    return "\n".join(line for line in listed.splitlines() if "DROP" in line or line.startswith("table inet"))


def move(run: Any, service: Service, source: LabHost, target: LabHost, word: str = "") -> None:
    """To the other host, whole: the address is there, and no rule is left on either."""
    word = word or service.address
    done = run("--copy-files", "--move-address", word, str(service.pid), target.name, on=source)
    assert done.status == 0, done.explain()
    assert (has(source, service.address), has(target, service.address)) == (False, True)
    assert rules(source) + rules(target) == ""


def still_on_source(service: Service, alpha: LabHost, beta: LabHost) -> None:
    """The connection was never broken, and nothing is left of what should have moved it."""
    service.clients.go_on()
    assert (has(alpha, service.address), has(beta, service.address)) == (True, False)
    assert rules(alpha) + rules(beta) == ""


def test_its_clients_do_not_notice(
    either: Service, both_ways: None, alpha: LabHost, beta: LabHost, migrate: Any
) -> None:
    """To and fro, twice: the one connection goes on, and new clients find the server wherever it is."""
    for source, target in ((alpha, beta), (beta, alpha)) * 2:
        move(migrate, either, source, target)
        either.clients.go_on()


@pytest.mark.long
def test_nor_do_they_over_fifty_moves(
    service: Service, both_ways: None, alpha: LabHost, beta: LabHost, migrate: Any
) -> None:
    """One connection all the time, and 25 new ones a second. The longest wait for an answer in each move is printed."""
    waits = []
    for source, target in ((alpha, beta), (beta, alpha)) * 25:
        before = len(service.clients.answers()) - 1
        move(migrate, service, source, target)
        service.clients.go_on(25)
        waits.append(service.clients.pause(before))
    assert has(alpha, service.address)
    new = sum(line[0] == "new" for line in service.clients.lines())
    print(f"waits, s: {min(waits):.3f} to {max(waits):.3f}, median {statistics.median(waits):.3f};", end=" ")
    print(f"answers: {len(service.clients.answers())}; new connections: {new}")


def test_nor_where_iptables_has_to_do(
    by_iptables: Service, both_ways: None, alpha: LabHost, beta: LabHost, migrate: Any, sabotage: Any
) -> None:
    """To, and fro; and once a criu that is killed in its hold, so that its rules are for us to delete."""
    for source, target in ((alpha, beta), (beta, alpha)):
        move(migrate, by_iptables, source, target)
        by_iptables.clients.go_on()
    options = f"--copy-files --move-address {by_iptables.address}"
    run = sabotage(by_iptables.pid, "commit", "kill-source-criu", options=options)
    assert run.status != 0, run.explain()
    until(lambda: not has(beta, by_iptables.address), "the target keeps the address", 60)
    still_on_source(by_iptables, alpha, beta)


def test_auto_finds_the_address(either: Service, both_ways: None, alpha: LabHost, beta: LabHost, migrate: Any) -> None:
    """svc0 and eth0 have others, which are the hosts' own."""
    for source, target in ((alpha, beta), (beta, alpha)):
        move(migrate, either, source, target, "auto")
        either.clients.go_on()


def test_rehearsed(either: Service, alpha: LabHost, beta: LabHost, migrate: Any) -> None:
    """The target had the address for a moment: the neighbours learn where it is."""
    run = migrate("rehearse", "--copy-files", "--move-address", either.address, str(either.pid), "beta")
    assert run.status == 0, run.explain()
    still_on_source(either, alpha, beta)


@pytest.mark.parametrize(("at", "harm"), BEFORE)
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
def test_behind_commit_it_goes_on_at_the_target(
    service: Service, alpha: LabHost, beta: LabHost, sabotage: Any, at: str, harm: str
) -> None:
    run = sabotage(service.pid, at, harm, options=f"--copy-files --move-address {service.address}")
    assert run.status in (0, 3), run.explain()
    service.clients.go_on()
    assert (has(alpha, service.address), has(beta, service.address)) == (False, True)


def test_its_own_connections_go_on_as_well(
    address: str, both_ways: None, lab: tuple[LabHost, LabHost], started: Started, migrate: Any
) -> None:
    """The tree is the client, of a server on the third host."""
    alpha, beta = lab
    started.launch(*serving.CLIENT.split(), *SERVER, "--address", "10.78.0.60")
    until(lambda: alpha.run(f"{serving.CLIENT} ss -Hltn sport = :7000").out != "", "the server does not listen")
    alpha.run(f"rm -f {serving.LOG}")
    words = f"{serving.PROGRAM} --address 10.78.0.60 --source {address} --log {serving.LOG}"
    clients = Clients(alpha, started.launch(*words.split()))
    clients.begin()
    for source, target in ((alpha, beta), (beta, alpha)):
        target.run(f"rm -f {serving.LOG}")  # it comes along
        move(migrate, Service(address, clients.session, clients), source, target)
        clients.host = target
        clients.go_on()


def test_redis_and_a_hundred_clients(
    address: str, both_ways: None, lab: tuple[LabHost, LabHost], started: Started, migrate: Any
) -> None:
    """Each counts over a connection of its own; then every key is looked at."""
    alpha, beta = lab
    words = f"redis-server --bind {address} --port 7777 --protected-mode no --save  --appendonly no --daemonize no"
    pid = started.launch(*words.split(" "))
    until(lambda: "PONG" in alpha.run(f"redis-cli -h {address} -p 7777 ping", check=False).out, "no redis")
    program = f"python3 /root/programs/redis_load.py --address {address} --port 7777 --clients 100"
    alpha.run(f"rm -f {serving.LOG}")
    load = started.launch(*serving.CLIENT.split(), *program.split(), output=serving.LOG)

    def answers() -> int:
        return int(alpha.run(f"tail -n 1 {serving.LOG}").out or 0)

    until(lambda: answers() > 1000, "no answers")
    for source, target in ((alpha, beta), (beta, alpha)):
        move(migrate, Service(address, pid, Clients(alpha, load)), source, target)
        more = answers() + 1000
        until(lambda more=more: answers() > more, "no answers any more")  # type: ignore[misc]
    alpha.run(f"pkill -TERM -s {load}")
    until(lambda: "{" in alpha.run(f"tail -n 1 {serving.LOG}").out, "the clients do not end", 120)
    came_of_it = json.loads(alpha.run(f"tail -n 1 {serving.LOG}").out)
    assert (came_of_it["errors"], came_of_it["lost"], came_of_it["clients"]) == ([], [], 100)
    assert came_of_it["keys"] > 1000


NGINX = """
user root;
worker_processes 1;
daemon off;
pid /root/nginx.pid;
error_log /root/nginx.log notice;
events {{ worker_connections 64; }}
http {{ access_log off; server {{ listen {address}:7780; root /root/www; limit_rate 12m; }} }}
"""


def test_nginx_and_a_download(address: str, lab: tuple[LabHost, LabHost], started: Started, migrate: Any) -> None:
    """200 MB, moved in their middle: what comes has the right sum."""
    alpha, beta = lab
    alpha.put("/root/nginx.conf", NGINX.format(address=address).encode())
    for host in lab:
        host.run("mkdir -p /root/www")
    expected = alpha.run("head -c 200M /dev/urandom >/root/www/large; sha256sum </root/www/large").out.split()[0]
    pid = started.launch("nginx", "-c", "/root/nginx.conf")
    until(lambda: alpha.run("ss -Hltn sport = :7780").out != "", "nginx does not listen")
    program = f"python3 /root/programs/download.py http://{address}:7780/large"
    alpha.run(f"rm -f {serving.LOG}")
    client = started.launch(*serving.CLIENT.split(), *program.split(), output=serving.LOG)
    until(lambda: int(alpha.run(f"wc -l <{serving.LOG}").out) > 5, "nothing comes")
    move(migrate, Service(address, pid, Clients(alpha, client)), alpha, beta)
    moved_at = int(alpha.run(f"wc -l <{serving.LOG}").out)
    assert moved_at < 200, "it was over before the move was"
    until(lambda: "sha256" in alpha.run(f"tail -n 1 {serving.LOG}").out, "it does not end", 120)
    assert alpha.run(f"tail -n 1 {serving.LOG}").out.split() == ["sha256", expected]
    for host in lab:
        host.run("rm -rf /root/www /root/nginx.*")


def test_every_connection_is_named_or_closed(
    third_host: None, nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    """A server on all addresses has none that could move: its clients see an end, and find it on the target."""
    pid = started.launch(*SERVER, "--address", "0.0.0.0")
    until(lambda: alpha.run("ss -Hltn sport = :7000").out != "", "the server does not listen")
    clients = Clients.of(alpha, "10.78.0.11", new=0)
    told = alpha.run(f"{serving.CLIENT} ss -Htn dport = :7000").out.split()
    pair = f"10.78.0.11:7000 -> {told[3]}"
    named = migrate("check", str(pid), "beta")
    assert [(one["object"], one["stops"]) for one in named.of("obstacle") if one["id"] == "tcp-established"] == [
        (pair, True)
    ]
    run = migrate("--tcp", "close", str(pid), "beta")
    assert run.status == 0, run.explain()
    assert any(pair in note["text"] for note in run.of("note")), run.explain()
    until(lambda: clients.errors() != [], "the client does not see the end", 60)
    assert rules(alpha) + rules(beta) == ""
    clients.end()
    Clients.of(alpha, "10.78.0.12", new=1).end()
    assert beta.alive(pid)


WRONG = [
    ("10.78.0.99", "move-not-here"),
    ("10.78.0.50@eth0:eth0", "move-not-here"),
    ("10.78.0.50@svc0:eth7", "move-interface"),
    ("10.78.0.12", "move-not-here"),
    ("10.77.0.11", "move-session"),
]


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


def test_check_names_what_becomes_of_each_socket(address: str, alpha: LabHost, started: Started, migrate: Any) -> None:
    """The listening one and the connection, with the address and without."""
    pid = started.launch(*SERVER, "--address", address)
    until(lambda: alpha.run("ss -Hltn sport = :7000").out != "", "the server does not listen")
    clients = Clients.of(alpha, address, new=0)
    near = alpha.run(f"{serving.CLIENT} ss -Htn dport = :7000").out.split()[3]
    pair = f"{address}:7000 -> {near}"
    for words, fates in (
        (("--move-address", address), ("listens: alpha drops", f"{pair} goes along")),
        ((), ("listens: on beta as on alpha", f"{pair} stays on alpha")),
        (("--tcp", "close"), ("listens: on beta as on alpha", f"{pair} is closed")),
    ):
        run = migrate("check", *words, str(pid), "beta")
        notes = [one["text"] for one in run.of("note")]
        assert [sum(fate in note for note in notes) for fate in fates] == [1, 1], run.explain()
    clients.end()


def test_a_third_host_that_has_the_address_is_heard(either: Service, alpha: LabHost, migrate: Any) -> None:
    """It answers the target's question on the link, as the source does, which is none of it."""
    nodad = "nodad" if ":" in either.address else ""
    words = "check", "--move-address", either.address, str(either.pid), "beta"
    assert "move-elsewhere" not in {one["id"] for one in migrate(*words).of("obstacle")}
    either.clients.end()  # to whom the address would be their own
    alpha.run(f"ip -n client address add {either.address}/{128 if nodad else 32} dev cl0 {nodad}")
    said = migrate(*words)
    assert obstacles(said) == {"move-elsewhere"}
    (named,) = (one for one in said.of("obstacle") if one["id"] == "move-elsewhere")
    assert (named["object"], "02:00:0a:4e:00:3c" in named["problem"]) == (either.address, True)


def test_a_host_that_may_not_or_can_not_is_named(service: Service, alpha: LabHost, beta: LabHost) -> None:
    """Without the capability; without nft and iptables on either host."""
    words = f"migrate check --json --move-address {service.address} {service.pid} beta"
    run = Run(alpha.run(f"setpriv --bounding-set -net_admin --inh-caps -net_admin {words}", check=False))
    assert "no-net-admin" in obstacles(run)
    for host in (alpha, beta):
        host.run("mv /usr/sbin/nft /root/nft.away; mv /usr/sbin/iptables-save /root/iptables-save.away")
        run = Run(alpha.run(words, check=False))
        host.run("mv /root/nft.away /usr/sbin/nft; mv /root/iptables-save.away /usr/sbin/iptables-save")
        assert [one["host"] for one in run.of("obstacle") if one["id"] == "move-program"] == [host.name]
    still_on_source(service, alpha, beta)


def obstacles(run: Run) -> set[str]:
    """The ids of what stands in the way."""
    assert run.status != 0, run.explain()
    return {one["id"] for one in run.of("obstacle") if one["stops"]}
