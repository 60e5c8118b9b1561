"""Trees on ice: directories of images that outlive the process, and the manifest that says what they are.

A directory that an operator names holds one directory a tree, which has the name of the save:

    20261127-181600-3f2a1b/1/             what criu wrote of it; with rounds before it, 2, 3…
    20261127-181600-3f2a1b/manifest       what that has to be, and what it needs of a host: `protocol.Manifest`, as JSON
    20261127-181600-3f2a1b/restored       which processes it is of, or were last made of it, and where

A snapshot adds to the one before: among its images is criu's link `parent`, to `../../ID/1`.

All of the images is on disk before there is a manifest, and the manifest is `manifest.unsealed` until the process is
known to be dead: so whatever has a `manifest` is whole, and was the only copy when it was written. Who restores holds a
lock on the manifest. Nothing here is changed by a restore but `restored`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent import durable, images, process
from agent.disk import NotOurs, to_disk, trusted
from agent.files import digest
from agent.journal import JournalError, check_id
from agent.protocol import VERSION, CriuOptions, Hashed, Ice, Manifest, PutOnIce, Shelved, TreeFacts
from agent.wire import LINE_LIMIT, WireError, decode, loads, plain

FORMAT = 1
"""Of the manifest; it grows when a reader of an older one would misunderstand it."""
ROUND = 1
"""The only one of a tree that was saved: it is dumped whole."""
MANIFEST, UNSEALED, RESTORED = "manifest", "manifest.unsealed", "restored"
_PARENT = re.compile(r"\.\./\.\./([0-9]{8}-[0-9]{6}-[0-9a-f]{6})/1")
_LINES = 1 << 20
"""Bytes of the record of a restore at most."""


class IceError(Exception):
    """What is on ice is not there, not whole, or not what was put there."""


class InUse(Exception):
    """It is being restored, or runs."""


def drafted(
    migration: str, facts: PutOnIce, tree: TreeFacts, options: CriuOptions, number: int = ROUND
) -> Manifest:  # fmt: skip
    """The manifest of a tree as it is held here, but for its images."""
    return Manifest(
        FORMAT, migration, time.time(), socket.gethostname(), process.boot_id(), VERSION, number, facts.source, tree,
        options, facts.terminal, facts.scope, facts.logged,
    )  # fmt: skip


def put(place: Path, manifest: Manifest) -> None:
    """Have the images on disk, then the manifest, which is not sealed yet. Raises OSError, NoRoom."""
    durable.keep(place)
    whole = Manifest(**{**vars(manifest), "images": _hashed(place, manifest.round)})
    _written(place / UNSEALED, plain(whole))


def seal(place: Path) -> None:
    """The process is dead: from now on this is its only copy. Does nothing where it is sealed. Raises OSError."""
    if not sealed(place):
        for statistics in place.glob("*/stats-dump"):  # criu's last word, which nobody has put on disk
            statistics.unlink()
        os.rename(place / UNSEALED, place / MANIFEST)
        to_disk(place)


def sealed(place: Path) -> bool:
    """Whether this is a tree on ice, which nobody but its operator removes."""
    return (place / MANIFEST).is_file()


def whole(place: Path) -> bool:
    """Whether all of a tree lies here, sealed or not."""
    return sealed(place) or (place / UNSEALED).is_file()


def put_away(place: Path, *, gone: bool) -> tuple[str, ...]:
    """At the end of a save: seal what is the only copy of a process that is `gone`, else remove it all.

    What could not be done comes back in words.
    """
    if not gone:
        return images.remove_place(place)
    try:
        seal(place)
    except OSError as error:
        return (f"{place}: could not be sealed: {error.strerror}",)
    return ()


def read(place: Path) -> Manifest:
    """The manifest of a tree on ice. Raises IceError."""
    try:
        for directory in (place.parent, place):  # whoever may write there may have root run anything
            trusted(directory)
        with (place / MANIFEST).open("rb") as file:
            data = file.read(LINE_LIMIT + 1)
    except NotOurs as error:
        raise IceError(str(error)) from None
    except FileNotFoundError:
        raise IceError(_why_unsealed(place)) from None
    except OSError as error:
        raise IceError(f"{place / MANIFEST}: {error.strerror}") from None
    return parsed(data, place)


def _why_unsealed(place: Path) -> str:
    if not place.is_dir():
        return f"{place}: there is no such tree on ice"
    if (place / UNSEALED).exists():
        return f"{place}: its save was cut off before its process had ended: migrate recover {place.name}"
    return f"{place}: it has no manifest: its save is at work, or was cut off"


def parsed(data: bytes, place: Path) -> Manifest:
    """A manifest as it lies in this directory. Raises IceError."""
    try:
        if len(data) > LINE_LIMIT:
            raise WireError("it is too large")
        said = loads(data)
        if isinstance(said, dict) and type(said.get("format")) is int and said["format"] > FORMAT:
            raise IceError(f"{place}: a newer migrate has put it on ice (format {str(said['format'])[:20]})")
        manifest = decode(Manifest, said, MANIFEST)
        check_id(manifest.id)
    except (WireError, JournalError) as error:
        raise IceError(f"{place / MANIFEST} is damaged: {error}") from None
    names = {one.name for one in manifest.images}
    if manifest.id != place.name or not manifest.tree.tasks or len(names) != len(manifest.images):
        raise IceError(f"{place / MANIFEST} is damaged: it is not that of {place.name}")
    for name in names:
        number, _, image = name.partition("/")
        if not images.is_image(image) or not (number.isdecimal() and number.isascii() and len(number) < 7):
            raise IceError(f"{place / MANIFEST} is damaged: {name[:80]!r} is no image")
    return manifest


def verified(directory: Path, name: str) -> Manifest:
    """The manifest of a tree on ice, every image of which was read and is as it was put there. Raises IceError, and
    InUse while it runs."""
    try:
        place = directory / check_id(name)
    except JournalError as error:
        raise IceError(str(error)) from None
    manifest = read(place)
    if why := running(place, manifest):
        raise InUse(why)
    _verify(place, manifest)
    before = place
    while parent := parent_of(before):
        if parent >= before.name:
            raise IceError(f"{before} is damaged: it adds to {parent}, which is not older")
        before = directory / parent
        _verify(before, read(before))
    return manifest


def parent_of(place: Path) -> str:
    """The id of the snapshot that this one adds to; "" for what is whole by itself. Raises IceError."""
    try:
        link = os.readlink(place / str(ROUND) / "parent")
    except OSError:
        return ""
    found = _PARENT.fullmatch(link)
    if not found:
        raise IceError(f"{place} is damaged: it adds to {link[:80]!r}")
    return found[1]


def previous(directory: Path, pid: int, start: int) -> str:
    """The newest snapshot there of this very process; "" for none."""
    for entry in sorted(directory.iterdir(), reverse=True) if directory.is_dir() else ():
        with contextlib.suppress(IceError):
            if _is_id(entry.name) and _origin(read(entry)) == (socket.gethostname(), process.boot_id(), pid, start):
                return entry.name
    return ""


def _origin(manifest: Manifest) -> tuple[str, str, int, int]:
    """Host, boot, PID and start time of the process that it was."""
    return manifest.host, manifest.boot, manifest.tree.root, manifest.tree.tasks[0].start_time


def _verify(place: Path, manifest: Manifest) -> None:
    """Raises IceError."""
    for one in manifest.images:
        try:
            size = (place / one.name).stat().st_size
        except OSError as error:
            raise IceError(f"{place / one.name}: {error.strerror}") from None
        if size != one.size or digest(str(place / one.name)) != one.sha256:
            raise IceError(f"{place / one.name} is not what was put on ice: it is damaged, or was changed")


def look(directory: Path) -> Ice:
    """What is on ice in a directory that may not be there yet. Raises IceError where it can't be looked into."""
    there = directory
    while not there.exists():
        there = there.parent
    found = os.statvfs(there)
    try:
        if not there.is_dir():
            raise IceError(f"{there} is no directory")
        if there == directory:
            trusted(directory)  # whoever may write there may have root run anything
        entries = sorted(directory.iterdir()) if there == directory else []
    except NotOurs as error:
        raise IceError(str(error)) from None
    except OSError as error:
        raise IceError(f"{directory}: {error.strerror}") from None
    items = tuple(_line(entry) for entry in entries if _is_id(entry.name) and entry.is_dir())
    return Ice(found.f_bavail * found.f_frsize, durable.volatile(there), items)


