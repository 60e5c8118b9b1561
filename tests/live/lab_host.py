"""One host of the lab, over paramiko: another SSH client than the product's, so that they do not share a bug."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko

PROJECT = Path(__file__).resolve().parents[2]
PROGRAMS = PROJECT / "tests" / "live" / "programs"


@dataclasses.dataclass(frozen=True)
class Done:
    """A command that ran on a host."""

    status: int
    out: str
    err: str


class LabHost:
    """alpha or beta."""

    def __init__(self, name: str, backend: str, facts: dict[str, Any]) -> None:
        self.name = name
        self.backend = backend
        self.slow = 10 if backend == "vm" else 1
        self._facts = facts
        self._client = paramiko.SSHClient()
        self._connect()

    def _connect(self) -> None:
        facts = self._facts
        self._client.load_host_keys(facts["known_hosts"])
        self._client.set_missing_host_key_policy(paramiko.RejectPolicy())
        self._client.connect(
            facts["control_address"],
            port=facts["control_port"],
            username=facts["user"],
            key_filename=facts["private_key"],
            look_for_keys=False,
            allow_agent=False,
            timeout=60,
            banner_timeout=120,
        )

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def reconnect(self) -> None:
        """Connect again, to a host that has rebooted. Raises what paramiko raises as long as it does not answer."""
        self._client.close()
        self._client = paramiko.SSHClient()
        self._connect()

    def versions(self) -> dict[str, str]:
        """What decides on a host, by name."""
        told = self.run("uname -r; criu --version | sed -n 's/Version: //p'; python3 -V | cut -d' ' -f2").out.split()
        return dict(zip(("kernel", "criu", "python"), told, strict=True))

    def start(self, command: str, pty: bool = False) -> paramiko.Channel:
        """Start a command on a channel of its own."""
        transport = self._client.get_transport()
        assert transport is not None
        channel = transport.open_session()
        if pty:
            channel.get_pty(width=120, height=40)
        channel.exec_command(command)
        return channel

    def run(self, command: str, *, stdin: bytes = b"", check: bool = True, seconds: float = 300) -> Done:
        """Run a command to its end, and read what it said to its end.

        sshd reports the exit status as soon as the command is gone, perhaps before the last of its output: only
        the end of the stream is the end. A child left in the background may hold that open, so a second without a
        word after the status is taken for the end as well.
        """
        channel = self.start(command)
        channel.settimeout(seconds)
        if stdin:
            channel.sendall(stdin)
        channel.shutdown_write()
        out, err = bytearray(), bytearray()
        heard = time.monotonic()
        deadline = heard + seconds
        while True:
            moved, ended = False, channel.eof_received
            while channel.recv_ready():
                out += channel.recv(1 << 20)
                moved = True
            while channel.recv_stderr_ready():
                err += channel.recv_stderr(1 << 20)
                moved = True
            if moved:
                heard = time.monotonic()
            elif channel.exit_status_ready() and (ended or time.monotonic() > heard + 1):
                break
            else:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.name}: {command!r} is not done after {seconds} s")
                time.sleep(0.005)
        done = Done(channel.recv_exit_status(), out.decode(errors="replace"), err.decode(errors="replace"))
        channel.close()
        if check and done.status != 0:
            raise AssertionError(f"{self.name}: {command!r} ended with {done.status}:\n{done.out}\n{done.err}")
        return done

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Write a file."""
        self.run(f"cat >{shlex.quote(path)} && chmod {mode:o} {shlex.quote(path)}", stdin=content)

    def read(self, path: str) -> str:
        """Read a file."""
        return self.run(f"cat {shlex.quote(path)}").out

    def alive(self, pid: int) -> bool:
        """Whether a process is there, no zombie, and not on its way out (PF_EXITING, 4, among its flags)."""
        words = self.run(f"cat /proc/{pid}/stat 2>/dev/null", check=False).out.rpartition(")")[2].split()
        return bool(words) and words[0] not in "ZX" and not int(words[6]) & 4

    def state(self, pid: int) -> str:
        """The letter of a process's state; "" where there is none."""
        words = self.run(f"cat /proc/{pid}/stat 2>/dev/null", check=False).out.rpartition(")")[2].split()
        return words[0] if words else ""

    def launch(self, arguments: list[str], *, cwd: str = "/", output: str = "/dev/null") -> int:
        """Start a program in a session of its own, with nothing inherited but null devices; its PID."""
        # the descriptors above 2 that the lab's shell may have would keep the dump from working;
        # the pipe ends with the exec: before that, the PID is a Python in our session
        starter = (
            "import os,sys\n"
            "os.closerange(3,1024); started,starting=os.pipe()\n"
            "pid=os.fork()\n"
            "if pid: os.close(starting); os.read(started,1); print(pid, flush=True); os._exit(0)\n"
            "os.setsid(); os.chdir(sys.argv[1])\n"
            "null=os.open('/dev/null',os.O_RDWR); out=os.open(sys.argv[2],os.O_WRONLY|os.O_CREAT|os.O_APPEND)\n"
            "os.dup2(null,0); os.dup2(out,1); os.dup2(out,2)\n"
            "[os.close(f) for f in {null,out} if f>2]\n"
            "os.execvp(sys.argv[3],sys.argv[3:])\n"
        )
        words = ["python3", "-c", starter, cwd, output, *arguments]
        return int(self.run(shlex.join(words)).out)

    def seconds_ahead(self) -> float:
        """How far this host's real-time clock is ahead of ours, within some ms."""
        best = (1e9, 0.0)
        for _ in range(5):
            before = time.time()
            theirs = float(self.run("date +%s.%N").out)
            after = time.time()
            best = min(best, (after - before, theirs - (before + after) / 2))
        return best[1]

    def snapshot(self) -> dict[str, set[str]]:
        """What "nothing behind" compares (DESIGN): taken before and after, the two must be equal."""
        script = r"""
        echo '== processes'
        ps -eo comm= | grep -vE '^(ps|sh|bash|sort|sshd.*|grep|cat|sudo|kworker.*|systemd-timedat.*)$' | sort
        echo '== mounts'; awk '{print $1, $2, $3}' /proc/self/mounts | sort
        echo '== cgroups'; find /sys/fs/cgroup -mindepth 1 -type d 2>/dev/null | grep -v 'session-\|user-\|run-' | sort
        echo '== rules'; nft list ruleset 2>/dev/null; iptables-save 2>/dev/null | grep -v '^#' | sed 's/\[.*//'
        echo '== addresses'; ip -o address | awk '{print $2, $4}'
        echo '== images'; ls -A /run/migrate 2>/dev/null
        find /var/lib/migrate \( -name '*.img' -o -type p -o -name hold \) 2>/dev/null
        echo '== remaps'; find / -xdev -name 'link_remap.*' 2>/dev/null
        echo '== sockets'; awk 'NR > 1 && $8 ~ /^\// {print $8}' /proc/net/unix | sort -u
        echo '== litter'; ls -d /tmp/.criu* 2>/dev/null; true
        """
        found: dict[str, set[str]] = {}
        section: set[str] = set()
        counts: dict[str, int] = {}
        for line in self.run(script).out.splitlines():
            if line.startswith("== "):
                section = found.setdefault(line[3:], set())
                counts = {}
                continue
            # two of the same are two: the second one is another member of the set
            counts[line] = counts.get(line, 0) + 1
            section.add(f"{line} #{counts[line]}")
        return found


