"""`vagrant/lab`: its arguments, and the order in which things are built, started and taken away."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from labkit import (
    bench,
    cache,
    checks,
    demo,
    image,
    netns,
    packages,
    project,
    record,
    releases,
    seed,
    soak,
    ssh,
    tree,
    vm,
)
from labkit.run import LabError, say, step

PLACE = f"""
Everything that is built is kept in ${cache.PLACE_VARIABLE}, by default ~/.cache/migrate-lab, and made again when its
recipe changes. Several labs can run side by side; --name tells them apart.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="vagrant/lab", description="Two hosts, alpha and beta, to migrate between.", epilog=PLACE
    )
    commands = top.add_subparsers(dest="command", required=True)
    backend = argparse.ArgumentParser(add_help=False)
    backend.add_argument("--backend", choices=("vm", "netns"), default="vm", help="default: %(default)s")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default=record.DEFAULT_NAME, help="which lab (default: %(default)s)")
    keep = argparse.ArgumentParser(add_help=False)
    keep.add_argument("--keep", action="store_true", help="leave the hosts up afterwards")

    show = commands.add_parser(
        "demo", parents=[backend, keep], help="from nothing: migrate a busy process, show it alive"
    )
    show.add_argument("--name", default="demo", help="which lab (default: %(default)s)")
    test = commands.add_parser(
        "test", help="from nothing: all checks and tests; other arguments go to pytest", allow_abbrev=False
    )
    test.add_argument("--all", action="store_true", dest="everything", help="also what is too long for CI")
    test.add_argument("--backend", choices=checks.BACKENDS, help="live tests on this kind of lab only")
    test.add_argument(
        "--faults", choices=("slice", "all"), default="slice",
        help="the fault grid: what CI runs, or all of it, which is kept as tests/live/faults/GRID.md",
    )  # fmt: skip
    measured = commands.add_parser("bench", help="from nothing: measure migrations, beside the usual ways")
    measured.add_argument("--backend", choices=bench.BACKENDS, help="default: one after the other")
    measured.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    measured.add_argument("--json", action="store_true", help="one object a row instead of the table")
    measured.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="these only, e.g. 'by hand' ours")
    measured.add_argument("--picture", type=Path, metavar="FILE", help="where the SVG goes")
    soaked = commands.add_parser(
        "soak", help="from nothing: move a process to and fro; nothing may be missing, or grow"
    )
    soaked.add_argument("--backend", choices=("vm", "netns"), default="netns", help="default: %(default)s")
    soaked.add_argument("--hops", type=positive, default=200, metavar="N", help="how often (default: %(default)s)")
    fuzz = commands.add_parser("fuzz", help="every parser of foreign bytes against made up ones, led by coverage")
    fuzz.add_argument("--runs", help="inputs of all together, however long that takes")
    fuzz.add_argument("--seconds", help="for each parser (default: 2)")
    fuzz.add_argument("names", nargs="*", metavar="NAME", help="these parsers only")
    raised = commands.add_parser("up", parents=[backend, named], help="build what is missing, and start both hosts")
    for host in record.HOSTS:
        raised.add_argument(f"--{host}", metavar="RELEASE", default="", help=f"Debian's release on {host}")
    between = commands.add_parser("releases", help="hosts of several Debian releases, with themselves and each other")
    between.add_argument("pairs", nargs="*", metavar="SOURCE:TARGET", help="these only, e.g. bookworm:trixie")
    between.add_argument("--python", action="store_true", help="bullseye's python3 on the target, and no pairs")
    commands.add_parser("down", parents=[named], help="stop both hosts and remove what they left")
    status = commands.add_parser("status", parents=[named], help="where the hosts are")
    status.add_argument("--json", action="store_true", help="for programs")
    commands.add_parser("install", parents=[named], help="put the working tree's state of the project on alpha")
    keys = commands.add_parser("keys", help="keys and names for two hosts, for the Vagrantfile")
    keys.add_argument("folder", type=Path)
    remote = commands.add_parser("ssh", parents=[named], help="a shell, or a command, on a host")
    remote.add_argument("--user", default="root", choices=("root", "admin"))
    remote.add_argument("host", choices=record.HOSTS)
    remote.add_argument("words", nargs=argparse.REMAINDER, metavar="CMD")
    return top


