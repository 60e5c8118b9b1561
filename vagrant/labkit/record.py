"""What is written down about a lab: where its hosts are, and how to take it away.

The record is made before anything is started and rewritten as things come up, so that `down`, or the next
`up` after a crash, finds what there is to clean.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from labkit import cache, processes
from labkit.run import LabError

HOSTS = ("alpha", "beta")
# Each lab's private network is its own, so all of them can use the same addresses. Not .1: Vagrant gives that to
# the machine.
PRIVATE_ADDRESSES = {"alpha": "10.77.0.11", "beta": "10.77.0.12"}
CONTROL_ADDRESS = "127.0.0.1"
DEFAULT_NAME = "default"


@dataclasses.dataclass
class Host:
    """One of the two hosts, and the process on this machine whose life is the host's."""

    name: str
    control_port: int
    process: processes.Identity | None = None

    @property
    def is_running(self) -> bool:
        """Its process is there, and is not another one with the same number."""
        return self.process is not None and processes.is_alive(self.process)


@dataclasses.dataclass
class Lab:
    """Two hosts, and the folder with their disks, keys and logs."""

    name: str
    backend: str
    hosts: dict[str, Host] = dataclasses.field(default_factory=dict)
    accelerator: str = ""
    releases: dict[str, str] = dataclasses.field(default_factory=dict)  # of Debian, by host
    memory: str = ""  # of each virtual machine, in QEMU's words; the usual, if empty
    project: str = ""  # digest of the source that is installed on alpha
    is_ready: bool = False  # the start came to its end

    @property
    def folder(self) -> Path:
        """The lab's own folder; it is gone when the lab is down."""
        return folder_of(self.name)

    @property
    def private_key(self) -> Path:
        """Lets this machine in on both hosts, as root and as admin."""
        return self.folder / "id_lab"

    @property
    def known_hosts(self) -> Path:
        """The control addresses with the hosts' keys."""
        return self.folder / "known_hosts"

    @property
    def state(self) -> str:
        """up, down, or partial (a host died, or a start was cut short)."""
        running = [host.is_running for host in self.hosts.values()]
        if self.is_ready and all(running):
            return "up"
        return "partial" if any(running) or self.folder.exists() else "down"

    def save(self) -> None:
        """Writes the record; a reader sees the old one or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / "lab.json.new"
        new.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        new.replace(self.folder / "lab.json")

    def status(self) -> dict[str, Any]:
        """What `vagrant/lab status --json` prints; the live tests read it."""
        return {
            "name": self.name,
            "backend": self.backend,
            "state": self.state,
            "accelerator": self.accelerator,
            "releases": self.releases,
            "folder": str(self.folder),
            "hosts": {
                name: {
                    "state": "up" if host.is_running else "down",
                    "control_address": CONTROL_ADDRESS,
                    "control_port": host.control_port,
                    "user": "root",
                    "admin": "admin",
                    "private_key": str(self.private_key),
                    "known_hosts": str(self.known_hosts),
                    "private_address": PRIVATE_ADDRESSES[name],
                    "machine_pid": host.process.pid if host.process else None,
                }
                for name, host in self.hosts.items()
            },
        }


def folder_of(name: str) -> Path:
    """Where the lab with this name lives."""
    if not name or not all(letter.isalnum() or letter in "-_" for letter in name):
        raise LabError(f"not a lab's name: {name!r}", hint="letters, digits, - and _")
    return cache.place() / "labs" / name


def load(name: str) -> Lab | None:
    """The lab with this name, if there is one, running or not."""
    file = folder_of(name) / "lab.json"
    if not file.exists():
        return None
    said = json.loads(file.read_text())
    hosts = {}
    for key, host in said.pop("hosts").items():
        process = processes.Identity(**host["process"]) if host["process"] else None
        hosts[key] = Host(host["name"], host["control_port"], process)
    return Lab(hosts=hosts, **said)


def must_run(name: str) -> Lab:
    """The lab with this name, or an error that says how to get it."""
    lab = load(name)
    if lab is None or lab.state != "up":
        raise LabError(f"lab '{name}' is {lab.state if lab else 'down'}", hint=f"vagrant/lab up --name {name}")
    return lab
