"""Instants: nothing without the variable, nothing by a socket that others could have made, a stop where a test asks."""

from __future__ import annotations

import ast
import os
import re
import socket
import threading
from pathlib import Path

import pytest

from agent import instants

AGENT = Path(instants.__file__).parent


@pytest.fixture
def listener(tmp_path: Path) -> socket.socket:
    place = tmp_path / "instants"
    place.mkdir(mode=0o700)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(place / "socket"))
    (place / "socket").chmod(0o600)
    listening.listen()
    listening.settimeout(60)
    return listening


def path_of(listener: socket.socket) -> Path:
    return Path(listener.getsockname())


def stops(path: Path) -> bool:
    """Whether the variable is obeyed for this path."""
    return instants.of({instants.VARIABLE: str(path)}) is not instants.of({})


def test_without_the_variable_nothing_is_done() -> None:
    assert instants.of({}) is instants.of({instants.VARIABLE: ""})
    instants.of({})("held")


def test_the_release_runs_without_it() -> None:
    assert instants.at is instants.of({})


def test_it_says_where_it_is_and_waits_for_the_word(listener: socket.socket) -> None:
    passed = threading.Event()
    at = instants.of({instants.VARIABLE: str(path_of(listener))})
    with listener:

        def come() -> None:
            at("commit asked")
            passed.set()

        process = threading.Thread(target=come)
        process.start()
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(100) == f"{os.getpid()} commit asked\n".encode()
            assert not passed.wait(0.1)
            peer.sendall(b"\n")
            process.join(60)
    assert passed.is_set()


def test_a_listener_that_has_gone_stops_nobody(listener: socket.socket) -> None:
    at = instants.of({instants.VARIABLE: str(path_of(listener))})
    listener.close()
    at("held")


def test_it_obeys_a_socket_of_ours_alone(listener: socket.socket) -> None:
    with listener:
        assert stops(path_of(listener))


def test_no_other_file_and_no_relative_path(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with listener:
        file = path_of(listener).with_name("file")
        file.touch(mode=0o600)
        assert not stops(file)
        assert not stops(file.with_name("missing"))
        monkeypatch.chdir(file.parent)
        assert not stops(Path("socket"))
        link = file.with_name("link")
        link.symlink_to("socket")
        assert not stops(link)


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o606, 0o640, 0o604])
def test_no_socket_that_others_may_use(listener: socket.socket, mode: int) -> None:
    with listener:
        path_of(listener).chmod(mode)
        assert not stops(path_of(listener))


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720, 0o702])
def test_no_directory_that_others_may_write_to(listener: socket.socket, mode: int) -> None:
    with listener:
        path_of(listener).parent.chmod(mode)
        assert not stops(path_of(listener))


def test_no_socket_of_another_user(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with listener:
        monkeypatch.setattr(os, "geteuid", lambda: path_of(listener).stat().st_uid + 1)
        assert not stops(path_of(listener))


def test_every_instant_is_in_the_list_and_every_name_in_it_is_come_to() -> None:
    told = set(re.findall(r"`([a-z]+(?: [a-z]+)?)(?: N|)`\s\(", instants.__doc__ or ""))
    come = set()
    for room in AGENT.glob("*.py"):
        for node in ast.walk(ast.parse(room.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "instants.at":
                (name,) = node.args
                if isinstance(name, ast.JoinedStr):
                    name = name.values[0]
                assert isinstance(name, ast.Constant)
                come.add(str(name.value).strip())
    assert told == come


def test_the_variable_is_read_in_one_place() -> None:
    rooms = [path for package in ("agent", "migrator") for path in (AGENT.parent / package).glob("*.py")]
    assert [path.name for path in rooms if instants.VARIABLE in path.read_text()] == ["instants.py"]
