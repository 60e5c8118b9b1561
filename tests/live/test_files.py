"""`--copy-files` on real hosts: no line of a log missing, no block torn, and what was on the target is as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.conftest import Run, Started
from tests.live.lab_host import LabHost, until

FILER = "/root/programs/filer.py"
FILES = "/root/files"
SIZES = {"netns": (16384, 200), "vm": (512, 20)}
"""Blocks of 64 KiB of the rewritten file, and rewritten ones a second: 1 GiB natively."""

PHASES = ("pre-copy", "freeze", "restore", "commit")


@pytest.fixture
def files(nothing_behind: None, lab: tuple[LabHost, LabHost]) -> Iterator[None]:
    """An empty directory on both hosts, looked at when what a test has started is ended."""
    for host in lab:
        host.run(f"rm -rf {FILES}; mkdir {FILES}")
    yield
    for host in lab:
        left = host.run(f"find {FILES} -name '.migrate-*'").out
        host.run(f"rm -rf {FILES}")
        assert left == "", f"{host.name}: {left}"


@pytest.fixture
def filer(files: None, started: Started, alpha: LabHost) -> Any:
    """Start the writer of files on alpha, and wait until it has them open."""

    def run(*words: str) -> int:
        pid = started.launch("python3", FILER, *words)
        paths = [word.lstrip("+") for word in words if word.startswith(("/", "+/"))]
        open_ones = " ".join(paths)
        look = f'for p in {open_ones}; do ls -l /proc/{pid}/fd | grep -q " $p$" || exit 1; done'
        until(lambda: alpha.run(look, check=False).status == 0, "it does not open its files")
        return pid

    return run


def listing(host: LabHost) -> str:
    """Everything that a failure must leave alone: names, inodes, owners, modes, times, content, attributes."""
    look = (
        "import os, sys, hashlib\n"
        f"for name in sorted(os.listdir({FILES!r})):\n"
        f"    path = os.path.join({FILES!r}, name); s = os.stat(path)\n"
        "    print(name, s.st_ino, s.st_mode, s.st_uid, s.st_gid, s.st_size, s.st_mtime_ns,\n"
        "          hashlib.sha256(open(path, 'rb').read()).hexdigest(),\n"
        "          {key: os.getxattr(path, key) for key in os.listxattr(path)})\n"
    )
    return host.run("python3 -", stdin=look.encode()).out


def moved(run: Run, alpha: LabHost, beta: LabHost, pid: int) -> dict[str, Any]:
    """It went well; the report."""
    assert run.status == 0, run.explain()
    assert beta.alive(pid)
    assert not alpha.alive(pid)
    return run.report


def undone(run: Run, alpha: LabHost, beta: LabHost, pid: int, before: str, codes: range = range(30, 50)) -> None:
    """It did not, and the target's files are as they were. Its agent may still be at it, if nobody waited for it."""
    assert run.status in codes, run.explain()
    assert "Traceback" not in run.err, run.explain()
    assert alpha.alive(pid)
    assert not beta.alive(pid)
    until(lambda: listing(beta) == before, f"the target's files are not as they were: {listing(beta)}\n{before}")


def lines_of(host: LabHost, path: str) -> list[int]:
    """Numbers of the lines of a log that grows, the last one excepted, which may be half written."""
    return [int(line.split()[0]) for line in host.read(path).split("\n")[:-2]]


# --- nothing is lost -------------------------------------------------------------------------------------------------


def test_a_log_without_a_gap(alpha: LabHost, beta: LabHost, filer: Any, migrate: Any) -> None:
    """A thousand lines a second, before, while and after it moves."""
    log = f"{FILES}/log"
    pid = filer("log", log)
    until(lambda: len(lines_of(alpha, log)) > 2000, "it does not write")
    report = moved(migrate("-v", "--copy-files", str(pid), "beta"), alpha, beta, pid)
    arrived = len(lines_of(beta, log))
    until(lambda: len(lines_of(beta, log)) > arrived + 2000, "it does not go on")
    lines = lines_of(beta, log)
    assert lines == list(range(len(lines)))
    assert 0 < report["files_frozen_bytes"] < report["files_bytes"]
    assert 0 < report["files_seconds"] < report["downtime_seconds"]


