"""The fault grid's hand on one host of the lab: stops processes at named instants, finds victims, and does the harm.

    hand.py SOCKET

Agents come to SOCKET (agent/instants.py); all are let go at once, but for the first one at the instant that is to be
held. Orders are JSON lines on standard input, each answered by a line; `{"held": NAME, "pid": PID}` comes when somebody
stands at the instant. Standard library only; it ends with its input.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _is_at_it(pid: int) -> bool:
    """Whether it has still to take a SIGTERM, or is busy: on a busy machine it may else go on first with what comes
    in after the signal, and the signal with that be another instant's."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return False
    pending = int(lines["ShdPnd"], 16) | int(lines["SigPnd"], 16)
    return bool(pending >> (signal.SIGTERM - 1) & 1) or lines["State"].split()[0] == "R"


def arguments_of(pid: int) -> list[str]:
    """A process's command line; empty for a kernel thread, a zombie, and one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    return []


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty for one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def status_of(path: str) -> dict[str, str]:
    """The fields of a process's or thread's `status`; empty for one that is gone."""
    with contextlib.suppress(OSError):
        lines = Path(path, "status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def processes() -> Iterator[tuple[int, list[str]]]:
    """PID and command line of all, the oldest first."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := stat_of(int(name))):
            found.append((int(fields[19]), int(name)))
    for _, pid in sorted(found):
        if words := arguments_of(pid):
            yield pid, words


def is_criu(words: list[str], command: str) -> bool:
    """Whether this is criu with this command; the shell that waits for its images counts: it becomes criu."""
    names = [word for word in words if word != "--images-dir"]
    return any(os.path.basename(first) == "criu" and second == command for first, second in zip(names, names[1:]))


def parent_of(pid: int) -> int:
    fields = stat_of(pid)
    return int(fields[1]) if fields else 0


def victims(what: str, migrate: int) -> list[int]:
    """The PIDs of a kind of victim on this host, the oldest first; `migrate` is its PID, where it is known."""
    found: list[int] = []
    for pid, words in processes():
        is_ours = {
            "migrate": pid == migrate,
            "agent": "serve" in words and "--build" in words and os.path.basename(words[0]).startswith("python"),
            "dump": is_criu(words, "dump") or is_criu(words, "pre-dump"),
            "restore": is_criu(words, "restore"),
            "page server": is_criu(words, "page-server"),
            "hook": len(words) == 2 and words[1].startswith("/var/lib/migrate/") and words[1].endswith("/hold"),
            "ssh": os.path.basename(words[0]) == "ssh" and parent_of(pid) == migrate,
            "warden": "pager" in words and words[-1].startswith("/var/lib/migrate/"),
        }
        if is_ours.get(what if what != "pager" else "warden", False):
            found.append(pid)
    if what == "pager":
        return found[1:2]
    if what in ("dump", "restore", "warden", "page server", "hook"):
        return found[:1]
    return found


