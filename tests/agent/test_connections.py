"""agent/connections.py, on real processes: what is odd about sockets and pipes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from agent import connections, process
from agent.descriptors import collect
from agent.protocol import Peculiarity
from tests.children import child


def seen(source: str, directory: Path) -> list[Peculiarity]:
    """What is odd about the connections of such a process."""
    with child(source + "\nready()", directory) as pid:
        tasks = process.tasks_of(pid)
        holdings = collect(task.pid for task in tasks)
        return [
            *connections.of_sockets(tasks, holdings),
            *connections.of_unix(holdings),
            *connections.of_pipes(tasks, holdings),
        ]


def of(kind: str, found: list[Peculiarity]) -> list[tuple[str, str]]:
    """Object and detail of one kind."""
    return [(one.object, one.detail) for one in found if one.kind == kind]


def test_a_tcp_connection_that_nobody_has_accepted_yet(tmp_path: Path) -> None:
    source = """
import socket
server = socket.create_server(("127.0.0.1", 0))
open("port", "w").write(str(server.getsockname()[1]))
if os.fork() == 0:
    server.close()
    os.setsid()
    os._exit(0)
"""
    with child(source + "\nready()", tmp_path) as pid:
        address = ("127.0.0.1", int((tmp_path / "port").read_text()))
        for waiting in (False, True):
            with socket.socket() as client:
                if waiting:
                    client.connect(address)
                found = list(connections.of_sockets(process.tasks_of(pid), collect([pid])))
            name = f"127.0.0.1:{address[1]}"
            assert of("listen", found) == [(name, "")]
            assert of("tcp-established", found) == ([(name, "waits to be accepted")] if waiting else [])


@pytest.mark.parametrize("data", [b"", b"abc"])
def test_a_unix_connection_with_data_that_waits_to_be_accepted(tmp_path: Path, data: bytes) -> None:
    source = f"""
import socket
server = socket.socket(socket.AF_UNIX); server.bind(sys.argv[1] + "/s"); server.listen()
client = socket.socket(socket.AF_UNIX); client.connect(sys.argv[1] + "/s")
client.send({data!r}) if {data!r} else None
"""
    found = seen(source, tmp_path)
    assert of("unix-waiting", found) == ([(f"{tmp_path}/s", "")] if data else [])
    assert of("unix-path", found) == [(f"{tmp_path}/s", "")]
    assert of("external-unix", found) == []


def test_a_unix_socket_whose_file_was_renamed(tmp_path: Path) -> None:
    """Also where another file has its old name by now; one that is gone is none, criu carries that."""
    source = """
import os, socket
held = []
os.chdir(sys.argv[1])
for name in ("moved", "replaced", "gone", "stayed"):
    held.append(socket.socket(socket.AF_UNIX)); held[-1].bind(sys.argv[1] + "/" + name); held[-1].listen()
os.rename("moved", "away"); os.rename("replaced", "aside"); open("replaced", "w").close(); os.unlink("gone")
"""
    found = seen(source, tmp_path)
    moved = [(f"{tmp_path}/aside", f"{tmp_path}/replaced"), (f"{tmp_path}/away", f"{tmp_path}/moved")]
    assert sorted(of("unix-moved", found)) == moved
    assert sorted(of("unix-path", found)) == [(f"{tmp_path}/gone", ""), (f"{tmp_path}/stayed", "")]


def test_names_that_are_no_paths_come_with_their_type(tmp_path: Path) -> None:
    name = f"migrate-test-{os.getpid()}"
    source = f"""
import socket
held = []
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    held.append(socket.socket(socket.AF_UNIX, kind)); held[-1].bind("\\0{name}")
held[0].listen()
client = socket.socket(socket.AF_UNIX); client.connect("\\0{name}"); accepted, _ = held[0].accept()
"""
    found = of("unix-name", seen(source, tmp_path))
    assert sorted(found) == [(f"@{name}", "dgram"), (f"@{name}", "seqpacket"), (f"@{name}", "stream")]


def test_a_pipe_that_keeps_packets_apart(tmp_path: Path) -> None:
    ((link, _),) = of("packet-pipe", seen("plain = os.pipe(); packets = os.pipe2(os.O_DIRECT)", tmp_path))
    assert link.startswith("pipe:[")


@pytest.mark.parametrize(("options", "manner"), [
    ("", ""), ("s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)", "shared"),
    ("s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)", "only-ipv6"),
])  # fmt: skip
def test_how_a_port_is_taken(options: str, manner: str, tmp_path: Path) -> None:
    if manner == "shared" and os.geteuid() != 0:
        pytest.skip("only root is shown the options of another process's socket")
    source = f"""
import socket
s = socket.socket(socket.AF_INET6); {"s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)"}; {options or "pass"}
s.bind(("::", 0)); s.listen()
"""
    ((_, detail),) = of("listen", seen(source, tmp_path))
    assert detail == manner
