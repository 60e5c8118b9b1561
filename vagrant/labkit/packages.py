"""What the machine must have, installed with apt; and the Debian mirror that the machine itself uses.

No mirror is named here: whoever set up apt on this machine decided where packages come from, with which
proxy and certificates, and the trees are built from the same place.
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
import shutil
import tempfile
from pathlib import Path

from labkit import cache
from labkit.run import LabError, as_root, run, say, step

# program -> packages. What is found on PATH (or in sbin) is not installed again.
FOR_TREES = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "ssh": "openssh-client"}
FOR_NETNS = {"ip": "iproute2", "nsenter": "util-linux", "losetup": "mount"}
# What the fast tests would otherwise skip: `vagrant validate`, login shells that a target may
# have, cpio, and what reads a man page.
FOR_TESTS = {
    "vagrant": "vagrant vagrant-libvirt",
    "zsh": "zsh",
    "fish": "fish",
    "tcsh": "tcsh",
    "busybox": "busybox",
    "cpio": "cpio",
    "groff": "groff-base",
    "lexgrog": "man-db",
}
SSHD_VARIABLE = "MIGRATE_TEST_SSHD"
"""Tells the fast tests which sshd to start."""
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclasses.dataclass(frozen=True)
class Mirror:
    """Where Debian comes from, and the options apt needs to get there."""

    address: str
    options: tuple[str, ...]


def find_program(name: str) -> str | None:
    """Like which(1), but looks in sbin too: on Debian a user's PATH does not."""
    return shutil.which(name) or shutil.which(name, path=SBIN)


def need(programs: dict[str, str]) -> None:
    """Installs the packages of the programs that are missing."""
    missing = sorted(
        {package for program in programs if not find_program(program) for package in programs[program].split()}
    )
    if missing:
        install(missing)


def install(packages: list[str], *options: str) -> None:
    """apt-get install, with a fresh list of packages."""
    if find_program("apt-get") is None:
        raise LabError(f"missing on this machine: {' '.join(packages)}", hint="install them; only apt is known here")
    with step(f"apt-get install {' '.join(packages)}"):
        environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
        run(as_root([*environment, "apt-get", "-q", "update", *options]))
        run(
            as_root([*environment, "apt-get", "-q", "install", "--yes", "--no-install-recommends", *options, *packages])
        )


def an_sshd() -> Path:
    """Where the fast tests find an sshd: this machine's, or Debian's, only unpacked. Installed it would listen."""
    if found := find_program("sshd"):
        return Path(found)
    folder = cache.place() / "sshd"
    path = folder / "usr" / "sbin" / "sshd"
    if not path.exists():
        with step("unpacking openssh-server"), tempfile.TemporaryDirectory(dir=cache.place()) as room:
            run(as_root(["apt-get", "-q", "update"]))
            run(["apt-get", "-q", "download", "openssh-server"], cwd=Path(room))
            (package,) = Path(room).glob("openssh-server_*.deb")
            run(["dpkg-deb", "-x", package, Path(room) / "tree"])
            shutil.rmtree(folder, ignore_errors=True)
            (Path(room) / "tree").rename(folder)
    if "libwrap.so.0 => not found" in run(["ldd", path]):  # the others come with openssh-client, or with Debian itself
        install(["libwrap0"])
    try:
        pwd.getpwnam("sshd")
    except KeyError:  # started by root it wants this user to exist
        nobody = ["--system", "--no-create-home", "--home-dir", "/run/sshd", "--shell", "/usr/sbin/nologin"]
        run(as_root(["useradd", *nobody, "sshd"]))
    return path


def parse_index_targets(text: str) -> str | None:
    """The mirror among lines of "address<TAB>origin<TAB>label": the first that is Debian proper."""
    for line in text.splitlines():
        address, origin, label = line.split("\t")
        if origin == "Debian" and label == "Debian":
            return address.rstrip("/")
    return None


def parse_apt_options(dump: str) -> tuple[str, ...]:
    """The settings of `apt-config dump` that say how to reach a mirror, in apt.conf's own syntax."""
    wanted = re.compile(r'^Acquire::(http|https|ftp|Retries)\b.*"(.+)";$')
    return tuple(line for line in dump.splitlines() if wanted.match(line))


def mirror() -> Mirror:
    """The mirror that this machine's apt uses."""
    query = ["apt-get", "indextargets", "--format", "$(REPO_URI)\t$(ORIGIN)\t$(LABEL)", "Created-By: Packages"]
    address = parse_index_targets(run(query))
    if address is None:
        run(as_root(["apt-get", "-q", "update"]))  # origin and label are known only once the lists are there
        address = parse_index_targets(run(query))
    if address is None:
        raise LabError("apt on this machine knows no Debian mirror", hint="see `apt-get indextargets`")
    return Mirror(address, parse_apt_options(run(["apt-config", "dump"])))


def _qemu_major() -> int:
    program = find_program("qemu-system-x86_64")
    found = re.search(r"version (\d+)", run([program, "--version"])) if program else None
    return int(found.group(1)) if found else 0


def need_qemu() -> None:
    """QEMU 10 or newer: the emulation of 7.2 crashes the guest's kernel.

    Where the machine's own release has an older one it comes from that release's backports, by a source
    list of our own that apt reads only for this one command: the machine's configuration stays as it is.
    """
    if _qemu_major() >= 10 and find_program("qemu-img"):
        return
    packages = ["qemu-system-x86", "qemu-utils"]
    release = _release()
    if release != "bookworm":
        install(packages)
    else:
        parts = cache.place() / "apt-sources"
        parts.mkdir(exist_ok=True)
        (parts / "backports.list").write_text(f"deb {mirror().address} bookworm-backports main\n")
        for own in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")):
            if own.suffix in (".list", ".sources") and own.exists():
                shutil.copy(own, parts)
        say("QEMU comes from bookworm-backports")
        install(
            packages,
            "-t",
            "bookworm-backports",
            "-o",
            f"Dir::Etc::SourceParts={parts}",
            "-o",
            "Dir::Etc::SourceList=/dev/null",
        )
    if _qemu_major() < 10:
        raise LabError("QEMU 10 or newer is needed", hint="`apt-cache policy qemu-system-x86` shows what there is")


def _release() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    return ""


def is_root() -> bool:
    """Namespaces, loop mounts and chroot need it."""
    return os.geteuid() == 0
