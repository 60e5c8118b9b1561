"""What the files of a tree need on the target: there already and the same, to be copied, or in the way. Pure.

criu opens every path anew on the target and compares type, permissions, size (of regular files) and build id (of ELF
files) with what it saw (criu/files-reg.c, open_path and validate_file). What it would refuse then, frozen, is said here
before anything is touched. It never compares content: so a file that the tree writes to is never taken for the same.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.protocol import FileFacts, Incoming, Peculiarity, TreeFacts
from migrator.obstacle import Obstacle, make, reconnects
from migrator.words import bytes_text

_RUN = {"exe", "exec"}
_OWNED = {"regular", "directory"}
_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "lustre", "gpfs", "beegfs", "ocfs2", "gfs2", "afs",
    "orangefs", "pvfs2", "glusterfs",
}  # fmt: skip
_BY_DEVICE = {"ocfs2", "gfs2", "gpfs", "lustre", "beegfs"}
"""Their sources are devices, or lists of servers."""
_COPY = "give --copy-files to take it along"
_OVERWRITE = "give --overwrite-files to replace it by the source's"
_REPLACEABLE = {"file-size", "file-content", "file-mode"}
"""What copying the file cures, where it is no program."""


def questions(tree: TreeFacts) -> tuple[FileFacts, ...]:
    """Every path that the target must be asked about; those of the tree's own making, or without a name, left out."""
    own = {str(task.pid) for task in tree.tasks}
    asked = [file for file in tree.files if _matters(file, own)]
    parents = [file.path for file in asked if file.kind == "regular" and not _runs(file)]
    for one in tree.peculiarities:
        if one.kind == "unix-path":
            asked.append(_question(one.object, "socket", "bind"))
            parents.append(one.object)
        elif reconnects(one):
            asked.append(_question(one.object, "socket", "connect"))
        elif one.kind == "watch" and not one.object.startswith("/proc/"):
            asked.append(_question(one.object, "directory", "watch"))
    directories = dict.fromkeys(posixpath.dirname(path) for path in parents)
    return (*asked, *(_question(path, "directory", "parent") for path in directories))


def late(tree: TreeFacts, found: tuple[FileFacts, ...]) -> TreeFacts:
    """The tree as far as files go that it has opened since: for `questions` and `judge`."""
    shared = (file.path for file in found if _medium(file) == "network")
    oddities = tuple(Peculiarity("network-file", tree.root, path) for path in shared)
    return dataclasses.replace(tree, files=found, peculiarities=oddities)


def _matters(file: FileFacts, own: set[str]) -> bool:
    if file.deleted or file.kind in ("missing", "socket") or file.path.startswith("/dev/pts/"):
        return False
    parts = file.path.split("/")
    return not (parts[1:2] == ["proc"] and parts[2:3] and parts[2] in own)


def _question(path: str, kind: str, use: str) -> FileFacts:
    return FileFacts(path, kind, 0, 0, 0, 0, 0, 0, (use,))


def _runs(file: FileFacts) -> bool:
    return bool(file.build_id) or not _RUN.isdisjoint(file.uses)


def _of_kernel(file: FileFacts) -> bool:
    """Whether the kernel makes it up: such files exist or not, but never travel."""
    return file.path.startswith(("/proc/", "/sys/"))


def _type(file: FileFacts) -> str:
    return file.mount.partition(" ")[0]


def _medium(file: FileFacts) -> str:
    """Where a file lies: memory, network or disk; "" where that is not known."""
    kind = _type(file)
    if kind in _NETWORK or kind.startswith("fuse."):
        return "network"
    return "memory" if kind in _IN_MEMORY else "disk" if kind else ""


def _other_storage(ours: str, theirs: str) -> str:
    """Whether two mounts of network storage are "other" ones, or "doubtful"; "" where they are the same.

    A server has many names, but an export has one. Where the source is no `server:/export` (a tag of 9p, a device that
    a cluster shares) names differ easily.
    """
    (kind, _, source), (other_kind, _, other) = ours.partition(" "), theirs.partition(" ")
    if kind.rstrip("4") != other_kind.rstrip("4"):
        return "other"
    if source == other:
        return ""
    if kind in _BY_DEVICE or not (":" in source and ":" in other):
        return "doubtful"
    return "doubtful" if source.rpartition(":")[2] == other.rpartition(":")[2] else "other"


def _written(file: FileFacts) -> bool:
    return file.kind == "regular" and "write" in file.uses and not _of_kernel(file)


def _numbers(file: FileFacts) -> str:
    return f"{os.major(file.rdev)}:{os.minor(file.rdev)}"


