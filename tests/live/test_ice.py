"""Processes on ice: saved into a directory, and restored from it, through a reboot and whatever cuts either short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.live import power
from tests.live.conftest import Run, Started
from tests.live.lab_host import LOG, LabHost, until, wait_for_sweeps
from tests.live.screen import shell
from tests.live.test_recover import settled

ICE = "/var/ice"
Ice = Callable[..., Run]


@pytest.fixture
def ice(nothing_behind: None, alpha: LabHost) -> Iterator[Ice]:
    """Run `migrate COMMAND --json …` on alpha; `before` is put in front. Nothing of it is there afterwards."""

    def run(command: str, *arguments: object, before: str = "") -> Run:
        words = " ".join(map(str, arguments))
        return Run(alpha.run(f"{before} $(command -v migrate) {command} --json {words}", check=False, seconds=600))

    yield run
    power.forget(alpha)
    alpha.run(f"rm -rf {ICE} /root/log.kept /run/stands /run/cut-short")


def right(alpha: LabHost, pid: int) -> None:
    """One copy, which goes on where it was: its log has no gap and no repeat, its memory is what it should be."""
    lines = wait_for_sweeps(alpha, 2)
    assert alpha.state(pid) in ("S", "R", "D")
    assert [line[0] for line in lines] == list(range(len(lines)))
    assert {line[3] for line in lines} == {0}, "bad pages"
    assert {line[4] for line in lines} == {0}, "the child answered wrongly"


def sums(alpha: LabHost) -> str:
    """Everything that lies on ice, but for the word of a restore."""
    return alpha.run(f"cd {ICE} && find . -type f ! -name restored -exec sha256sum {{}} + | sort").out


def saved(ice: Ice, pid: int) -> Run:
    run = ice("save", pid, ICE)
    assert run.status == 0, run.explain()
    return run


def test_a_process_goes_through_a_reboot(alpha: LabHost, ice: Ice, witness: int) -> None:
    """On vm what was not synced is gone with it. Where it runs it is not restored a second time; later it is."""
    run = saved(ice, witness)
    (said,) = run.of("saved")
    assert said["pid"] == witness
    assert not alpha.alive(witness)
    assert alpha.run(f"ls {said['directory']}").out.split() == ["1", "manifest"]
    before = sums(alpha)
    power.cut(alpha)
    again = ice("restore", ICE)
    assert again.status == 0, again.explain()
    assert again.of("restored")[0]["pid"] == witness
    alpha.run(f"cp {LOG} /root/log.kept")
    right(alpha, witness)
    assert sums(alpha) == before
    for more in ((), ("-n",)):
        second = ice("restore", ICE, *more)
        assert second.status == 22, second.explain()
        assert "it runs already" in second.of("error")[0]["message"]
    assert ice("recover").of("recovered")[0]["course"] == "nothing"
    left = ice("status", "--leftovers")
    assert left.status == 0, left.explain()


@pytest.mark.long_on("vm")
def test_it_is_restored_again_once_it_has_ended(alpha: LabHost, ice: Ice, witness: int) -> None:
    """Its files have to be what they were; a PID that is taken stands in the way, and -n helps."""
    saved(ice, witness)
    alpha.run(f"cp {LOG} /root/log.kept")
    assert ice("restore", ICE).status == 0
    right(alpha, witness)
    alpha.run(f"pkill -KILL -s {witness}")
    until(lambda: not alpha.alive(witness), "it does not die")
    grown = ice("restore", ICE)
    assert grown.status == 20, grown.explain()
    assert [one["id"] for one in grown.of("obstacle")] == ["file-size"]
    alpha.run(f"cp /root/log.kept {LOG}")
    once = f"echo {witness - 1} >/proc/sys/kernel/ns_last_pid; sleep 300 >/dev/null 2>&1 </dev/null &"
    alpha.run(f"for i in 1 2 3 4 5 6; do {once} [ $! = {witness} ] && exit 0; kill $!; done; exit 1")
    before = sums(alpha)
    taken = ice("restore", ICE)
    assert taken.status == 20, taken.explain()
    assert {one["id"] for one in taken.of("obstacle")} == {"pid-taken"}
    assert sums(alpha) == before
    apart = ice("restore", ICE, "-n")
    assert apart.status == 0, apart.explain()
    (restored,) = apart.of("restored")
    assert restored["inside_pid"] == witness
    right(alpha, restored["pid"])
    alpha.run(f"kill {witness}; pkill -KILL -x migrate-init")


@pytest.mark.long_on("vm")
def test_what_was_changed_on_ice_is_not_restored(alpha: LabHost, ice: Ice, witness: int) -> None:
    """One byte of its memory; then a directory that others may write to."""
    place = saved(ice, witness).of("saved")[0]["directory"]
    pages = f"{place}/1/pages-1.img"
    swap = f'python3 -c \'f = open("{pages}", "r+b"); b = f.read(1)[0]; f.seek(0); f.write(bytes([b ^ 1]))\''
    alpha.run(swap)
    run = ice("restore", ICE)
    assert run.status == 24, run.explain()
    assert "pages-1.img is not what was put on ice" in run.of("error")[0]["message"]
    alpha.run(swap)
    alpha.run(f"chmod o+w {ICE}")
    run = ice("restore", ICE)
    assert run.status == 24, run.explain()
    alpha.run(f"chmod o-w {ICE}")
    assert ice("restore", ICE).status == 0
    right(alpha, witness)


@pytest.mark.long_on("vm")
@pytest.mark.parametrize("instant", ["freeze", "dump", "commit asked", "committed", "source killed", "clean"])
def test_a_save_that_is_cut_short(alpha: LabHost, ice: Ice, witness: int, instant: str) -> None:
    """Agent and `migrate` die together. It runs on, and nothing lies there; or it is on ice, once `recover` says so."""
    ice("save", witness, ICE, before=f"python3 /root/programs/cut_short.py '{instant}' kill")
    settled(alpha)
    if instant == "dump":  # criu is done with it, and its hook is alone
        until(lambda: alpha.run("pgrep -x criu", check=False).status != 0, "criu does not end")
    run = ice("recover")
    assert run.status == 0, run.explain()
    (recovered,) = run.of("recovered")
    gone = instant in ("committed", "source killed", "clean")
    assert recovered["course"] == ("forward" if gone else "undo"), run.explain()
    assert alpha.alive(witness) != gone
    if gone:
        again = ice("restore", ICE)
        assert again.status == 0, again.explain()
    assert alpha.run(f"ls {ICE} 2>/dev/null", check=False).out.count("\n") == gone
    right(alpha, witness)


@pytest.mark.long_on("vm")
@pytest.mark.parametrize("instant", ["restore", "held", "resume asked", "resuming", "resumed", "clean"])
def test_a_restore_that_is_cut_short(alpha: LabHost, ice: Ice, witness: int, instant: str) -> None:
    """Nothing runs of it, and it is restored again; or it runs."""
    saved(ice, witness)
    before = sums(alpha)
    ice("restore", ICE, before=f"python3 /root/programs/cut_short.py '{instant}' kill")
    settled(alpha)
    run = ice("recover")
    assert run.status == 0, run.explain()
    runs = instant in ("resuming", "resumed", "clean")
    assert run.of("recovered")[0]["course"] == ("forward" if runs else "undo"), run.explain()
    assert alpha.alive(witness) == runs
    assert sums(alpha) == before
    again = ice("restore", ICE)
    assert again.status == (22 if runs else 0), again.explain()
    right(alpha, witness)


@pytest.mark.long_on("vm")
@pytest.mark.parametrize("instant", ["restore", "held"])
def test_a_criu_that_fails_leaves_the_images_as_they_were(
    alpha: LabHost, ice: Ice, witness: int, instant: str
) -> None:  # fmt: skip
    """Before it has restored anything, that is undone; in its hold it is run once more from the same images."""
    saved(ice, witness)
    before = sums(alpha)
    run = ice("restore", ICE, before=f"python3 /root/programs/cut_short.py {instant} criu")
    assert sums(alpha) == before
    if instant == "restore":
        assert run.status == 33, run.explain()
        assert not alpha.alive(witness)
        run = ice("restore", ICE)
    assert run.status == 0, run.explain()
    right(alpha, witness)


@pytest.mark.long_on("vm")
@pytest.mark.parametrize("instant", ["dump", "commit asked", "resuming"])
def test_the_power_goes_meanwhile(alpha: LabHost, ice: Ice, witness: int, instant: str) -> None:
    """Before all of it is on disk the process has died with its host; from then on it is on ice, whoever knew."""
    command = f"save --json {witness} {ICE}"
    if instant == "resuming":
        saved(ice, witness)
        command = f"restore --json {ICE}"
    channel = alpha.start(f"python3 /root/programs/cut_short.py '{instant}' stand $(command -v migrate) {command}")
    until(lambda: alpha.run("test -e /run/stands", check=False).status == 0, "it does not come so far")
    power.cut(alpha)
    channel.close()
    run = ice("recover")
    assert run.status == 0, run.explain()
    assert not alpha.alive(witness)
    again = ice("restore", ICE)
    if instant == "dump":
        assert again.status == 24, again.explain()
        alpha.run(f"rm {LOG}")
        return
    assert again.status == 0, again.explain()
    right(alpha, witness)


def told(alpha: LabHost, pid: int, signal: str) -> str:
    """What the diary says once it has heard a signal."""
    alpha.run(f"rm -f /root/diary.said; kill -{signal} {pid}")
    until(lambda: alpha.run("test -s /root/diary.said", check=False).status == 0, "it does not answer")
    return alpha.run("cat /root/diary.said").out


def test_snapshots_of_a_process_that_runs_on(
    nothing_behind: None, started: Started, alpha: LabHost, ice: Ice, backend: str
) -> None:
    """Where memory is tracked the second has what has changed. Any of them is restored. 100 MiB, 1 % of it dirtied."""
    pid = started.launch("python3", "/root/programs/diary.py", "100", "1")
    until(lambda: alpha.run("test -s /root/diary.said", check=False).status == 0, "it does not start", 300)
    taken = []
    for time in range(3):
        assert told(alpha, pid, "USR1") == f"{time + 1} True"
        run = ice("snapshot", pid, ICE)
        assert run.status == 0, run.explain()
        taken += run.of("snapshot")
        assert alpha.alive(pid)
        if time == 1:  # whoever looks in between has what has changed since: the next one is whole
            ice("save", pid, "/var/ice-not", before="python3 /root/programs/cut_short.py 'commit asked' kill")
            settled(alpha)
            ice("recover")
            alpha.run("rm -rf /var/ice-not")
    parents = [one["parent"] for one in taken]
    assert parents == (["", taken[0]["id"], ""] if backend == "vm" else ["", "", ""])
    sizes = [one["bytes"] for one in taken]
    assert (sizes[1] <= 3 << 20) == (backend == "vm"), sizes
    assert min(sizes[0], sizes[2]) >= 100 << 20
    listed = ice("snapshots", ICE).of("on-ice")
    assert [(one["id"], one["pid"], one["size"], one["parent"]) for one in listed] == [
        (one["id"], pid, one["bytes"], one["parent"]) for one in taken
    ]
    refused = ice("restore", ICE, taken[0]["id"])
    assert refused.status == 22, refused.explain()
    for number in (1, 0, 2):
        alpha.run(f"kill -KILL {pid}")
        until(lambda: not alpha.alive(pid), "it does not die")
        again = ice("restore", ICE, taken[number]["id"])
        assert again.status == 0, again.explain()
        assert told(alpha, pid, "USR2") == f"{number + 1} True"
    other = ice("restore", ICE, taken[0]["id"], "-n")
    assert other.status == 22, other.explain()
    alpha.run(f"kill -KILL {pid}; rm -rf {ICE}/{taken[0]['id']} /root/diary.said")
    wrong = [one["wrong"] for one in ice("snapshots", ICE).of("on-ice")]
    assert wrong == ([f"it adds to {taken[0]['id']}, which is gone", ""] if backend == "vm" else ["", ""])
    if backend == "vm":
        assert ice("restore", ICE, taken[1]["id"]).status == 24


@pytest.mark.long_on("vm")
@pytest.mark.parametrize("instant", ["freeze", "dump"])
def test_a_snapshot_that_is_cut_short(alpha: LabHost, ice: Ice, witness: int, instant: str) -> None:
    """It runs on, whatever becomes of the snapshot."""
    ice("snapshot", witness, ICE, before=f"python3 /root/programs/cut_short.py '{instant}' kill")
    settled(alpha)
    until(lambda: alpha.run("pgrep -x criu", check=False).status != 0, "criu does not end")
    assert ice("recover").status == 0
    assert alpha.run(f"ls {ICE} 2>/dev/null", check=False).out == ""
    right(alpha, witness)


@pytest.fixture
def kept(nothing_behind: None, both_ways: None, beta: LabHost) -> Iterator[None]:
    """Nothing of it is on beta afterwards."""
    yield
    beta.run(f"rm -rf {ICE}")


@pytest.mark.long_on("vm")
@pytest.mark.parametrize("where", ["", "-n"])
def test_a_process_moves_and_its_images_are_kept(
    kept: None, alpha: LabHost, beta: LabHost, witness: int, migrate: Any, where: str
) -> None:
    """Where memory is tracked there are several rounds, and all of them are."""
    run = migrate("--copy-files", "--keep-images", ICE, *where.split(), str(witness), "beta")
    assert run.status == 0, run.explain()
    assert (run.report["outcome"], run.report["resume"], run.report["leftovers"]) == ("migrated", "eager", [])
    place = f"{ICE}/{run.report['id']}"
    rounds = [str(number) for number in range(1, len(run.report["rounds"]) + 1)]
    assert beta.run(f"ls {place}").out.split() == [*rounds, "manifest", "restored"]
    assert wait_for_sweeps(beta, 1)[-1][3:] == (0, 0)
    second = migrate("restore", ICE, on=beta)
    assert second.status == 22, second.explain()
    end = "pkill -KILL -x migrate-init" if where else f"pkill -KILL -s {witness}"
    beta.run(end)
    until(lambda: not beta.alive(run.report["target_pid"]), "it does not die")
    script = f"import json; print([f['size'] for f in json.load(open('{place}/manifest'))['tree']['files'] "
    script += f"if f['path'] == '{LOG}'][0])"
    size = int(beta.run(f'python3 -c "{script}"').out)
    beta.run(f"truncate -s {size} {LOG}")
    again = migrate("restore", ICE, on=beta)
    assert again.status == 0, again.explain()
    lines = wait_for_sweeps(beta, 2)
    assert [line[0] for line in lines] == list(range(len(lines)))
    assert {line[3:] for line in lines} == {(0, 0)}
    beta.run(f"pkill -KILL -x migrate-init; pkill -KILL -s {witness}", check=False)


@pytest.mark.long_on("vm")
def test_images_that_can_not_be_kept(
    kept: None, alpha: LabHost, beta: LabHost, witness: int, migrate: Any
) -> None:  # fmt: skip
    """A directory that others may write to, or in memory, is an error before anything is touched; one that can't
    be written to is a leftover of a process that runs."""
    beta.run(f"mkdir -m 777 {ICE}")
    run = migrate("--copy-files", "--keep-images", ICE, str(witness), "beta")
    assert run.status == 24, run.explain()
    run = migrate("check", "--copy-files", "--keep-images", "/dev/shm/ice", str(witness), "beta")
    assert [one["id"] for one in run.of("obstacle") if one["stops"]] == ["ice-volatile"], run.explain()
    beta.run(f"chmod 700 {ICE}; mount --bind {ICE} {ICE}; mount -o remount,bind,ro {ICE}")
    run = migrate("--copy-files", "--keep-images", ICE, str(witness), "beta")
    beta.run(f"umount {ICE}")
    assert run.status == 3, run.explain()
    assert f"the images were not kept in {ICE}" in run.report["leftovers"][0]
    assert beta.run(f"ls {ICE}").out == ""
    assert wait_for_sweeps(beta, 1)[-1][3:] == (0, 0)


@pytest.mark.long_on("vm")
def test_a_shell_and_its_job_get_a_new_terminal(screen: Any, alpha: LabHost, ice: Ice) -> None:
    """It leaves the old one; and --attach makes that of the restore the new one, as in a migration."""
    _, pid = shell(screen, alpha)
    run = ice("save", pid, ICE)
    assert [one["id"] for one in run.of("obstacle")] == ["terminal"], run.explain()
    assert ice("save", pid, ICE, "--detach").status == 0
    assert not alpha.alive(pid)
    now = screen(alpha, f"migrate restore --attach {ICE}")
    now.expect(rf"running again as pid {pid}: bash from .*\n")
    now.type("echo on $((6 * 7)) $$\r")
    now.expect(rf"on 42 {pid}\r")
    now.type("exit\r")
    now.expect("its terminal has ended")
    assert now.status == 0
    assert not alpha.alive(pid)
    detached = ice("restore", ICE)
    assert detached.status == 0, detached.explain()
    (restored,) = detached.of("restored")
    shown = screen(alpha, restored["terminal"])
    shown.type("echo again $((6 * 7))\r")
    shown.expect("again 42\r")
    shown.type("exit\r")
    until(lambda: not alpha.alive(pid), "it does not end")
