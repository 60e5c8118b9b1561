"""Which processes are ours, by their command lines alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent import ours
from agent.criu import dump_arguments, page_server_arguments, restore_arguments
from agent.namespace import maker
from agent.program import command
from agent.protocol import CriuOptions
from agent.settings import Settings

ID = "20260704-031500-a1b2c3"
STATE = Path("/var/lib/migrate") / ID
RUN = Path("/run/migrate") / ID
_PYTHON = ["/usr/bin/python3", "-IS", "-Xutf8"]
_ARCHIVE = "/root/.cache/migrate/agent-0123456789abcdef.pyz"
_DUMP = dump_arguments(RUN / "1", pid=1, socket=5, log=STATE / "dump.log", options=CriuOptions(), script="x")
_PAGES = page_server_arguments(images=RUN / "1", socket=5, log=STATE / "page-server.log")
_RESTORE = restore_arguments(
    work=RUN, log=STATE / "restore.log", options=CriuOptions(), script=str(STATE / "hold"), pidfile=RUN / "pid"
)


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ([*_PYTHON, _ARCHIVE, "serve", "--build", "x"], ("agent", "")),
        ([*_PYTHON, "-c", "exec('migrate-boot')", "digest", "serve", "--build", "x"], ("agent", "")),
        (["sudo", "-n", "--", *_PYTHON, _ARCHIVE, "serve", "--build", "x"], None),
        ([*_PYTHON, "server.py", "serve", "--build", "x"], None),
        ([*_PYTHON, _ARCHIVE, "relay", f"{RUN}.socket", "memory", "packed"], ("relay", ID)),
        (command("pager", str(RUN), str(STATE)), ("pager", ID)),
        (["criu", *_DUMP], ("criu dump", ID)),
        (["nsenter", "-t", "7", "-p", "-m", "criu", *_DUMP], ("criu dump", ID)),
        (["criu", *_PAGES], ("page-server", ID)),
        (["sh", "-c", "guard", "sh", "criu", *_RESTORE], ("criu restore", ID)),
        ([*maker(Path("/nowhere"), 1, 2)[:-3], str(STATE), "1", "2", "criu", *_RESTORE], ("maker", ID)),
        (command("holder", f"{RUN}.terminal", "detach", "", "criu", *_RESTORE), ("holder", ID)),
        (["criu", "dump", "--tree", "1"], None),
        (["/bin/sh", str(STATE / "hold")], ("hook", ID)),
        (["sh", str(STATE / "throttle")], ("guard", ID)),
        (["sh", "/home/me/hold"], None),
        (["vi", str(STATE / "dump.log")], None),
        (["tail", "-f", str(STATE / "restore.log")], None),
        (["grep", "-r", "relay", str(RUN)], None),
    ],
)
def test_classify(words: list[str], known: tuple[str, str] | None) -> None:
    assert ours.classify(words, Settings()) == known


def test_the_hook_below_a_criu(tmp_path: Path) -> None:
    """It is the child that runs the script; the tree's processes are its siblings."""
    script = tmp_path / "hold"
    script.write_text("#!/bin/sh\nread -r line\n")
    script.chmod(0o700)
    code = "import subprocess,sys; print(subprocess.Popen([sys.argv[1]]).pid, flush=True); input()"
    criu = subprocess.Popen(
        [sys.executable, "-c", code, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert criu.stdout is not None
    pid = int(criu.stdout.readline())
    for below in (criu.pid, os.getpid()):
        found = {"pid": 0}
        while not found["pid"]:  # until it has become the script
            found = ours.hook_below(below, str(script))
        assert found["pid"] == pid
    assert ours.hook_below(criu.pid, "/nowhere") == {"pid": 0, "start": 0}
    criu.communicate("")


def test_who_has_the_other_end_of_its_input() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    assert ours.Descriptors().attended(child.pid)
    child.stdin.close()
    assert not ours.Descriptors().attended(child.pid)
    child.wait()
