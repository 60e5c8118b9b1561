"""Disk images of the two hosts, each made from a tree: beta has what Debian has, alpha has the project too.

Both backends start from the same ext4 image: a machine gets a copy-on-write disk over it, a namespace a
sparse copy that it mounts. So every host has a real file system of its own, as two hosts would.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from labkit import cache, packages, project, tree
from labkit.run import as_root, run, step

SIZE = "6G"  # sparse: only what is written takes room


@dataclasses.dataclass(frozen=True)
class Images:
    """The base images of both hosts; nobody writes to them."""

    alpha: Path
    beta: Path
    project: str  # digest of the source that alpha's holds

    def of(self, host: str) -> Path:
        """The image for the host with this name; every other one has what beta has."""
        return self.alpha if host == "alpha" else self.beta


def built(alpha: tree.Recipe, beta: tree.Recipe) -> Images:
    """The images, made again if a tree, the project's dependencies or its source changed. Under the build lock."""
    packages.need(packages.FOR_TREES)
    folder = cache.place() / "images"
    folder.mkdir(exist_ok=True)
    source = project.source_digest()
    images = Images(folder / f"{alpha.name}-alpha.img", folder / f"{beta.name}-beta.img", source)
    beta_key = cache.digest(beta.key(), SIZE)
    root = tree.built(beta)
    if not cache.is_fresh(images.beta, beta_key):
        _make(root, images.beta, beta_key)
    alpha_key = cache.digest(alpha.key(), SIZE, *project.dependencies(), source)
    root = tree.built(alpha)
    if not cache.is_fresh(images.alpha, alpha_key):
        with step(f"installing the project for {alpha.name}"), project.installed(alpha):
            _make(root, images.alpha, alpha_key)
    return images


def _make(root: Path, image: Path, key: str) -> None:
    cache.mark_stale(image)
    # A new file each time: a lab that runs on the old one keeps it until it stops.
    image.unlink(missing_ok=True)
    run([packages.find_program("truncate") or "truncate", "-s", SIZE, image])
    mke2fs = packages.find_program("mke2fs") or "mke2fs"
    # No lazy initialisation: the kernel would do it later, in the middle of a measurement.
    options = ["-E", "lazy_itable_init=0,lazy_journal_init=0", "-O", "^metadata_csum_seed", "-m", "0"]
    run(as_root([mke2fs, "-q", "-t", "ext4", "-L", "labroot", *options, "-d", root, image]))
    cache.mark_fresh(image, key)