def judge(
    here: str, there: str, tree: TreeFacts, answers: Sequence[FileFacts], *, copy_files: bool, overwrite: bool = False
) -> tuple[list[Obstacle], tuple[Incoming, ...]]:
    """Obstacles, and the files to copy. `here` and `there` name the hosts; `answers` are those to `questions(tree)`.

    `overwrite`: files that differ on the target are replaced too, programs and libraries never. Raises ValueError when
    these are not the answers.
    """
    asked = questions(tree)
    if [file.path for file in asked] != [file.path for file in answers]:
        raise ValueError("the target answered other questions than it was asked")
    elsewhere = {one.object for one in tree.peculiarities if one.kind == "network-file"}
    directories = {
        file.path: answer.kind == "directory"
        for file, answer in zip(asked, answers, strict=True)
        if file.uses == ("parent",)
    }
    watched = {one.object: one.detail for one in tree.peculiarities if one.kind == "watch"}
    judged = _Files(here, there, copy_files, overwrite, elsewhere, directories, watched)
    for file, answer in zip(asked, answers, strict=True):
        judged.look(file, answer)
    judged.obstacles += judged.frequent()
    leased = {one.object for one in tree.peculiarities if one.kind == "file-lock" and "LEASE" in one.detail}
    judged.obstacles += _without_room(there, judged.copies, asked, answers)
    for path in leased.intersection(judged.copies):
        # opening it breaks the lease, and the signal that tells the holder kills one that does not expect it
        judged.obstacles.append(make("file-leased", here, path))
    return judged.obstacles, tuple(file for path, file in judged.copies.items() if path not in leased)


def _without_room(
    there: str, copies: Mapping[str, Incoming], asked: Sequence[FileFacts], answers: Sequence[FileFacts]
) -> Iterator[Obstacle]:
    """File systems of the target that do not hold what is to come along to them."""
    parents = {answer.path: answer for answer in answers if "parent" in answer.uses and answer.room >= 0}
    needed: dict[str, int] = {}
    places: dict[str, FileFacts] = {}
    for file in asked:
        parent = parents.get(posixpath.dirname(file.path))
        if file.path in copies and parent is not None:
            name = parent.mount or parent.path
            needed[name] = needed.get(name, 0) + file.allocated
            places.setdefault(name, parent)
    for name, size in needed.items():
        if size > places[name].room:
            free = bytes_text(places[name].room)
            yield make("files-room", there, places[name].path, free=free, mount=name, needed=bytes_text(size))


