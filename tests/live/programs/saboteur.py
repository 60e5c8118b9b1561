"""`migrate`, broken on cue: runs the real command line on the source and does one harm when a phase begins.

    saboteur.py --at PHASE [--delay SECONDS] --act ACT -- migrate arguments…

Runs with the interpreter that `migrate` is installed in. The phase's own first act waits until the harm is done, unless
`--delay` puts it that much later, into the middle of the phase.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from migrator import cli, hosts, migration
from migrator.phases import Phase


def children() -> list[int]:
    """Processes that are ours."""
    own = os.getpid()
    return [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]


def source_agents() -> list[int]:
    """The local agent: a child of ours that runs `agent serve`."""
    found = []
    for pid in children():
        with contextlib.suppress(OSError):  # a child that has ended since
            if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def on_target(script: str) -> None:
    """Run a script on beta."""
    done = subprocess.run(["ssh", "-n", "beta", script], capture_output=True, text=True, check=False)
    print(f"saboteur: {script!r} -> {done.returncode} {done.stdout}{done.stderr}", file=sys.stderr)


def kill_source_agent() -> None:
    for pid in source_agents():
        os.kill(pid, signal.SIGKILL)


def kill_source_criu() -> None:
    subprocess.run(["pkill", "-KILL", "-x", "criu"], check=True)
    while (
        subprocess.run(["pgrep", "-x", "-r", "D,R,S,T,t", "criu"], stdout=subprocess.DEVNULL, check=False).returncode
        == 0
    ):
        time.sleep(0.001)  # a kill takes effect when the kernel comes to it


def kill_target_criu() -> None:
    on_target("pkill -KILL -x criu")


def kill_target_maker() -> None:
    """The process that has made a namespace on the target, and waits for criu there."""
    on_target("pkill -KILL -f '[p]yz namespace '")


def kill_source_nsenter() -> None:
    """What criu has entered a namespace with on the source, and is waited for by."""
    subprocess.run(["pkill", "-KILL", "-x", "nsenter"], check=True)


def kill_target_agent() -> None:
    # [s]erve: the shell that runs this has the pattern in its own arguments
    on_target("pkill -KILL -f 'agent-.*[s]erve'")


def cut_link() -> None:
    """Shut the TCP connection to beta's sshd down."""
    for name in os.listdir("/proc/self/fd"):
        if not os.path.exists(f"/proc/self/fd/{name}") or not os.readlink(f"/proc/self/fd/{name}").startswith(
            "socket:"
        ):
            continue
        duplicate = socket.socket(fileno=os.dup(int(name)))
        try:
            if duplicate.family in (socket.AF_INET, socket.AF_INET6) and duplicate.getpeername()[1] == 22:
                duplicate.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue
        finally:
            duplicate.close()


def cut_link_for_good() -> None:
    """The connection to beta is shut down, and no other comes about until the table `cut` is taken away here."""
    cut_link()
    rules = "add table inet cut; add chain inet cut out { type filter hook output priority 0; }; "
    rules += "add rule inet cut out tcp dport 22 reject with tcp reset"
    subprocess.run(["nft", rules], check=True)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def interrupt_twice() -> None:
    interrupt()
    asyncio.get_running_loop().call_later(0.02, interrupt)


def fill_images() -> None:
    on_target("for d in /run/migrate/*/; do cat /dev/zero >$d/fill; done 2>/dev/null; df /run/migrate/*/ | tail -1")