def _line(place: Path) -> Shelved:
    size = sum(path.stat().st_blocks * 512 for path in place.rglob("*") if path.is_file())
    try:
        manifest = read(place)
        parent = parent_of(place)
        wrong = running(place, manifest)
        if parent and not sealed(place.parent / parent):
            wrong = f"it adds to {parent}, which is gone"
    except IceError as error:
        return Shelved(place.name, place.stat().st_mtime, 0, "", size, wrong=str(error))
    root = manifest.tree.tasks[0]
    return Shelved(place.name, manifest.time, root.pid, root.name, size, parent, wrong)


def _is_id(name: str) -> bool:
    try:
        return bool(check_id(name))
    except JournalError:
        return False


# --- who runs --------------------------------------------------------------------------------------------------------


def claim(place: Path) -> int:
    """Nobody else restores it while the descriptor that this returns is open. Raises InUse, IceError."""
    manifest = read(place)
    descriptor = os.open(place / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if why := running(place, manifest):
            raise InUse(why)
    except BlockingIOError:
        os.close(descriptor)
        raise InUse(f"{place} is being restored") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def note_restored(place: Path, tasks: Iterable[Sequence[int]]) -> None:
    """Leave word of the processes, (PID, start time), that are about to run from it here. Raises OSError."""
    word = {"host": socket.gethostname(), "boot": process.boot_id(), "tasks": [list(task) for task in tasks]}
    _written(place / RESTORED, word)


def running(place: Path, manifest: Manifest) -> str:
    """What of it runs already, in words; "" for nothing that is known. Raises IceError where the word of a restore is
    damaged. Other snapshots of the same process count as well: it is one process.

    A host that has booted since has ended it. What runs on another host can't be seen, but has to be asked about: the
    word that it left is the only one there is.
    """
    for entry in sorted(place.parent.iterdir()):
        if entry != place and (entry / RESTORED).exists() and sealed(entry):
            with contextlib.suppress(IceError):  # what is wrong with another is no matter of this one
                if _origin(read(entry)) == _origin(manifest) and (why := _running(entry)):
                    return why
    return _running(place)


def _running(place: Path) -> str:
    try:
        with (place / RESTORED).open("rb") as file:
            data = file.read(_LINES)
    except FileNotFoundError:
        return ""
    host, boot, tasks = said(data, place)
    if host != socket.gethostname():
        return f"it ran on {host} last, of {place}: see that it has ended there, then remove {place / RESTORED}"
    if boot != process.boot_id():
        return ""
    living = next((pid for pid, start in tasks if process.alive(pid, start)), 0)
    return f"it runs already, as {place} has it: its process {living} lives" if living else ""


def said(data: bytes, place: Path) -> tuple[str, str, list[tuple[int, int]]]:
    """Host, boot id and (PID, start time) of a restore's word. Raises IceError."""
    try:
        word = loads(data)
        host, boot, tasks = word["host"], word["boot"], word["tasks"]
        pairs = [(int(pid), int(start)) for pid, start in tasks if 0 < pid < 1 << 31 and 0 <= start < 1 << 63]
        if not (isinstance(host, str) and host.isprintable() and isinstance(boot, str)) or len(pairs) != len(tasks):
            raise ValueError("no word of ours")
    except (WireError, ValueError, KeyError, TypeError):
        raise IceError(f"{place / RESTORED} is damaged: see that nothing of it runs, then remove that file") from None
    return host, boot, pairs


# --- files -----------------------------------------------------------------------------------------------------------


def working_copy(place: Path, number: int, copy: Path) -> None:
    """Of the round of this number a directory that criu and we may change, in which it restores as from its own. Memory
    is not copied."""
    copy.mkdir(mode=0o700)
    for path in sorted((place / str(number)).iterdir()):
        if path.is_symlink():
            (copy / path.name).symlink_to(path.resolve())  # the round before
        elif path.name.startswith("pages-"):
            (copy / path.name).symlink_to(path)
        elif path.suffix == ".img":
            (copy / path.name).write_bytes(path.read_bytes())


def _hashed(place: Path, last: int) -> tuple[Hashed, ...]:
    found = []
    for path in (path for number in range(1, last + 1) for path in sorted((place / str(number)).glob("*.img"))):
        content = digest(str(path))
        if not content:
            raise OSError(errno.EIO, "can't be read again", str(path))
        found.append(Hashed(f"{path.parent.name}/{path.name}", path.stat().st_size, content))
    return tuple(found)


def _written(path: Path, value: object) -> None:
    """A file whose whole content is on disk on return, whatever was there before."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value, indent=1) + "\n")
    new.chmod(0o600)
    to_disk(new)
    os.rename(new, path)
    to_disk(path.parent)