class _Files:
    def __init__(
        self,
        here: str,
        there: str,
        copy: bool,
        overwrite: bool,
        elsewhere: set[str],
        directories: dict[str, bool],
        watched: dict[str, str],
    ) -> None:
        self._here = here
        self._there = there
        self._copy = copy
        self._overwrite = copy and overwrite
        self._elsewhere = elsewhere
        self._directories = directories
        self._watched = watched
        self._frequent: dict[tuple[str, ...], list[tuple[str, dict[str, Any]]]] = {}
        self.obstacles: list[Obstacle] = []
        self.copies: dict[str, Incoming] = {}

    @property
    def _alike(self) -> str:
        return f"make it what it is on {self._here}"

    def _shell(self, command: str, file: FileFacts) -> str:
        return f"there: {command} {file.mode:o} {shlex.quote(file.path)}"

    def _say(self, name: str, path: str, problem: str = "", remedy: str = "", **fields: Any) -> None:
        self.obstacles.append(make(name, self._there, path, problem=problem, remedy=remedy, **fields))

    def look(self, file: FileFacts, answer: FileFacts) -> None:
        """One file of the tree, and what the target has at its path."""
        if file.uses == ("parent",):
            return
        if file.uses == ("bind",):
            self._bound(file, answer)
        elif file.uses == ("connect",):
            if "bound" not in answer.uses:
                self._say("socket-missing", file.path)
        elif file.uses == ("watch",):
            if answer.kind == "missing":
                self._say("watch-missing", file.path, how=self._watched.get(file.path, "inotify"))
        elif answer.kind == "missing":
            self._missing(file)
        elif answer.kind != file.kind:
            self._say("file-kind", file.path, remedy=self._alike, there=answer.kind, here=file.kind)
        elif self._settled_by_mount(file, answer):
            pass
        elif _written(file) and file.path not in self._elsewhere:
            self._take_along(file, answer)
        elif self._overwrite and file.kind == "regular" and not _runs(file):
            found = list(self._compared(file, answer))
            if any(one.id in _REPLACEABLE for one in found):
                self._replace(file, answer)
            else:
                self.obstacles += found
        else:
            self.obstacles += self._compared(file, answer)

    def _replace(self, file: FileFacts, answer: FileFacts) -> None:
        self.copies[file.path] = Incoming(file.path, True, answer.size, answer.mtime_ns)

    def _bound(self, file: FileFacts, answer: FileFacts) -> None:
        if "bound" in answer.uses or answer.kind not in ("missing", "socket"):
            what = "a process there uses this socket" if "bound" in answer.uses else f"a {answer.kind} is there"
            self._say("socket-taken", file.path, what=what)
        elif not self._directories.get(posixpath.dirname(file.path), False):
            self._no_directory(posixpath.dirname(file.path), "a socket of the tree is bound in it")

    def _no_directory(self, path: str, why: str) -> None:
        obstacle = make("directory-missing", self._there, path, why=why, quoted=shlex.quote(path))
        if obstacle not in self.obstacles:
            self.obstacles.append(obstacle)

    def _settled_by_mount(self, file: FileFacts, answer: FileFacts) -> bool:
        """Whether where the file lies decides it: on network storage here, and on something else there."""
        ours, theirs = _medium(file), _medium(answer)
        if file.path in self._elsewhere and theirs not in ("", "network"):
            self._say("not-shared", file.path, there=answer.mount, here=file.mount or "network storage")
            return True
        if ours == theirs == "network" and (doubt := _other_storage(file.mount, answer.mount)):
            stops = doubt == "other"
            problem = "" if stops else f"lies on {answer.mount} there, on {file.mount} here: the same, by another name?"
            self.obstacles.append(
                make("not-shared", self._there, file.path, problem=problem, stops=stops, there=answer.mount,
                     here=file.mount)
            )  # fmt: skip
            return stops
        if file.kind == "regular" and "memory" in (ours, theirs) and "" not in (ours, theirs) and ours != theirs:
            self._often("file-system", file.path, there=_type(answer), here=_type(file))
        return False

    def _often(self, name: str, path: str, **fields: Any) -> None:
        """A warning that may hold for many files: said once, with how many more there are."""
        self._frequent.setdefault((name, *(str(value) for value in fields.values())), []).append((path, fields))

    def frequent(self) -> Iterator[Obstacle]:
        """The warnings of `_often`."""
        for (name, *_), found in self._frequent.items():
            path, fields = found[0]
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            quoted = " ".join(shlex.quote(one) for one, _ in found[:3]) + (" …" if len(found) > 3 else "")
            yield make(name, self._there, path + more, quoted=quoted, **fields)

    def _missing(self, file: FileFacts) -> None:
        if file.path in self._elsewhere:
            self._say("file-missing", file.path, "not there", "mount that network file system there as well")
        elif file.kind == "directory":
            self._say("file-missing", file.path, "directory not there", self._shell("mkdir -p -m", file))
        elif file.kind != "regular" or _of_kernel(file):
            self._say("file-missing", file.path, f"{file.kind} not there", self._alike)
        elif _runs(file):
            self._say("file-missing", file.path, "executable or library not there", "install the same package there")
        elif not self._copy:
            self._say("file-written" if _written(file) else "file-missing", file.path, "not there", _COPY)
        elif not self._directories.get(posixpath.dirname(file.path), False):
            self._no_directory(posixpath.dirname(file.path), "a file is to be copied into it")
        else:
            self.copies[file.path] = Incoming(file.path)

    def _take_along(self, file: FileFacts, answer: FileFacts) -> None:
        same = (file.size, file.mtime_ns) == (answer.size, answer.mtime_ns)
        if _runs(file):
            self._say(
                "file-written", file.path, "the tree runs this file and has it open for writing",
                "such a file is never copied: let the program close it",
            )  # fmt: skip
        elif not self._copy:
            away = "" if same else "; move away the different file that is there"
            self._say("file-written", file.path, remedy=_COPY + away)
        elif not same and not self._overwrite:
            self._say(
                "file-differs", file.path,
                f"is there already and differs ({bytes_text(answer.size)}, here {bytes_text(file.size)})",
            )  # fmt: skip
        else:
            self._replace(file, answer)

    def _compared(self, file: FileFacts, answer: FileFacts) -> Iterator[Obstacle]:
        remedy = "install the same version of its package on both hosts" if _runs(file) else self._alike
        if self._copy and file.kind == "regular" and not _runs(file) and not _of_kernel(file):
            remedy = f"{remedy}, or {_OVERWRITE}"
        if file.kind in ("char", "block") and file.rdev != answer.rdev:
            problem = f"is device {_numbers(answer)}, not {_numbers(file)}"
            yield make("file-kind", self._there, file.path, problem=problem, remedy=remedy)
        if file.kind == "regular" and file.path not in self._elsewhere:
            if file.build_id and file.build_id != answer.build_id:
                yield make("library-build", self._there, file.path, remedy=remedy)
            elif file.size != answer.size:
                yield make(
                    "file-size", self._there, file.path, remedy=remedy, there=answer.size, here=file.size
                )  # fmt: skip
            elif (file.digest or answer.digest) and file.digest != answer.digest:
                yield make("file-content", self._there, file.path, remedy=remedy)
        if (file.uid, file.gid) != (answer.uid, answer.gid) and not _of_kernel(file) and file.kind in _OWNED:
            self._often("file-owner", file.path, there=f"{answer.uid}:{answer.gid}", here=f"{file.uid}:{file.gid}")
        if file.mode != answer.mode:
            quoted = shlex.quote(file.path)
            yield make("file-mode", self._there, file.path, quoted=quoted, there=answer.mode, here=file.mode)
