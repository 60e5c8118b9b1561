"""Control of a lab's hosts: OpenSSH's client on a loopback port, with the lab's own key and known_hosts."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Sequence

from labkit import record
from labkit.run import LabError, run


def command(lab: record.Lab, host: str, remote: Sequence[str] = (), *, user: str = "root") -> list[str]:
    """The ssh command for this host. Nothing of the user's own ssh configuration plays in."""
    options = {
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": str(lab.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "ConnectTimeout": "20",
        "LogLevel": "ERROR",
    }
    words = ["ssh", "-F", "none", "-i", str(lab.private_key), "-p", str(lab.hosts[host].control_port)]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    return [*words, f"{user}@{record.CONTROL_ADDRESS}", *remote]


def run_on(lab: record.Lab, host: str, remote: Sequence[str], *, stdin: bytes = b"") -> str:
    """Runs a command on the host to its end; remote words are joined by spaces, as ssh does."""
    return run(command(lab, host, remote), stdin=stdin)


def banner(port: int) -> bool:
    """Does an sshd answer there? A forwarded port accepts before there is anything behind it."""
    with contextlib.suppress(OSError), socket.create_connection((record.CONTROL_ADDRESS, port), timeout=1) as peer:
        return peer.recv(4) == b"SSH-"
    return False


def wait_ready(lab: record.Lab, timeout: float) -> None:
    """Until both hosts run a command."""
    deadline = time.monotonic() + timeout
    for name, host in lab.hosts.items():
        while not banner(host.control_port):
            if not host.is_running:
                raise LabError(f"{name} died while it started", hint=f"see {lab.folder / (name + '.log')}")
            if time.monotonic() > deadline:
                raise LabError(
                    f"{name}: no sshd answers after {timeout:.0f} s", hint=f"see {lab.folder / (name + '.log')}"
                )
            time.sleep(0.02)
    waiting = [
        subprocess.Popen(command(lab, name, ["true"]), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for name in lab.hosts
    ]
    for name, client in zip(lab.hosts, waiting):
        _, said = client.communicate(timeout=max(1.0, deadline - time.monotonic()))
        if client.returncode != 0:
            raise LabError(f"{name}: ssh does not get in: {said.decode(errors='replace').strip()}")
