"""criu's arguments as a table, its log, its statistics, and how it is started."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import criu, process
from agent.images import ImageError
from agent.protocol import CriuOptions
from tests import fake_criu

NONE = CriuOptions()
ALL = CriuOptions(True, 1 << 20, True, True, True, ("--x", "y"), ("--d=1",), ("--r",))
IMAGES, LOG = Path("/run/m/2"), Path("/var/m/x.log")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"pre": True},
            "pre-dump --no-default-config --tree 7 --images-dir /run/m/2 --page-server --ps-socket 9 -v4"
            " --log-file /var/m/x.log --work-dir /run/m/2 --track-mem",
        ),
        (
            {"pre": True, "previous": "../1", "options": ALL},
            "pre-dump --no-default-config --tree 7 --images-dir /run/m/2 --page-server --ps-socket 9 -v4"
            " --log-file /var/m/x.log --work-dir /run/m/2 --track-mem --prev-images-dir ../1 --shell-job --d=1",
        ),
        (
            {"previous": "../1", "script": "/var/m/hold"},
            "dump --no-default-config --tree 7 --images-dir /run/m/2 --page-server --ps-socket 9 -v4"
            " --log-file /var/m/x.log --work-dir /run/m/2 --track-mem --prev-images-dir ../1 --manage-cgroups=ignore"
            " --action-script /var/m/hold",
        ),
        (
            {"track": False, "script": "/var/m/hold", "options": ALL},
            "dump --no-default-config --tree 7 --images-dir /run/m/2 --page-server --ps-socket 9 -v4"
            " --log-file /var/m/x.log --work-dir /run/m/2 --manage-cgroups=ignore --shell-job --file-locks --link-remap"
            " --tcp-established --ghost-limit 1048576 --x y --action-script /var/m/hold --d=1",
        ),
    ],
)
def test_arguments_of_dumps(changes: dict[str, Any], line: str) -> None:
    given_ = {"pid": 7, "images": IMAGES, "socket": 9, "log": LOG, "options": NONE, **changes}
    assert criu.dump_arguments(**given_) == line.split()


def test_connections_that_are_closed_are_so_at_both_ends() -> None:
    close = CriuOptions(tcp_close=True)
    dump = criu.dump_arguments(IMAGES, pid=7, socket=9, log=LOG, options=close, script="/var/m/hold")
    restore = criu.restore_arguments(work=IMAGES, log=LOG, options=close, script="/var/m/hold", pidfile=IMAGES / "pid")
    assert ["--tcp-close" in words for words in (dump, restore)] == [True, True]


def test_arguments_of_a_page_server() -> None:
    first = (
        "page-server --no-default-config --images-dir /run/m/2 --work-dir /run/m/2"
        " --ps-socket 9 -v2 --log-file /var/m/x.log"
    )
    assert criu.page_server_arguments(images=IMAGES, socket=9, log=LOG) == first.split()
    later = f"{first} --prev-images-dir ../1 --auto-dedup"
    assert criu.page_server_arguments(images=IMAGES, socket=9, log=LOG, previous="../1") == later.split()


@pytest.mark.parametrize("options", [NONE, ALL])
def test_a_restore_is_asked_for_the_same_options_as_the_dump(options: CriuOptions) -> None:
    arguments = criu.restore_arguments(
        work=IMAGES, log=LOG, options=options, script="/var/m/hold", pidfile=Path("/var/m/pid")
    )
    assert arguments[:3] == ["restore", "--no-default-config", "--restore-detached"]
    common, handed = criu.common_options(options), list(options.for_restore)
    assert arguments[-len(common + handed) :] == common + handed
    dump = criu.dump_arguments(pid=7, images=IMAGES, socket=9, log=LOG, options=options)
    common += options.for_dump
    assert dump[-len(common) :] == common


def test_options_come_through_a_journal() -> None:
    for options in (NONE, ALL):
        assert CriuOptions.of_line(json.loads(json.dumps(dataclasses.asdict(options)))) == options


# --- log -------------------------------------------------------------------------------------------------------------

_GOOD = "(00.001) Dumping\n(00.002) Warn  (criu/tun.c:85): tun: Unable to create tun: No such file or directory"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        (_GOOD, ""),
        ("(00.010) Error (criu/tun.c:85): tun: Unable to create tun: No such device", "Unable to create tun"),
        (
            "(00.010) Error (criu/tun.c:85): tun: Unable to create tun: No such device\n"
            "(00.011) Error (criu/files-reg.c:2181): File lib/x.so has bad size 5 (expect 6)\n"
            "(00.012) Error (criu/cr-restore.c:2536): Restoring FAILED.",
            "File lib/x.so has bad size 5 (expect 6) (files-reg.c:2181)",
        ),
        ("(00.010) Error (criu/cr-dump.c:2098): Dumping FAILED.", "Dumping FAILED. (cr-dump.c:2098)"),
        ("(00.010)   1234: Error (criu/mount.c:1): mnt: no", "mnt: no (mount.c:1)"),
        ("(00.010) pie: 12: Error (criu/pie/restorer.c:9): Can't map", "Can't map (restorer.c:9)"),
        ("Error (criu/crtools.c:1): no such option", "no such option (crtools.c:1)"),
        ("Warn  (criu/kerndat.c:1): no\nError: plain", "plain"),
    ],
)
def test_the_line_that_says_why(text: str, line: str, tmp_path: Path) -> None:
    found = criu.decisive(text.splitlines())
    assert line in found
    assert bool(found) == bool(line)
    (tmp_path / "log").write_text(text)
    assert criu.decisive_line(tmp_path / "log") == found


@given(st.lists(st.text()))
def test_no_log_breaks_it(lines: list[str]) -> None:
    assert isinstance(criu.decisive(lines), str)


def test_how_far_a_restore_came(tmp_path: Path) -> None:
    log = tmp_path / "restore.log"
    assert (criu.passed_hold(log), criu.finished(log)) == (True, False)  # no log: nobody knows, so never once more
    for text, passed, finished in (
        ("(0.1) Forking\n(0.2) Error: Aborting restore due to post-restore script ret code 256\n", False, False),
        ("(0.1) Unlock network\n(0.2) Error: Can't catch all tasks\n", True, False),
        ("(0.1) Unlock network\n(0.2) Restore finished successfully. Tasks resumed.\n", True, True),
    ):
        log.write_text(text)
        assert (criu.passed_hold(log), criu.finished(log)) == (passed, finished)


# --- statistics ------------------------------------------------------------------------------------------------------


def test_statistics(tmp_path: Path) -> None:
    path = tmp_path / "stats-dump"
    path.write_bytes(fake_criu.statistics_image(1234, 0.0125))
    found = criu.read_statistics(path)
    assert (found.pages, found.frozen_seconds) == (1234, 0.0125)
    for length in range(12):
        path.write_bytes(fake_criu.statistics_image(1234, 0.0125)[:length])
        with pytest.raises(ValueError, match="criu's statistics"):
            criu.read_statistics(path)


@given(st.binary(min_size=12, max_size=60))
def test_statistics_that_are_none(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "stats-dump"
    path.write_bytes(fake_criu.statistics_image(1, 1)[:12] + data)
    try:
        found = criu.read_statistics(path)
    except (ValueError, ImageError):
        return
    assert found.pages >= 0


# --- how it is started -----------------------------------------------------------------------------------------------

_PROGRAM = """#!/bin/sh
case $1 in
    fail) echo "(0.1) Error (criu/x.c:1): no luck" >"$2"; exit 7 ;;
    tell) { cat /proc/self/status; cat /proc/self/stat; echo "$@"; ls -l /proc/self/fd; } >"$2" ;;
    warm) echo "$@" >"$4" ;;