def kill_restoring_criu() -> None:
    """Kill the criu that is to restore on the target, and waits for its images now, as soon as the root is there.

    A restore can be over in a few milliseconds, so the waiting is the shell's alone: it starts no process for a look.
    """
    # the newest: what has made a namespace for it waits for it. There the root is seen in the namespace's own /proc
    find = "p=$(pgrep -n -f '[c]riu restore'); i=$(pgrep -x migrate-init); echo ready"
    wait = f"until [ -d ${{i:+/proc/$i/root}}/proc/{sys.argv[-2]} ]; do [ -d /proc/$p ] || exit; done"
    process = subprocess.Popen(["ssh", "-n", "beta", f"{find}; {wait}; kill -KILL $p"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()


def list_ports() -> None:
    """No harm: what listens on either host goes to /run/ports there."""
    script = "ss -Hltn | awk '{print $4}' | sort >/run/ports"
    subprocess.run(["sh", "-c", script], check=True)
    on_target(script)


def _kill_one_by_one(which: str) -> None:
    """While the pager's pair lives on the target, kill one of the two every tenth of a second: oldest or newest."""
    script = (
        "echo ready; while read -t 0.1 none; [ $? -gt 128 ]; do "  # until the end of its input
        f"kill -KILL $(pgrep {which} -f '[p]ager /run/migrate') 2>/dev/null && echo killed; done"
    )
    process = subprocess.Popen(["ssh", "beta", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    atexit.register(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    killed = process.communicate()[0].count(b"killed")
    print(f"saboteur: {killed} killed", file=sys.stderr)


def kill_pagers() -> None:
    _kill_one_by_one("-n")


def kill_wardens() -> None:
    _kill_one_by_one("-o")


def kill_pair() -> None:
    """Kill pager and warden at the same instant, as soon as the tree runs. To be said before that.

    Stopped first: neither may replace the other in between.
    """
    script = (
        "journal=$(ls -td /var/lib/migrate/*/ | head -1)journal; pair=$(pgrep -f '[p]ager /run/migrate'); echo ready; "
        "until grep -q RESUMED $journal; do :; done; kill -STOP $pair && kill -KILL $pair && echo killed"
    )
    process = subprocess.Popen(["ssh", "-n", "beta", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    atexit.register(_end, process)


def kill_self() -> None:
    """`migrate` itself dies; its agents see the end of their input."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_everything() -> None:
    """Everybody who knows of the migration dies at once; criu and its hooks stay."""
    kill_target_agent()
    kill_source_agent()
    kill_self()


def take_pid() -> None:
    """Start a process on the target with the root's PID."""
    pid = int(sys.argv[-2])
    # a thread or process that starts there at the same time may get the number instead: then once more
    once = f"echo {pid - 1} >/proc/sys/kernel/ns_last_pid; sleep 300 >/dev/null 2>&1 </dev/null &"
    on_target(f"for i in 1 2 3 4 5 6; do {once} [ $! = {pid} ] && echo taken && break; kill $!; done")


def open_late() -> None:
    """No harm: the process opens another file, once it sees that it shall (see test_files.py)."""
    Path("/root/files/go").touch()
    until = time.monotonic() + 60
    while not os.path.exists("/root/files/late") and time.monotonic() < until:
        time.sleep(0.001)


def kill_tree() -> None:
    """The process that is to be moved dies by another hand."""
    os.kill(int(sys.argv[-2]), signal.SIGKILL)


def kill_child() -> None:
    """A child of the process that is to be moved dies."""
    subprocess.run(["pkill", "-KILL", "-P", sys.argv[-2]], check=True)


def migrate_again() -> None:
    """A second `migrate` of the same tree at the same time; what it says goes to /run/second."""
    words = [sys.executable, "-m", "migrator", "--json", *sys.argv[-2:]]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    Path("/run/second").write_text(f"{done.returncode}\n{done.stdout}")


async def linger() -> None:
    """No harm: stay in this phase, with all that stands in it, until /run/go is there."""
    Path("/run/lingers").write_text(f"{os.getpid()}\n")
    while not os.path.exists("/run/go"):
        await asyncio.sleep(0.02)


ACTS = {act.__name__.replace("_", "-"): act for act in (
    kill_source_agent, kill_source_criu, kill_source_nsenter, kill_target_agent, cut_link, cut_link_for_good, interrupt,
    interrupt_twice, fill_images, kill_child, kill_everything, kill_pagers, kill_pair, kill_restoring_criu, kill_self,
    kill_target_criu, kill_target_maker, kill_tree, kill_wardens, linger,
    list_ports, migrate_again, open_late, take_pid,
)}  # fmt: skip


class Saboteur:
    """An observer that passes everything on, and does its harm when its phase comes."""

    def __init__(self, observer: Any, at: Phase, act: str, delay: float, before: bool) -> None:
        self._observer = observer
        self._at = at
        self._act = act
        self._delay = delay
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._observer, name)

    async def phase(self, phase: Phase) -> None:
        if phase is not self._at:
            await self._observer.phase(phase)
            return
        if not self._before:
            await self._observer.phase(phase)
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, ACTS[self._act])
        else:
            if (acting := ACTS[self._act]()) is not None:
                await acting
            await asyncio.sleep(0)
        if self._before:
            await self._observer.phase(phase)


def main() -> int:
    split = sys.argv.index("--")
    parser = argparse.ArgumentParser()
    parser.add_argument("--at", type=Phase, required=True)
    parser.add_argument("--act", choices=sorted(ACTS), required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--before", action="store_true", help="before the command line hears of the phase")
    parser.add_argument("--pid", type=int, default=0, help="in a drain: of this process alone")
    options = parser.parse_args(sys.argv[1:split])

    def sabotaged(honest: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def act(order: hosts.Order, observer: Any, *more: Any) -> Any:
            if options.pid in (0, order.pid):
                observer = Saboteur(observer, options.at, options.act, options.delay, options.before)
            return await honest(order, observer, *more)

        return act

    names = ("move",) if options.pid else ("migrate", "check")
    vars(migration).update({name: sabotaged(getattr(migration, name)) for name in names})
    return cli.main(sys.argv[split + 1 :])


if __name__ == "__main__":
    sys.exit(main())