def positive(text: str) -> int:
    """An argument that is a number above 0."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def up(name: str, backend: str, memory: str = "", releases: Mapping[str, str] | None = None) -> record.Lab:
    """The lab with this name, running; what a crash left of it is cleaned first.

    `memory` is a virtual machine's; `releases` are Debian's, by host, where it is not to be the usual one.
    """
    recipes = {host: tree.recipe(backend, (releases or {}).get(host, "")) for host in record.HOSTS}
    wanted = {host: recipe.suite for host, recipe in recipes.items()}
    there = record.load(name)
    if there is not None and there.state == "up" and there.backend == backend and there.releases == wanted:
        say(f"lab '{name}' is up already")
        install(there)
        return there
    if there is not None:
        say(f"clearing what is left of lab '{name}'")
    down(name)
    lab = record.Lab(name, backend, releases=wanted, memory=memory)
    if backend == "netns":
        netns.require()
        with cache.lock("build"):
            images = image.built(*recipes.values())
        began = time.monotonic()
        netns.start(lab, images)
        ssh.wait_ready(lab, netns.READY_TIMEOUT)
    else:
        vm.require()
        with cache.lock("build"):
            images = image.built(*recipes.values())
            boots = {host: vm.boot_files(recipe) for host, recipe in recipes.items()}
        began = time.monotonic()
        vm.start(lab, images, boots)
        ssh.wait_ready(lab, vm.READY_TIMEOUT)
    lab.project = images.project
    lab.is_ready = True
    lab.save()
    say(f"lab '{name}' ({backend}) is ready after {time.monotonic() - began:.1f} s")
    return lab


def down(name: str) -> None:
    """Nothing of the lab is left afterwards."""
    lab = record.load(name)
    if lab is not None:
        (netns if lab.backend == "netns" else vm).stop(lab)
    shutil.rmtree(record.folder_of(name), ignore_errors=True)


def install(lab: record.Lab) -> None:
    """The project as it is now, on alpha, by pip; quick if nothing changed."""
    with cache.lock("build"):
        digest = project.source_digest()
        if digest == lab.project:
            return
        wheel = project.wheel()
        content = wheel.read_bytes()
    place = f"/tmp/{wheel.name}"
    with step("installing the project on alpha"):
        ssh.run_on(lab, "alpha", [f"cat > {place}"], stdin=content)
        ssh.run_on(lab, "alpha", [*project.PIP_ON_HOST, "--no-deps", "--force-reinstall", place, "&& rm", place])
    lab.project = digest
    lab.save()


def print_status(name: str, as_json: bool) -> int:
    """What `status` prints; the exit status says whether the lab is up."""
    lab = record.load(name)
    if as_json:
        print(json.dumps(lab.status() if lab else {"name": name, "state": "down", "hosts": {}}, indent=1))
    elif lab is None:
        print(f"{name}: down")
    else:
        lines = [f"{name}: {lab.state} ({lab.backend})"]
        for host_name, host in lab.hosts.items():
            state = "up" if host.is_running else "down"
            lines.append(f"  {host_name}: {state}, {record.PRIVATE_ADDRESSES[host_name]}, port {host.control_port}")
        sys.stdout.write("\n".join([*lines, ""]))
    return 0 if lab is not None and lab.state == "up" else 1


def run_demo(name: str, backend: str, keep: bool) -> int:
    """Up, the demonstration, down."""
    try:
        demo.play(up(name, backend))
    finally:
        if keep:
            say(f"the hosts stay up: vagrant/lab ssh --name {name} beta; vagrant/lab down --name {name}")
        else:
            down(name)
            say(f"lab '{name}' is down")
    return 0


def run_tests(everything: bool, backend: str | None, faults: str, arguments: list[str]) -> int:
    """All checks and tests; or, with arguments, pytest with these."""
    with cache.lock("build"):
        python = project.developer_python()
    done = checks.Run()
    backends = (backend,) if backend else checks.BACKENDS
    if arguments and not checks.needs_lab(arguments):
        done.command("tests", checks.pytest_command(python, arguments))
        return done.report()
    if not arguments:
        for words in checks.static_checks(python):
            done.command(" ".join(words[2:]), words)
        packages.need(packages.FOR_TESTS)
        os.environ[packages.SSHD_VARIABLE] = str(packages.an_sshd())
        # who is not root can't run them all
        strictly = ["--no-skips"] if os.geteuid() == 0 else []
        done.command("fast tests", checks.pytest_command(python, [*checks.SIDE_BY_SIDE, *strictly, "tests"]))
        done.command("fuzz", checks.fuzz_command(python, []))
    for kind in backends:
        # The number keeps two runs on one machine apart.
        name = f"test-{kind}-{os.getpid()}"
        chosen = checks.live_arguments(kind, name, everything, faults)
        if arguments:
            chosen = [*checks.lab_arguments(kind, name, faults), *arguments]
        words = checks.pytest_command(python, chosen)
        done.on_lab(kind, lambda: up(name, kind), lambda: down(name), words)  # noqa: B023  # called at once
    return done.report()


def run_fuzz(arguments: argparse.Namespace) -> int:
    """On this machine alone: parsers need no lab."""
    with cache.lock("build"):
        python = project.developer_python()
    options = {"--runs": arguments.runs, "--seconds": arguments.seconds}
    words = [word for name, value in options.items() if value is not None for word in (name, value)]
    return subprocess.run(
        checks.fuzz_command(python, [*words, *arguments.names]), cwd=cache.REPOSITORY, check=False
    ).returncode


def run_bench(arguments: argparse.Namespace) -> int:
    """Labs of its own, one after the other."""
    with cache.lock("build"):
        python = project.developer_python()
    backends = (arguments.backend,) if arguments.backend else bench.BACKENDS
    wanted = bench.Wanted(backends, arguments.quick, tuple(arguments.rows), arguments.json, arguments.picture)
    return bench.play(python, wanted, f"bench-{os.getpid()}", up, down)


def run_soak(backend: str, hops: int) -> int:
    """A lab of its own."""
    with cache.lock("build"):
        python = project.developer_python()
    name = f"soak-{os.getpid()}"
    return soak.play(python, name, backend, hops, lambda: up(name, backend), lambda: down(name))


def run_releases(arguments: argparse.Namespace) -> int:
    """A lab of its own for each pair."""
    wanted = releases.pairs(arguments.pairs)
    with cache.lock("build"):
        python = project.developer_python()
    name = f"releases-{os.getpid()}"
    if arguments.python:
        return releases.play_old_python(python, name, up, down)
    return releases.play(python, name, wanted, up, down)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """One command."""
    if arguments.command == "bench":
        return run_bench(arguments)
    if arguments.command == "fuzz":
        return run_fuzz(arguments)
    if arguments.command == "test":
        return run_tests(arguments.everything, arguments.backend, arguments.faults, rest)
    if arguments.command == "releases":
        return run_releases(arguments)
    if arguments.command == "soak":
        return run_soak(arguments.backend, arguments.hops)
    if arguments.command == "demo":
        return run_demo(arguments.name, arguments.backend, arguments.keep)
    if arguments.command == "status":
        return print_status(arguments.name, arguments.json)
    if arguments.command == "ssh":
        lab = record.must_run(arguments.name)
        words = ssh.command(lab, arguments.host, arguments.words, user=arguments.user)
        return subprocess.run(words, check=False).returncode
    if arguments.command == "keys":
        arguments.folder.mkdir(parents=True)
        seed.write_all(arguments.folder, record.HOSTS)
        return 0
    with cache.lock(f"lab-{arguments.name}"):
        if arguments.command == "up":
            releases = {host: getattr(arguments, host) for host in record.HOSTS}
            up(arguments.name, arguments.backend, releases=releases)
        elif arguments.command == "down":
            down(arguments.name)
            say(f"lab '{arguments.name}' is down")
        else:
            install(record.must_run(arguments.name))
    return 0


def end(number: int, _frame: FrameType | None) -> None:
    """A signal ends us in order, so that a lab that was brought up for one command goes with it."""
    sys.exit(128 + number)


def main() -> int:
    """Runs the command; a LabError becomes a message and status 1."""
    arguments, rest = parser().parse_known_args()
    if rest and arguments.command != "test":
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    os.environ["PATH"] += os.pathsep + packages.SBIN
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    try:
        return run(arguments, rest)
    except LabError as error:
        error.tell()
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
