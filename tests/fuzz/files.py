"""Parsers of what is kept in files, and of what is to become files."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, cast

from agent import blocks, deltas, elf, images
from agent import ledger as ledgers_room
from agent.deltas import Attribute, Delta, FilesError, Held
from agent.journal import Damaged, Journal, JournalError, Record
from agent.ledger import Ledger
from agent.placing import Staging
from agent.protocol import Incoming
from agent.sending import Outgoing
from agent.settings import Settings
from agent.settle import read_journal
from tests import fake_criu
from tests.fuzz.rooms import only_plain_files, room

ID = "20260704-031500-a1b2c3"


# --- our own records -------------------------------------------------------------------------------------------------


def journal(data: bytes) -> None:
    """A migration's journal, whatever a crash or a full disk has made of it; and the answer that is made of it."""
    state = room("journal")
    (state / ID).mkdir()
    (state / ID / "journal").write_bytes(data)
    with contextlib.suppress(JournalError):
        one = Journal.load(state, ID)
        assert one.migration == ID
        assert all(isinstance(record, Record) for record in one.records)
        one.close()
        answer = read_journal(Settings(state=state, run=state / "run"), ID)
        assert answer.role in ("source", "target")
    with contextlib.suppress(Damaged):
        assert read_journal(Settings(state=state, run=state / "run"), "").migration in ("", ID)


def journals() -> Iterable[bytes]:
    """Of both hosts; and one that is torn."""
    facts = {"time": 1.5, "id": ID, "peer": "beta", "root": 4242, "boot": "b", "agent": [4, 5]}
    source = [
        {"record": "BEGIN", "role": "source", **facts, "tasks": [[4242, 7]], "on_disk": False, "directory": ""},
        {"record": "criu", "pid": 9, "start": 10}, {"record": "FROZEN"}, {"record": "COMMIT", "tasks": [[4242, 7]]},
    ]  # fmt: skip
    target = [
        {"record": "PREPARED", "role": "target", **facts, "on_disk": True, "shared": "", "namespace": 0},
        {"record": "HELD", "tasks": [[4242, 7]], "root": 4242}, {"record": "RESUMING"}, {"record": "RESUMED", "pid": 1},
    ]  # fmt: skip
    for lines in (source, target):
        text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        yield text
        yield text[:-5] + b"?\n"


def ledger(data: bytes) -> None:
    """The record of what lies beside the files, of an agent that is dead: read, and what it may still take back."""
    place = room("ledger")
    (place / "record").write_bytes(data)
    found = Ledger.read(place / "record")
    for name in found.names:
        assert os.path.isabs(name), name
        assert os.path.basename(name).startswith(ledgers_room.PREFIX), f"{name!r} would be removed"


def ledgers() -> Iterable[bytes]:
    """One act of each kind."""
    acts: list[dict[str, object]] = [
        {"act": "temporary", "name": "/nowhere/.migrate-1"},
        {
            "act": "place",
            "path": "/nowhere/x",
            "temporary": "/nowhere/.migrate-1",
            "saved": "",
            "device": 1,
            "inode": 2,
        },
        {"act": "forget", "path": "/nowhere/x"},
    ]
    yield b"".join(json.dumps(act).encode() + b"\n" for act in acts)


# --- what comes from the source --------------------------------------------------------------------------------------


def archive(data: bytes) -> None:
    """The archive of images. Whatever it holds, it becomes regular files of this directory, none larger than it."""
    place = room("archive")
    with contextlib.suppress(images.ImageError):
        images.receive(place, io.BytesIO(data))
    only_plain_files(place, ".img")
    assert images.size(place) <= len(data), "more was written than came"


def archives() -> Iterable[bytes]:
    """A good one, and what else tar can hold."""
    place = room("archives")
    (place / "core-10.img").write_bytes(fake_criu.core_image(1))
    (place / "inventory.img").write_bytes(b"inventory")
    out = io.BytesIO()
    images.send(place, out)
    yield out.getvalue()
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        yield _tar("x.img", kind, linkname="/etc/passwd")
    for name in ("../x.img", "/x.img", "a/x.img", "x" * 120 + ".img", "pages-1.img"):
        yield _tar(name, tarfile.REGTYPE)
    yield _tar("x.img", tarfile.REGTYPE, headers={"path": "../x.img", "size": "1", "GNU.sparse.map": "0,1"})
    yield _tar("x.img", tarfile.GNUTYPE_SPARSE)


def _tar(name: str, kind: bytes, linkname: str = "", headers: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.pax_headers = kind, linkname, headers or {}
        member.size = 3 if kind == tarfile.REGTYPE else 0
        file.addfile(member, io.BytesIO(b"abc"))
    return out.getvalue()


def incoming(data: bytes) -> None:
    """A pass of files that come along. Nothing is written but what was announced, under names of ours."""
    place = room("incoming")
    stage = Staging(Ledger(), [Incoming(f"{place}/one"), Incoming(f"{place}/two")])
    try:
        stage.receive(io.BytesIO(data))
        stage.place()
    except (FilesError, ConnectionError):
        pass
    except OSError as error:
        assert error.errno == errno.ENOSPC  # it is one of three
    for path in place.iterdir():
        assert path.name in ("one", "two") or path.name.startswith(ledgers_room.PREFIX), path.name
        assert path.is_file()
        assert not path.is_symlink()
        assert path.stat().st_blocks * 512 <= len(data) + 2 * 4096, "more was written than came"


def incomings() -> Iterable[bytes]:
    """A file with content and a hole, and one that is gone."""
    out = io.BytesIO()
    one = Delta(0, False, 70_000, 0o644, os.getuid(), os.getgid(), 1, 2, (Attribute("user.x", "eA=="),), (0, 3, 9, -9))
    deltas.write(out, one)
    out.write(b"abc")
    deltas.write(out, Delta(1, gone=True))
    deltas.write_end(out, 2)
    yield out.getvalue()


def held(data: bytes) -> None:
    """What the target says that it has of the files; and the pass that follows, of small files."""
    place = room("held")
    for name in ("one", "two"):
        (place / name).write_bytes(b"x" * 5000)
    outgoing = Outgoing(os.getpid(), [f"{place}/one", f"{place}/two"])
    with contextlib.suppress(FilesError, ConnectionError):
        outgoing.learn(io.BytesIO(data))
        out = io.BytesIO()
        for index, path in enumerate((place / "one", place / "two")):
            outgoing._send_one(cast(BinaryIO, out), index, str(path), 0)
        assert out.getbuffer().nbytes < 1 << 20


def helds() -> Iterable[bytes]:
    """One of them, and nothing of the other."""
    out = io.BytesIO()
    deltas.write(out, Held(0, 5000, blocks.BLOCK, 1))
    out.write(blocks.sum_of(b"x" * 5000))
    deltas.write(out, Held(1, -1))
    deltas.write_end(out, 2)
    yield out.getvalue()


# --- what lies on a host ---------------------------------------------------------------------------------------------


def elf_of(data: bytes) -> None:
    """A file that a process maps."""
    path = room("elf") / "x"
    path.write_bytes(data)
    assert len(elf.build_id(str(path))) <= 128


def elves() -> Iterable[bytes]:
    """The head of a real one."""
    yield Path("/proc/self/exe").read_bytes()[:4096]