def status_of(name: str) -> dict[str, Any]:
    """What `vagrant/lab status` says of a lab that is up."""
    lab = [sys.executable, str(PROJECT / "vagrant" / "lab"), "status", "--name", name, "--json"]
    status: dict[str, Any] = json.loads(subprocess.run(lab, capture_output=True, text=True, check=True).stdout)
    return status


def bring_programs(hosts: tuple[LabHost, LabHost]) -> None:
    """Put the tests' programs on both hosts."""
    for host in hosts:
        host.run("mkdir -p /root/programs")
        for program in PROGRAMS.iterdir():
            if program.is_file():
                host.put(f"/root/programs/{program.name}", program.read_bytes(), 0o755)


def start_lab(name: str, backend: str) -> tuple[LabHost, LabHost]:
    """The two hosts of a lab that is up."""
    status = status_of(name)
    assert status["state"] == "up", f"lab {name} is {status['state']}: vagrant/lab up --name {name} --backend {backend}"
    assert status["backend"] == backend
    return LabHost("alpha", backend, status["hosts"]["alpha"]), LabHost("beta", backend, status["hosts"]["beta"])


def difference(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, tuple[list[str], list[str]]]:
    """What came and what went between two snapshots."""
    changes = {}
    for section in before:
        came, went = sorted(after[section] - before[section]), sorted(before[section] - after[section])
        if came or went:
            changes[section] = (came, went)
    return changes


def log_lines(text: str) -> list[tuple[int, float, int, int, int]]:
    """The witness's log: sequence, seconds, sweeps, bad pages, wrong answers. A torn line is an error."""
    lines = []
    for line in text.splitlines():
        assert re.fullmatch(r"\d+ \d+ \d+ \d+ \d+", line), f"torn line {line!r}"
        sequence, nanoseconds, sweeps, bad, wrong = map(int, line.split())
        lines.append((sequence, nanoseconds / 1e9, sweeps, bad, wrong))
    return lines


def whole_lines(text: str) -> str:
    """A growing log without the line being written: where a page of the file ends, a reader may see half a write."""
    return text[: text.rfind("\n") + 1]


LOG = "/root/witness.log"
"""Where witnesses write."""


def until(true: Callable[[], bool], message: str, seconds: float = 120) -> None:
    """Poll."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, message
        time.sleep(0.2)


def wait_for_log(host: LabHost, lines: int = 50, seconds: float = 300) -> None:
    """Until the witness is at work."""

    def written() -> int:
        return int(host.run(f"wc -l <{LOG} 2>/dev/null || echo 0", check=False).out or 0)

    until(lambda: written() >= lines, "the witness does not start", seconds * host.slow)


def wait_for_sweeps(host: LabHost, sweeps: int, seconds: float = 300) -> list[tuple[int, float, int, int, int]]:
    """Until the witness has looked at all of its memory so many times more; its whole log."""

    def last() -> int:
        return log_lines(whole_lines(host.run(f"tail -n 2 {LOG}").out))[-1][2]

    first = last()
    until(lambda: last() >= first + sweeps, "the witness does not go on verifying", seconds * host.slow)
    return log_lines(whole_lines(host.read(LOG)))


def gap(lines: list[tuple[int, float, int, int, int]]) -> float:
    """The longest pause that the witness saw, in seconds."""
    return max(later[1] - earlier[1] for earlier, later in zip(lines, lines[1:], strict=False))
