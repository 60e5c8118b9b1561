"""`vagrant/lab`: its arguments, and the order in which things are built, started and taken away."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

from labkit import cache, image, netns, packages, record, ssh, tree, vm
from labkit.run import LabError, say


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="vagrant/lab", description="Two hosts, alpha and beta, to migrate between.")
    commands = top.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--name", default=record.DEFAULT_NAME, help="which lab (default: %(default)s)")

    up = commands.add_parser("up", parents=[shared], help="build what is missing, and start both hosts")
    up.add_argument("--backend", choices=("vm", "netns"), default="vm", help="default: %(default)s")
    commands.add_parser("down", parents=[shared], help="stop both hosts and remove what they left")
    status = commands.add_parser("status", parents=[shared], help="where the hosts are")
    status.add_argument("--json", action="store_true", help="for programs")
    remote = commands.add_parser("ssh", parents=[shared], help="a shell, or a command, on a host")
    remote.add_argument("--user", default="root", choices=("root", "admin"))
    remote.add_argument("host", choices=record.HOSTS)
    remote.add_argument("words", nargs=argparse.REMAINDER, metavar="CMD")
    return top


def up(name: str, backend: str) -> record.Lab:
    """The lab with this name, running; what a crash left of it is cleaned first."""
    there = record.load(name)
    if there is not None and there.state == "up" and there.backend == backend:
        say(f"lab '{name}' is up already")
        return there
    if there is not None:
        say(f"clearing what is left of lab '{name}'")
        down(name)
    lab = record.Lab(name, backend)
    if backend == "netns":
        netns.require()
        with cache.lock("build"):
            images = image.built(tree.FOR_NETNS)
        began = time.monotonic()
        netns.start(lab, images)
        ssh.wait_ready(lab, netns.READY_TIMEOUT)
    else:
        vm.require()
        with cache.lock("build"):
            images = image.built(tree.FOR_VM)
            boot = vm.boot_files(tree.FOR_VM)
        began = time.monotonic()
        vm.start(lab, images, boot)
        ssh.wait_ready(lab, vm.READY_TIMEOUT)
    say(f"lab '{name}' ({backend}) is ready after {time.monotonic() - began:.1f} s")
    return lab


def down(name: str) -> None:
    """Nothing of the lab is left afterwards."""
    lab = record.load(name)
    if lab is None:
        say(f"lab '{name}' is down")
        return
    (netns if lab.backend == "netns" else vm).stop(lab)
    lab.forget()
    say(f"lab '{name}' is down")


def print_status(name: str, as_json: bool) -> int:
    """What `status` prints; the exit status says whether the lab is up."""
    lab = record.load(name)
    if as_json:
        print(json.dumps(lab.status() if lab else {"name": name, "state": "down", "hosts": {}}, indent=1))
    elif lab is None:
        print(f"{name}: down")
    else:
        print(f"{name}: {lab.state} ({lab.backend})")
        for host_name, host in lab.hosts.items():
            state = "up" if host.is_running else "down"
            print(f"  {host_name}: {state}, {record.PRIVATE_ADDRESSES[host_name]}, control port {host.control_port}")
    return 0 if lab is not None and lab.state == "up" else 1


def main() -> int:
    """Runs the command; a LabError becomes a message and status 1."""
    arguments = parser().parse_args()
    os.environ["PATH"] += os.pathsep + packages.SBIN
    try:
        if arguments.command == "up":
            up(arguments.name, arguments.backend)
        elif arguments.command == "down":
            down(arguments.name)
        elif arguments.command == "status":
            return print_status(arguments.name, arguments.json)
        elif arguments.command == "ssh":
            lab = record.must_run(arguments.name)
            return subprocess.run(
                ssh.command(lab, arguments.host, arguments.words, user=arguments.user), check=False
            ).returncode
    except LabError as error:
        say(str(error))
        if error.hint:
            say(f"hint: {error.hint}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