@pytest.mark.long_on("vm")
def test_a_large_file_that_is_rewritten_has_no_torn_block(
    alpha: LabHost, beta: LabHost, filer: Any, migrate: Any, backend: str
) -> None:
    path, (blocks, rate) = f"{FILES}/big", SIZES[backend]
    alpha.run(f"python3 {FILER} make {path} {blocks}")
    pid = filer("rewrite", path, str(rate))
    report = moved(migrate("-v", "--copy-files", str(pid), "beta"), alpha, beta, pid)
    beta.run(f"kill -STOP {pid}")
    here, there = (json.loads(host.run(f"python3 {FILER} verify {path}").out) for host in (alpha, beta))
    beta.run(f"kill -CONT {pid}")
    assert (there["blocks"], there["bad"]) == (blocks, 0)
    assert there["versions"] >= here["versions"] > 0, "what was written before the freeze is there"
    assert 0 < report["files_frozen_bytes"] < blocks * 65536 / 2, "not the whole of it in the freeze"
    assert report["files_bytes"] >= blocks * 65536


@pytest.mark.long_on("vm")
def test_a_mapped_file_that_is_stored_to(
    alpha: LabHost, beta: LabHost, files: None, started: Started, migrate: Any
) -> None:
    """Stores into dirty pages leave the time stamps alone."""
    alpha.run(f"truncate -s 1M {FILES}/mapped")
    program = (
        f"import mmap, time; held = open('{FILES}/mapped', 'r+b'); area = mmap.mmap(held.fileno(), 0); n = 0\n"
        "while True:\n"
        "    n += 1; area[500000:500008] = n.to_bytes(8, 'little'); time.sleep(0.001)"
    )
    pid = started.launch("python3", "-c", program)
    until(lambda: "mapped" in alpha.run(f"cat /proc/{pid}/maps", check=False).out, "it does not map it")
    value = "import sys; print(int.from_bytes(open(sys.argv[1],'rb').read()[500000:500008], 'little'))"
    until(lambda: int(alpha.run(f'python3 -c "{value}" {FILES}/mapped').out) > 100, "it does not store")
    moved(migrate("--copy-files", str(pid), "beta"), alpha, beta, pid)
    here, there = (int(host.run(f'python3 -c "{value}" {FILES}/mapped').out) for host in (alpha, beta))
    assert there >= here > 100


@pytest.mark.long_on("vm")
def test_everything_that_a_file_has(alpha: LabHost, beta: LabHost, filer: Any, migrate: Any) -> None:
    # an access control list: owner rw, user 33 rw, group r, mask rw, others none
    acl = "02000000 0100 0600 ffffffff 0200 0600 21000000 0400 0400 ffffffff 1000 0600 ffffffff 2000 0000 ffffffff"
    dress = (
        "import os\n"
        f"one, two = '{FILES}/one', '{FILES}/two'\n"
        "with open(one, 'wb') as file: file.write(b'start'); file.seek(64 << 20); file.write(b'end')\n"
        "open(two, 'w').write('second')\n"
        "os.chown(one, 1234, 77); os.chmod(one, 0o4751)\n"
        "os.setxattr(one, 'user.key', b'v\\0alue')\n"
        f"os.setxattr(two, 'system.posix_acl_access', bytes.fromhex('{acl}'))\n"
        "for path in (one, two): os.utime(path, ns=(1, 1600000000123456789))\n"
    )
    alpha.run("python3 -", stdin=dress.encode())
    pid = filer("hold", f"+{FILES}/one", f"{FILES}/two")
    moved(migrate("--copy-files", str(pid), "beta"), alpha, beta, pid)
    words = [[line.split()[0], *line.split()[2:]] for line in listing(alpha).splitlines()]
    assert words == [[line.split()[0], *line.split()[2:]] for line in listing(beta).splitlines()], "but for the inodes"
    assert int(beta.run(f"stat -c %b {FILES}/one").out) * 512 < 1 << 20, "its hole was filled"


# --- what is there already -------------------------------------------------------------------------------------------


