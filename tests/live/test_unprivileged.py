"""What an ordinary user can do without root, as the README tells it: criu by hand, with two capabilities."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.conftest import Started
from tests.live.lab_host import LabHost

pytestmark = pytest.mark.long_on("vm")

CRIU = "/usr/local/bin/criu-user"
CAPABILITIES = "cap_checkpoint_restore,cap_setpcap+ep"

PROGRAM = """
import os, socket, sys, threading, time
kept = {
    "alone": lambda: None,
    "forked": os.fork,
    "with threads": lambda: threading.Thread(target=time.sleep, args=(100000,), daemon=True).start(),
    "with 20 MiB": lambda: bytearray(os.urandom(1 << 20) * 20),
    "listening": lambda: socket.create_server(("127.0.0.1", 7070)),
    "with a connection": lambda: socket.create_connection(("127.0.0.1", 22)),
}[sys.argv[1]]()
number = 0
while True:
    number += 1
    with open("/home/admin/numbers", "a") as log:
        log.write(f"{number}\\n")
    time.sleep(0.1)
"""


@pytest.fixture
def criu_of_a_user(nothing_behind: None, alpha: LabHost, beta: LabHost) -> Iterator[None]:
    """What root does once, on both hosts."""
    for host in (alpha, beta):
        host.run(f"cp $(command -v criu) {CRIU} && setcap {CAPABILITIES} {CRIU}")
        host.put("/home/admin/program.py", PROGRAM.encode(), 0o644)
    yield
    for host in (alpha, beta):
        host.run(f"rm -rf {CRIU} /home/admin/program.py /home/admin/images /home/admin/numbers")


def launched(alpha: LabHost, started: Started, kind: str) -> int:
    pid = started.launch(
        "setpriv", "--reuid=admin", "--regid=admin", "--init-groups", "python3", "/home/admin/program.py", kind
    )
    alpha.run("until test -s /home/admin/numbers; do sleep 0.1; done")
    return pid


def of_the_user(host: LabHost, command: str) -> int:
    """Its exit code."""
    return host.run(f"su - admin -c '{command}'", check=False).status


@pytest.mark.parametrize("kind", ["alone", "forked", "with threads", "with 20 MiB", "listening"])
def test_a_user_moves_a_process_of_theirs_by_hand(
    criu_of_a_user: None, started: Started, alpha: LabHost, beta: LabHost, kind: str
) -> None:
    """Dumped, carried and restored by the user: it counts on where it stood."""
    pid = launched(alpha, started, kind)
    alpha.run("su - admin -c 'mkdir -m 700 images'")
    assert of_the_user(alpha, f"criu-user dump --unprivileged -t {pid} -D images") == 0
    assert not alpha.alive(pid)
    dumped = alpha.read("/home/admin/numbers").split()
    assert of_the_user(alpha, "rsync -a images numbers beta:") == 0
    assert of_the_user(alpha, "ssh beta criu-user restore --unprivileged -D images -d") == 0
    beta.run(f"until test $(wc -l < /home/admin/numbers) -gt {len(dumped) + 5}; do sleep 0.1; done")
    numbers = beta.read("/home/admin/numbers").split()
    assert numbers[: len(dumped)] == dumped
    copies = 2 if kind == "forked" else 1
    assert max(map(int, numbers)) > max(map(int, dumped))
    assert beta.run("pgrep -c -u admin -f program.py").out.strip() == str(copies)


def test_a_connection_does_not_move_that_way(
    criu_of_a_user: None, started: Started, alpha: LabHost, beta: LabHost
) -> None:
    """Holding a connection back takes CAP_NET_ADMIN: criu gives up, and the process goes on."""
    pid = launched(alpha, started, "with a connection")
    alpha.run("su - admin -c 'mkdir -m 700 images'")
    assert of_the_user(alpha, f"criu-user dump --unprivileged --tcp-established -t {pid} -D images") == 1
    assert alpha.alive(pid)


@pytest.mark.backends("netns")
def test_without_setpcap_the_restore_fails(
    criu_of_a_user: None, started: Started, alpha: LabHost, beta: LabHost
) -> None:
    """Why the README asks for two capabilities; vm's criu 4.1.1 on 6.12 goes without. The images stay as they are."""
    pid = launched(alpha, started, "alone")
    alpha.run("su - admin -c 'mkdir -m 700 images'")
    assert of_the_user(alpha, f"criu-user dump --unprivileged -t {pid} -D images") == 0
    alpha.run(f"setcap cap_checkpoint_restore+ep {CRIU}")
    assert of_the_user(alpha, "criu-user restore --unprivileged -D images -d") == 1
    assert not alpha.alive(pid)
    alpha.run(f"setcap {CAPABILITIES} {CRIU}")
    assert of_the_user(alpha, "criu-user restore --unprivileged -D images -d") == 0
    assert alpha.alive(pid)