class Hand:
    """What one connection of the grid's runner orders."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(16)
        self._hold = ""
        self._held: socket.socket | None = None
        self._seen: list[str] = []
        self._migrate = 0
        self._filled: list[str] = []

    def serve(self) -> None:
        """Until the end of the orders."""
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        buffered = b""
        while True:
            for key, _ in selector.select():
                if key.fileobj is self._listener:
                    self._arrived()
                    continue
                data = os.read(0, 65536)
                if not data:
                    return
                *lines, buffered = (buffered + data).split(b"\n")
                for line in lines:
                    order = json.loads(line)
                    name = order.pop("do")
                    self._say({"answer": getattr(self, f"do_{name}")(**order)})

    def _say(self, event: dict[str, Any]) -> None:
        os.write(1, json.dumps(event).encode() + b"\n")

    def _arrived(self) -> None:
        peer, _ = self._listener.accept()
        pid, _, name = peer.makefile().readline().strip().partition(" ")
        self._seen.append(name)
        if name.startswith("phase "):
            self._migrate = int(pid)
        if name == self._hold and self._held is None:
            self._held = peer
            self._say({"held": name, "pid": int(pid)})
        else:
            self._let_go(peer)

    def _let_go(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):  # it was killed where it stood
            peer.sendall(b"\n")

    # --- orders ---

    def do_hold(self, name: str) -> None:
        """Stop whoever comes to this instant next; "" for nobody."""
        self.do_go()
        self._hold = name
        self._seen.clear()

    def do_go(self) -> None:
        """Let go of whoever is held."""
        if self._held is not None:
            self._let_go(self._held)
            self._held = None
            self._hold = ""

    def do_seen(self) -> list[str]:
        """The instants that somebody came to since the last `hold`."""
        return self._seen

    def do_victims(self, what: str) -> list[int]:
        """See `victims`."""
        return victims(what, self._migrate)

    def do_signal(self, pids: list[int], number: int) -> int:
        """Signal processes; how many there were."""
        count = 0
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                count += 1
        end = time.monotonic() + 2  # a stopped one, or one that has it blocked, takes it later or never
        while number == signal.SIGTERM and any(map(_is_at_it, pids)) and time.monotonic() < end:
            time.sleep(0.005)
        return count

    def do_limit(self, pids: list[int]) -> None:
        """No more address space for these than they have now."""
        for pid in pids:
            size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(pid, resource.RLIMIT_AS, (size, size))

    def do_copies(self, token: str) -> list[tuple[int, str]]:
        """PID and state of each process with this word in its command line, but for zombies and what is on its way out
        (PF_EXITING, 4, among its flags)."""
        found = []
        for pid, words in processes():
            fields = stat_of(pid)
            if token in words and fields and fields[0] not in "ZX" and not int(fields[6]) & 4:
                found.append((pid, fields[0]))
        return found

    def do_frozen(self, token: str) -> int:
        """0 until criu has seized every thread of it, and waits itself; then how often it has waited so far: criu is
        half-way when that grows no more."""
        dumping = victims("dump", 0)
        tasks = [
            f"/proc/{pid}/task/{task}" for pid, _ in self.do_copies(token) for task in os.listdir(f"/proc/{pid}/task")
        ]
        if not dumping or not tasks or any(status_of(task).get("TracerPid") != str(dumping[0]) for task in tasks):
            return 0
        criu = status_of(f"/proc/{dumping[0]}")
        return int(criu["voluntary_ctxt_switches"]) if criu.get("State", "").startswith("S") else 0

    def do_stands(self, pid: int) -> bool:
        """Whether this process is there and waits for something."""
        return stat_of(pid)[:1] == ["S"]

    def do_cut(self, peer: str) -> int:
        """End the SSH sessions of a peer here: both ends see the connection close. How many processes that were."""
        said = subprocess.run(
            ["ss", "-Htnp", "state", "established", "sport", "=", ":22", "and", "dst", peer],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        pids = {int(word.split(",")[0]) for word in said.split("pid=")[1:]}
        return self.do_signal(sorted(pids), 9)

    def do_black_hole(self, peer: str) -> None:
        """Nothing comes from a peer or goes to it any more, without a word."""
        rules = "".join(
            f"chain {hook} {{ type filter hook {hook} priority -400; ip {way} {peer} drop; }}\n"
            for hook, way in (("input", "saddr"), ("output", "daddr"))
        )
        subprocess.run(["nft", "-f", "-"], input=f"table inet faults {{\n{rules}}}\n", text=True, check=True)

    def do_fill(self, directory: str) -> int:
        """Leave no room in the file system of a directory (the newest of those that a pattern names); bytes taken."""
        places = sorted(Path("/").glob(directory.lstrip("/")), key=lambda place: place.stat().st_mtime)
        path = places[-1] / "fill"
        self._filled.append(str(path))
        size = 0
        with open(path, "wb", buffering=0) as file:
            for step in (64 << 20, 1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), size, step)
                        size += step
        return size

    def do_heal(self) -> None:
        """Take back what was done to this host."""
        for path in self._filled:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self._filled.clear()
        subprocess.run(["nft", "delete", "table", "inet", "faults"], capture_output=True, check=False)

    def do_clear(self) -> None:
        """End and remove whatever a cell that failed has left here, so that it fails alone."""
        kinds = ("migrate", "agent", "ssh", "hook", "dump", "restore", "page server", "warden")
        for _ in range(5):
            pids = [pid for kind in kinds for pid in victims(kind, self._migrate)]
            pids += [pid for pid, words in processes() if words[0] == "migrate-init"]
            if not pids:
                break
            self.do_signal(pids, signal.SIGKILL)
            time.sleep(0.5)
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if (place := line.split()[1]).startswith("/run/migrate/"):
                subprocess.run(["umount", "-l", place], check=True)
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
        for line in tables.splitlines():
            if "CRIU" in line:
                subprocess.run(["nft", "delete", *line.split()], check=True)
        for pattern in ("run/migrate/*", "var/lib/migrate/*", "tmp/.criu*"):
            for path in Path("/").glob(pattern):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def do_unfinished(self) -> dict[str, str]:
        """The migrations whose journal here does not end in DONE: name -> what it ends in."""
        found = {}
        for path in Path("/var/lib/migrate").glob("*/journal"):
            lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            records = [line["record"] for line in lines if line["record"].isupper()]
            if records[-1:] != ["DONE"]:
                found[path.parent.name] = records[-1] if records else ""
        return found

    def do_step(self, seconds: float) -> None:
        """Set the clock, so many seconds from what it says."""
        time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)

    def do_totals(self) -> dict[str, int]:
        """How much there is on this host of what must not grow, our own sshd sessions and all that is read included."""
        pids = [pid for pid, _ in processes()]
        descriptors = pages = 0
        for pid in pids:
            with contextlib.suppress(OSError):
                descriptors += len(os.listdir(f"/proc/{pid}/fd"))
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        kept = [path for path in Path("/var/lib/migrate").rglob("*") if not path.is_dir()]
        temporary = sum(len(names) for top in ("/run", "/tmp", "/dev/shm") for _, _, names in os.walk(top))
        return {
            "processes": len(pids),
            "descriptors": descriptors,
            "memory, KiB": pages * resource.getpagesize() // 1024,
            "temporary files": temporary,
            "journals": sum(path.name == "journal" for path in kept),
            "reports": sum(path.parent.name == "reports" for path in kept),
            "other files kept": sum(path.name != "journal" and path.parent.name != "reports" for path in kept),
            "cgroups": sum(len(folders) for _, folders, _ in os.walk("/sys/fs/cgroup")),
            "unix sockets": len(Path("/proc/net/unix").read_text().splitlines()),
        }


if __name__ == "__main__":
    Hand(Path(sys.argv[1])).serve()
