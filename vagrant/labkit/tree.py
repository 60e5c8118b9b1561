"""Debian trees: a folder with a whole Debian in it, made by mmdebstrap and provision.sh.

A tree holds only what Debian has. It is never booted itself: images are made from it (image.py).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from labkit import cache, packages
from labkit.run import LabError, as_root, run, step

PROVISION = cache.REPOSITORY / "vagrant" / "provision.sh"
# Documentation is half of a small Debian, and nobody reads it here.
LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides what is in a tree."""

    suite: str
    role: str  # provision.sh's argument; "" for a Debian with these packages alone, which is no host
    include: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The tree's name in the cache."""
        return f"{self.suite}-{self.role or '-'.join(self.include)}"

    @property
    def folder(self) -> Path:
        """Where the tree is, once built."""
        return cache.place() / "trees" / self.name

    def key(self) -> str:
        """Another key means that the tree must be built again. The mirror is not in it: it changes nothing."""
        made = (PROVISION.read_bytes(),) if self.role else self.include
        return cache.digest(self.suite, self.role, *made, *LEFT_OUT)


ROLES = {"netns": "namespace", "vm": "vm"}
RELEASES = {
    # criu 4.2.1 first: older ones cannot dump INET sockets where the machine's own kernel is 6.16 or newer.
    "netns": ("forky", "trixie"),
    # Debian stable first: its kernel and criu 4.1.1 are what an admin meets. bookworm's criu wants its own kernel.
    "vm": ("trixie", "bookworm", "forky"),
}
"""The releases of which a backend makes hosts; the first one unless another is asked for."""


def recipe(backend: str, suite: str = "") -> Recipe:
    """How a host of this backend is made, of this release. Raises LabError for one that it can't be made of."""
    known = RELEASES[backend]
    if suite and suite not in known:
        raise LabError(f"no {backend} host of {suite!r}", hint=f"--backend {backend} knows {', '.join(known)}")
    return Recipe(suite or known[0], ROLES[backend])


def mmdebstrap_command(recipe: Recipe, target: Path, mirror: packages.Mirror) -> list[str]:
    """The command that makes the tree."""
    command = ["mmdebstrap", "--variant=apt", "--mode=root"]
    options = [
        'APT::Install-Recommends "false"',
        # A testing release's index can be past its date; the lab wants that day's packages all the same.
        'Acquire::Check-Valid-Until "false"',
        *mirror.options,  # mmdebstrap does not read the machine's apt.conf
    ]
    command += [f"--aptopt={option}" for option in options]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    if not recipe.role:
        return [*command, f"--include={','.join(recipe.include)}", recipe.suite, str(target), mirror.address]
    command += [
        f"--customize-hook=copy-in {PROVISION} /tmp",
        f'--customize-hook=chroot "$1" /tmp/{PROVISION.name} {recipe.role}',
        f'--customize-hook=rm "$1"/tmp/{PROVISION.name}',
        # Each lab has its own host keys (seed.py); two hosts with the same key would hide mistakes.
        '--customize-hook=rm -f "$1"/etc/ssh/ssh_host_*',
    ]
    return [*command, recipe.suite, str(target), mirror.address]


def built(recipe: Recipe) -> Path:
    """The tree's folder, built if it is not there or stale. Call it under the build lock."""
    key = recipe.key()
    if not cache.is_fresh(recipe.folder, key):
        packages.need(packages.FOR_TREES)
        cache.mark_stale(recipe.folder)
        recipe.folder.parent.mkdir(exist_ok=True)
        run(as_root(["rm", "-rf", "--one-file-system", recipe.folder]))
        with step(f"building a Debian {recipe.suite} tree ({recipe.role or ' '.join(recipe.include)})"):
            run(as_root(mmdebstrap_command(recipe, recipe.folder, packages.mirror())))
        cache.mark_fresh(recipe.folder, key)
    return recipe.folder


def python_version(tree: Path) -> str:
    """The tree's python3, as "3.13"."""
    found = sorted(path.name for path in (tree / "usr/bin").glob("python3.*") if path.name[8:].isdigit())
    if not found:
        raise LabError(f"no python3 in {tree}")
    return found[-1].removeprefix("python")
