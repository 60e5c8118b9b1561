"""The project's own packages: for the developer's machine, and for the host that migrates from.

alpha gets the project the way the README tells an admin to install it: `pip install` into a venv at
/opt/migrate, and a link in /usr/local/sbin. Hosts have no internet, so pip takes everything from a folder
of wheels that was fetched on this machine for the hosts' version of Python.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomllib

from labkit import cache, packages, tree
from labkit.run import LabError, as_root, run, step

VENV_ON_HOST = "/opt/migrate"
PIP_ON_HOST = (f"{VENV_ON_HOST}/bin/pip", "--disable-pip-version-check", "install", "--quiet", "--no-index")
COMMAND_ON_HOST = "/usr/local/sbin/migrate"
# Wheels may be built for any glibc up to the trees'.
PLATFORMS = ("manylinux_2_17", "manylinux_2_28", "manylinux_2_34", "manylinux2014", "linux")


def pyproject() -> dict[str, Any]:
    """The project's pyproject.toml."""
    return tomllib.loads((cache.REPOSITORY / "pyproject.toml").read_text())


def dependencies() -> list[str]:
    """What the project needs where it runs."""
    return list(pyproject()["project"].get("dependencies", []))


def developer_requirements() -> list[str]:
    """What a developer's machine needs: the project's dependencies, its test tools, and what builds its wheel."""
    described = pyproject()
    extra: list[str] = described["project"].get("optional-dependencies", {}).get("dev", [])
    return [*dependencies(), *extra, *described["build-system"]["requires"]]


def source_digest() -> str:
    """Changes whenever the project's wheel would."""
    files = [cache.REPOSITORY / "pyproject.toml", cache.REPOSITORY / "hatch_build.py"]
    for package in ("agent", "migrator"):
        files += sorted(path for path in (cache.REPOSITORY / package).rglob("*") if path.is_file())
    files = [path for path in files if "__pycache__" not in path.parts]
    return cache.digest(*(part for path in files for part in (str(path), path.read_bytes())))


def developer_python() -> Path:
    """The python of a venv with the developer's requirements. Under the build lock.

    Other requirements get another venv: a second checkout's may differ, and the first one's tests be running.
    """
    wanted = developer_requirements()
    key = cache.digest(sys.version, *wanted)
    venv = cache.place() / f"venv-{key}"
    if not cache.is_fresh(venv, key):
        cache.mark_stale(venv)
        shutil.rmtree(venv, ignore_errors=True)
        with step("making a venv with the test tools"):
            if not _has_ensurepip():
                packages.install(["python3-venv"])
            run([sys.executable, "-m", "venv", venv])
            run([venv / "bin/python", "-m", "pip", "install", "--quiet", *wanted])
        cache.mark_fresh(venv, key)
    return venv / "bin/python"


def _has_ensurepip() -> bool:
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        return False
    return True


def wheelhouse(python: str) -> Path:
    """A folder with the wheels of the project's dependencies for this version of Python. Under the build lock."""
    folder = cache.place() / "wheels" / f"python{python}"
    wanted = dependencies()
    key = cache.digest(*wanted)
    if not cache.is_fresh(folder, key):
        pip: list[str | Path] = [developer_python(), "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
        pip += ["--python-version", python, "--implementation", "cp", "--dest", folder]
        for abi in (f"cp{python.replace('.', '')}", "abi3", "none"):
            pip += ["--abi", abi]
        for platform in PLATFORMS:
            pip += ["--platform", f"{platform}_{os.uname().machine}"]
        cache.mark_stale(folder)
        shutil.rmtree(folder, ignore_errors=True)
        with step(f"fetching wheels for Python {python}"):
            run([*pip, *wanted])
        cache.mark_fresh(folder, key)
    return folder


def wheel() -> Path:
    """The project's own wheel, built from the working tree. Under the build lock."""
    folder = cache.place() / "wheels" / "project"
    key = source_digest()
    if not cache.is_fresh(folder, key):
        python = developer_python()
        cache.mark_stale(folder)
        shutil.rmtree(folder, ignore_errors=True)
        pip: list[str | Path] = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        with step("building the project's wheel"):
            run([*pip, "--wheel-dir", folder, cache.REPOSITORY])
        cache.mark_fresh(folder, key)
    found = sorted(folder.glob("*.whl"))
    if len(found) != 1:
        raise LabError(f"expected one wheel in {folder}, found {len(found)}")
    return found[0]


def dependency_venv(recipe: tree.Recipe) -> Path:
    """A venv with the project's dependencies for the hosts of this kind, kept beside the tree. Under the build lock.

    It is made inside the tree, at the path that it has on the host, because scripts in a venv carry that path.
    """
    root = tree.built(recipe)
    kept = root.with_name(root.name + "-venv")
    wheels = wheelhouse(tree.python_version(root))
    key = cache.digest(recipe.key(), *sorted(path.name for path in wheels.iterdir()))
    if not cache.is_fresh(kept, key):
        cache.mark_stale(kept)
        run(as_root(["rm", "-rf", kept, _inside(root)]))
        with step(f"installing the project's dependencies for {recipe.name}"), offered(root, wheels) as place:
            run(as_root(["chroot", root, "python3", "-m", "venv", VENV_ON_HOST]))
            run(as_root([*pip_command(root, place), *dependencies()]))
        run(as_root(["mv", _inside(root), kept]))
        cache.mark_fresh(kept, key)
    return kept


@contextlib.contextmanager
def installed(recipe: tree.Recipe) -> Iterator[Path]:
    """The tree with the project installed in it, for as long as an image is made of it. Under the build lock."""
    venv = dependency_venv(recipe)
    own = wheel()
    root = recipe.folder
    link = root / COMMAND_ON_HOST.lstrip("/")
    venv_key = cache.take_key(venv)  # stale while it is away: should we be killed, it is made again
    run(as_root(["mv", venv, _inside(root)]))
    try:
        with offered(root, own.parent) as place:
            run(as_root([*pip_command(root, place), "--no-deps", "--force-reinstall", f"{place}/{own.name}"]))
        run(as_root(["ln", "-sf", f"{VENV_ON_HOST}/bin/migrate", link]))
        yield root
    finally:
        run(as_root(["rm", "-f", link]))
        run(as_root(["mv", _inside(root), venv]))
    cache.mark_fresh(venv, venv_key)


def pip_command(root: Path, wheels: str) -> list[str | Path]:
    """pip inside the tree, which takes everything from the folder of wheels."""
    return ["chroot", root, *PIP_ON_HOST, "--no-cache-dir", "--find-links", wheels]


@contextlib.contextmanager
def offered(root: Path, wheels: Path) -> Iterator[str]:
    """The folder of wheels, for a while at a path inside the tree."""
    place = "/tmp/wheels"
    run(as_root(["rm", "-rf", root / place.lstrip("/")]))
    run(as_root(["cp", "-r", wheels, root / place.lstrip("/")]))
    yield place
    run(as_root(["rm", "-rf", root / place.lstrip("/")]))


def _inside(root: Path) -> Path:
    return root / VENV_ON_HOST.lstrip("/")