@pytest.mark.long_on("vm")
def test_a_file_that_differs(alpha: LabHost, beta: LabHost, filer: Any, migrate: Any) -> None:
    """Refused; replaced when it is told; and a file that is only read as well."""
    for host, text in ((alpha, "the process has this"), (beta, "another")):
        host.run(f"printf '{text}' >{FILES}/written; printf '{text}' >{FILES}/read")
    pid = filer("hold", f"+{FILES}/written", f"{FILES}/read")
    before = listing(beta)
    run = migrate("--copy-files", str(pid), "beta")
    undone(run, alpha, beta, pid, before, codes=range(20, 21))
    found = {(one["id"], one["object"]) for one in run.of("obstacle")}
    assert {("file-differs", f"{FILES}/written"), ("file-size", f"{FILES}/read")} <= found, run.explain()
    moved(migrate("--copy-files", "--overwrite-files", str(pid), "beta"), alpha, beta, pid)
    assert beta.run(f"cat {FILES}/written {FILES}/read").out == "the process has this" * 2


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("act", ["kill-target-agent", "kill-source-agent", "cut-link", "interrupt"])
@pytest.mark.backends("netns")
def test_undone_in_each_phase(
    alpha: LabHost, beta: LabHost, filer: Any, sabotage: Any, started: Started, act: str, phase: str
) -> None:
    """One is replaced, one is new. What comes at COMMIT may be too late to undo anything: then all is replaced."""
    alpha.run(f"printf new >{FILES}/there; printf new >{FILES}/fresh")
    beta.run(f"printf 'what was there' >{FILES}/there; touch -d 2001-01-01 {FILES}/there; chmod 640 {FILES}/there")
    pid = filer("hold", f"+{FILES}/there", f"+{FILES}/fresh")
    before = listing(beta)
    run = sabotage(pid, phase, act, options="--copy-files --overwrite-files")
    if run.status == 0:
        assert (phase, act) in [("commit", late) for late in ("kill-target-agent", "cut-link", "interrupt")], (
            run.explain()
        )
        assert beta.run(f"cat {FILES}/there {FILES}/fresh").out == "newnew"
        return
    undone(run, alpha, beta, pid, before, codes=range(30, 131))


@pytest.mark.long_on("vm")
def test_put_back_when_the_restore_fails(
    alpha: LabHost, beta: LabHost, filer: Any, sabotage: Any, backend: str
) -> None:
    alpha.run(f"printf new >{FILES}/there")
    beta.run(f"printf 'what was there' >{FILES}/there; touch -d 2001-01-01 {FILES}/there")
    pid = filer("hold", f"+{FILES}/there")
    before = listing(beta)
    run = sabotage(pid, "freeze", "kill-restoring-criu", options="--copy-files --overwrite-files")
    undone(run, alpha, beta, pid, before, codes=range(33, 34))


@pytest.mark.long_on("vm")
def test_a_rehearsal_leaves_everything_as_it_was(alpha: LabHost, beta: LabHost, filer: Any, migrate: Any) -> None:
    alpha.run(f"printf new >{FILES}/there; printf new >{FILES}/fresh")
    beta.run(f"printf 'what was there' >{FILES}/there")
    pid = filer("hold", f"+{FILES}/there", f"+{FILES}/fresh")
    before = listing(beta)
    run = migrate("rehearse", "--copy-files", "--overwrite-files", str(pid), "beta")
    undone(run, alpha, beta, pid, before, codes=range(1))


@pytest.mark.long_on("vm")
def test_a_program_is_never_replaced(
    alpha: LabHost, beta: LabHost, files: None, started: Started, migrate: Any
) -> None:
    library = alpha.run("ldconfig -p | awk '/libm.so.6/ {print $NF; exit}'").out.strip()
    alpha.run(f"cp {library} {FILES}/libodd.so")
    beta.run(f"printf 'no library' >{FILES}/libodd.so; chmod $(stat -c %a {FILES}/libodd.so) {FILES}/libodd.so")
    pid = started.launch("python3", "-c", f"import ctypes,time; ctypes.CDLL('{FILES}/libodd.so'); time.sleep(10**6)")
    mapped = f"grep -q {FILES}/libodd.so /proc/{pid}/maps"
    until(lambda: alpha.run(mapped, check=False).status == 0, "it does not load its library")
    before = listing(beta)
    run = migrate("--copy-files", "--overwrite-files", str(pid), "beta")
    undone(run, alpha, beta, pid, before, codes=range(20, 21))
    assert {"library-build"} == {one["id"] for one in run.of("obstacle") if f"{FILES}/libodd.so" == one["object"]}


