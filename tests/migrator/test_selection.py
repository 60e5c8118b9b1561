"""Which processes are meant: asked of this host, where the processes are this test's own."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator import selection
from migrator.runbook import Selection
from migrator.selection import NotFound

NAME = "chosen-one"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A shell of a name of its own, which can have children."""
    path = tmp_path / NAME
    shutil.copy("/bin/sh", path)
    return path


@pytest.fixture
def tree(program: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of that name, and below it another one of the same name."""
    inner = f"{program} -c 'echo ready; read line; :'"
    with subprocess.Popen(
        [program, "-c", f"{inner}; :"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def test_by_pid(tree: subprocess.Popen[bytes]) -> None:
    (found,) = selection.find(Selection("pid", tree.pid))
    assert (found.pid, found.name) == (tree.pid, NAME)
    assert found.memory > 0


def test_by_name_only_the_root_of_a_tree(tree: subprocess.Popen[bytes]) -> None:
    (found,) = selection.find(Selection("process", NAME))
    assert found.pid == tree.pid


def test_by_user_never_what_we_run_under(tree: subprocess.Popen[bytes]) -> None:
    pids = {found.pid for found in selection.find(Selection("user", getpass.getuser()))}
    assert not pids & {os.getpid(), os.getppid(), 1, 2}


def test_by_pidfile(tree: subprocess.Popen[bytes], tmp_path: Path) -> None:
    file = tmp_path / "x.pid"
    file.write_text(f"{tree.pid}\n")
    (found,) = selection.find(Selection("pidfile", str(file)))
    assert found.pid == tree.pid


@pytest.mark.parametrize("text", ["", "x", "-1", "1 2", "99999999"])
def test_a_pidfile_without_a_process(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.pid"
    file.write_text(text)
    with pytest.raises(NotFound):
        selection.find(Selection("pidfile", str(file)))


def test_a_pidfile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No such file"):
        selection.find(Selection("pidfile", str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("exit 0", "has no main process"),
        ("echo 0", "has no main process"),
        ("echo no bus >&2; exit 1", "systemctl: no bus"),
    ],
)
def test_by_unit_without_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, text: str) -> None:
    _systemctl(tmp_path, monkeypatch, script)
    with pytest.raises(NotFound, match=text):
        selection.find(Selection("unit", "db.service"))


def test_by_unit(tree: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _systemctl(tmp_path, monkeypatch, f'[ "$*" = "show --property=MainPID --value -- -x.service" ] && echo {tree.pid}')
    (found,) = selection.find(Selection("unit", "-x.service"))
    assert found.pid == tree.pid


def test_no_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match="no systemd"):
        selection.find(Selection("unit", "db.service"))


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(NotFound, match="no process of that name"):
        selection.find(Selection("process", "nobody-is-called-so"))


def _systemctl(place: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = place / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