esac
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "criu"
    path.write_text(_PROGRAM)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def _ignored(status: str) -> set[int]:
    mask = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")), 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


async def test_nothing_signals_a_criu_at_work(program: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = await criu.spawn(program, ["tell", str(log)], log)
    assert running.command == f"{program} tell {log}"
    await running.ended()
    said = log.read_text()
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= _ignored(said)
    line = next(line for line in said.splitlines() if line.split()[1:2] == ["(cat)"])
    assert process.parse_stat(line.encode()).sid == running.process.pid != os.getsid(0)


async def test_descriptors_go_along_only_when_named(program: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    await (await criu.spawn(program, ["tell", str(log)], log, descriptors=(writing,))).ended()
    inode = os.stat(writing).st_ino
    assert log.read_text().count(f"pipe:[{inode}]") == 1
    os.close(reading)
    os.close(writing)


async def test_a_failure_is_criu_s_own_words(program: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = await criu.spawn(program, ["fail", str(log)], log)
    with pytest.raises(criu.CriuError) as caught:
        await running.ended()
    assert caught.value.message == "no luck (x.c:1)"
    assert (caught.value.log, caught.value.status) == (str(log), 7)
    assert not running.alive


async def test_a_criu_that_is_not_there(tmp_path: Path) -> None:
    running = await criu.spawn(str(tmp_path / "none"), ["dump"], tmp_path / "log")
    with pytest.raises(criu.CriuError, match="status 127"):
        await running.ended()
    questions = criu.Criu(str(tmp_path / "none"))
    assert await questions.version() == ""
    assert await questions.check() != ""
    assert not await questions.cpuinfo_dump(tmp_path)


async def test_a_warm_criu_starts_when_its_images_are_named(program: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = await criu.spawn_waiting(program, ["warm", str(log)], log)
    await asyncio.sleep(0.02)
    assert running.alive
    assert not log.exists()
    criu.go(running, tmp_path / "two words\\")
    await running.ended()
    assert log.read_text() == f"warm --images-dir {tmp_path}/two words\\ {log}\n"
    assert running.command.startswith(f"{program} warm --images-dir")


async def test_no_file_of_options_gets_in_by_the_environment(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRIU_CONFIG_FILE", "/etc/criu/other.conf")
    path = Path(program)
    path.write_text('#!/bin/sh\nprintf %s "${CRIU_CONFIG_FILE-none}" >"${2#--images-dir}${3-}"\n')
    await (await criu.spawn(program, ["x", str(tmp_path / "one")], tmp_path / "log")).ended()
    running = await criu.spawn_waiting(program, ["x"], tmp_path / "log")
    criu.go(running, tmp_path / "two")
    await running.ended()
    assert [(tmp_path / name).read_text() for name in ("one", "two")] == ["none", "none"]


async def test_a_warm_criu_that_is_never_used_leaves_with_its_agent(program: str, tmp_path: Path) -> None:
    running = await criu.spawn_waiting(program, ["warm", str(tmp_path / "log")], tmp_path / "log")
    assert running.process.stdin is not None
    running.process.stdin.close()
    assert await running.process.wait() == 125
    assert not (tmp_path / "log").exists()


# --- questions -------------------------------------------------------------------------------------------------------


async def test_questions(tmp_path: Path) -> None:
    questions = criu.Criu(fake_criu.install(str(tmp_path)))
    assert await questions.version() == "4.1.1"
    assert await questions.check("mem_dirty_track") == ""
    assert await questions.cpuinfo_dump(tmp_path)
    assert await questions.cpuinfo_check(tmp_path) == ""
    (tmp_path / "behaviour.json").write_text('{"check": "mem_dirty_track", "cpuinfo": "fail"}')
    assert await questions.check() == ""
    assert "Kernel doesn't support" in await questions.check("mem_dirty_track")
    assert "CPU capabilities do not match" in await questions.cpuinfo_check(tmp_path)