@pytest.mark.long_on("vm")
@pytest.mark.parametrize("host", ["alpha", "beta"])
def test_without_rsync(alpha: LabHost, beta: LabHost, filer: Any, migrate: Any, host: str) -> None:
    pid = filer("log", f"{FILES}/log")
    lacking = {"alpha": alpha, "beta": beta}[host]
    program = lacking.run("command -v rsync").out.strip()
    lacking.run(f"mv {program} {program}.away")
    try:
        run = migrate("--copy-files", str(pid), "beta")
    finally:
        lacking.run(f"mv {program}.away {program}")
    undone(run, alpha, beta, pid, "", codes=range(20, 21))
    assert [(one["id"], one["host"]) for one in run.of("obstacle") if one["stops"]] == [("rsync-missing", host)]


# --- what is opened after it was checked ------------------------------------------------------------------------------

OPENS = (
    "import time, os; held = [open('{0}/first', 'a')]\n"
    "while not os.path.exists('{0}/go'): time.sleep(0.001)\n"
    "held.append(open('{0}/late', 'w')); held[-1].write('late'); held[-1].flush()\n"
    "time.sleep(10**6)"
)


@pytest.fixture
def opener(files: None, started: Started, alpha: LabHost, beta: LabHost) -> int:
    """It opens another file as soon as there is one called `go`."""
    pid = started.launch("python3", "-c", OPENS.format(FILES))
    until(lambda: alpha.run(f"ls {FILES}/first", check=False).status == 0, "it does not open its file")
    return pid


@pytest.mark.long_on("vm")
@pytest.mark.parametrize("phase", ["pre-copy", "freeze"])
def test_a_file_that_is_opened_late_comes_along(
    alpha: LabHost, beta: LabHost, opener: int, sabotage: Any, phase: str
) -> None:
    run = sabotage(opener, phase, "open-late", options="--copy-files")
    moved(run, alpha, beta, opener)
    assert beta.read(f"{FILES}/late") == "late"


@pytest.mark.long_on("vm")
@pytest.mark.parametrize("phase", ["pre-copy", "freeze"])
def test_a_file_that_is_opened_late_and_may_not_come_along(
    alpha: LabHost, beta: LabHost, opener: int, sabotage: Any, phase: str
) -> None:
    """It is named before anything is restored."""
    beta.run(f"printf 'another one' >{FILES}/late")
    before = listing(beta)
    run = sabotage(opener, phase, "open-late", options="--copy-files")
    undone(run, alpha, beta, opener, before, codes=range(38, 39))
    assert {(one["id"], one["object"]) for one in run.of("obstacle")} >= {("file-differs", f"{FILES}/late")}


# --- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.backends("netns")
def test_two_hundred_files_that_do_not_change(alpha: LabHost, beta: LabHost, filer: Any, migrate: Any) -> None:
    """They cost one look each; what that is in the freeze, the report says."""
    paths = [f"{FILES}/{number}" for number in range(200)]
    alpha.run(f"for i in $(seq 0 199); do head -c 10000 /dev/urandom >{FILES}/$i; done")
    alpha.run(f"touch -d 2001-01-01 {FILES}/*")
    pid = filer("hold", *(f"+{path}" for path in paths))
    report = moved(migrate("--copy-files", str(pid), "beta"), alpha, beta, pid)
    assert report["files_frozen_bytes"] == 0
    assert report["files_bytes"] == 200 * 10000
    assert 0 < report["files_seconds"] < report["downtime_seconds"]
    assert alpha.run(f"cd {FILES} && sha256sum *").out == beta.run(f"cd {FILES} && sha256sum *").out
