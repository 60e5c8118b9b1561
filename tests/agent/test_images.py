"""Image directories: what is sent of them, what is refused, and what their bytes say of the tasks."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent import images
from agent.images import ImageError
from agent.protocol import Image, Moved
from tests import fake_criu
from tests.fuzz.limits import less_memory, less_time


@pytest.fixture
def dumped(tmp_path: Path) -> Path:
    """A round as criu leaves it on the source."""
    directory = tmp_path / "2"
    directory.mkdir()
    for name, content in {
        "inventory.img": b"inventory",
        "core-10.img": fake_criu.core_image(1),
        "empty.img": b"",
        "big.img": os.urandom(700_000),
        "pages-1.img": b"memory",
        "pagemap-10.img": b"map",
        "stats-dump": b"statistics",
        "dump.log": b"log",
    }.items():
        (directory / name).write_bytes(content)
    (directory / "parent").symlink_to("../1")
    (directory / "link.img").symlink_to("inventory.img")
    return directory


def archive_of(directory: Path) -> bytes:
    out = io.BytesIO()
    images.send(directory, out)
    return out.getvalue()


def test_everything_but_the_memory_goes_along(dumped: Path, tmp_path: Path) -> None:
    out = io.BytesIO()
    sent = images.send(dumped, out)
    there = tmp_path / "there"
    there.mkdir()
    out.seek(0)
    assert images.receive(there, out) == sent
    names = sorted(path.name for path in there.iterdir())
    assert names == ["big.img", "core-10.img", "empty.img", "inventory.img"]
    for name in names:
        assert (there / name).read_bytes() == (dumped / name).read_bytes()
    assert sent == Moved(4, sum((there / name).stat().st_size for name in names))


class Dribble(io.RawIOBase):
    """A socket that gives a little at a time, and whose end never comes."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._data.read(min(size, 1000))
        assert data, "read past the end of the archive: behind sudo that blocks for ever"
        return data


def test_it_ends_by_itself(dumped: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    assert images.receive(there, Dribble(archive_of(dumped))).files == 4  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.0)
def test_a_stream_that_is_cut_anywhere_is_never_taken_for_whole(dumped: Path, tmp_path: Path, share: float) -> None:
    (dumped / "big.img").write_bytes(b"x" * 3000)
    data = archive_of(dumped)
    needed = data.rindex(b"end-of-images")
    there = tmp_path / "cut"
    there.mkdir()
    try:
        with pytest.raises(ImageError):
            images.receive(there, io.BytesIO(data[: int(needed * share)]))
        # at the boundary of every member, too, where tar itself is content
        for boundary in range(0, needed, 512):
            shutil.rmtree(there)
            there.mkdir()
            with pytest.raises(ImageError):
                images.receive(there, io.BytesIO(data[:boundary]))
    finally:
        shutil.rmtree(there)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_damage_raises_nothing_but_image_error(dumped: Path, tmp_path: Path, position: float, flip: int) -> None:
    (dumped / "big.img").write_bytes(b"x" * 600)
    data = bytearray(archive_of(dumped))
    data[int(data.rindex(b"end-of-images") * position)] ^= flip
    there = tmp_path / "damaged"
    there.mkdir()
    try:
        images.receive(there, io.BytesIO(bytes(data)))
    except ImageError:
        pass
    finally:
        assert sorted(tmp_path.iterdir()) == [dumped, there]
        shutil.rmtree(there)


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    "member",
    [
        _member("../escape.img"),
        _member("/tmp/escape.img"),
        _member("a/b.img"),
        _member("pages-1.img"),
        _member("pagemap-10.img"),
        _member("script.sh"),
        _member("link.img", tarfile.SYMTYPE, "/etc/passwd"),
        _member("hard.img", tarfile.LNKTYPE, "inventory.img"),
        _member("fifo.img", tarfile.FIFOTYPE),
        _member("device.img", tarfile.CHRTYPE),
        _member("directory.img", tarfile.DIRTYPE),
        _member("sparse.img", tarfile.GNUTYPE_SPARSE),
        _member("x" * 101 + ".img"),
        _member(".hidden.img"),
        _member("new\nline.img"),
        _member("there.img"),
    ],
    ids=lambda member: member.name,
)
def test_what_send_does_not_write_is_not_received(tmp_path: Path, member: tarfile.TarInfo) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(member)
    there = tmp_path / "there"
    there.mkdir()
    (there / "there.img").write_text("was here before")
    out.seek(0)
    with pytest.raises(ImageError, match="the archive of images holds"):
        images.receive(there, out)
    assert (there / "there.img").read_text() == "was here before"
    assert [path.name for path in there.iterdir()] == ["there.img"]


@pytest.mark.parametrize(
    "headers",
    [
        {"path": "../escape.img"}, {"path": "a\0b.img"}, {"size": "1"}, {"linkpath": "/etc/passwd"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)},
        {"GNU.sparse.map": f"0,0,{1 << 40},0", "GNU.sparse.size": str(1 << 40)},
    ],
    ids=lambda headers: next(iter(headers)),
)  # fmt: skip
def test_what_is_said_beside_a_member_counts_for_nothing(tmp_path: Path, headers: dict[str, str]) -> None:
    """A few bytes could stand for a terabyte of zeros, or for another name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = _member("inventory.img")
        member.pax_headers = headers
        archive.addfile(member)
    there = tmp_path / "there"
    there.mkdir()
    with less_memory(), less_time(), pytest.raises(ImageError):
        images.receive(there, io.BytesIO(out.getvalue()))
    assert [path.stat().st_size for path in there.iterdir()] in ([], [0])
    assert list(tmp_path.iterdir()) == [there]


class Endless(io.RawIOBase):
    """A head, and then zeros for ever."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self.given = 0

    def read(self, size: int = -1) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        self.given += size
        return data + bytes(size - len(data))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_head_without_an_end_is_not_read(tmp_path: Path, kind: bytes) -> None:
    member = _member("x.img", kind)
    member.size = 8 << 30
    stream = Endless(member.tobuf(tarfile.GNU_FORMAT))
    with less_memory(), pytest.raises(ImageError):
        images.receive(tmp_path, stream)  # type: ignore[arg-type]  # all that is asked of it
    assert stream.given < 1 << 20


def test_heads_of_heads_without_an_end_are_an_error(tmp_path: Path) -> None:
    member = _member("x", tarfile.XHDTYPE)
    with pytest.raises(ImageError, match="broken"):
        images.receive(tmp_path, io.BytesIO(member.tobuf() * 100_000))


# --- protobuf --------------------------------------------------------------------------------------------------------

_messages = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 500), st.integers(0, 2**64 - 1), st.just(b"")),
        st.tuples(st.integers(1, 500), st.just(0), st.binary(max_size=300).filter(bool)),
    ),
    max_size=8,
)


@given(_messages)
def test_fields_are_read_as_they_were_written(fields: list[tuple[int, int, bytes]]) -> None:
    data = b"".join(
        fake_criu.message(number, body) if body else fake_criu.varint(number, value) for number, value, body in fields
    )
    assert images.fields(data) == fields


@given(st.binary(max_size=200))
def test_garbage_raises_nothing_but_image_error(data: bytes) -> None:
    try:
        images.fields(data)
    except ImageError:
        pass


def test_states_of_tasks(tmp_path: Path) -> None:
    for pid, state in ((10, 1), (11, images.TASK_STOPPED), (12, images.TASK_ZOMBIE)):
        (tmp_path / f"core-{pid}.img").write_bytes(fake_criu.core_image(state))
    (tmp_path / "core-13.img").write_bytes(fake_criu.thread_core_image())
    assert images.task_states(tmp_path) == {10: 1, 11: 3, 12: 6}


@pytest.mark.parametrize("damage", [lambda data: data[:11], lambda data: data[:-1], lambda data: b"\0" * 4 + data[4:]])
def test_core_images_that_are_none(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "core-10.img").write_bytes(damage(fake_criu.core_image(1)))
    with pytest.raises(ImageError, match=r"core-10\.img is no core image"):
        images.task_states(tmp_path)


# --- places ----------------------------------------------------------------------------------------------------------


def test_a_place_on_disk(tmp_path: Path) -> None:
    place = tmp_path / "run" / "m"
    images.make_place(place, memory=0)
    assert place.stat().st_mode & 0o7777 == 0o700
    (place / "1").mkdir()
    (place / "1" / "pages-1.img").write_bytes(b"x" * 10)
    (place / "1" / "core-1.img").write_bytes(b"y" * 5)
    assert (images.size(place / "1"), images.pages_size(place / "1")) == (15, 10)
    with pytest.raises(images.NoRoom, match="File exists"):
        images.make_place(place, memory=0)
    assert images.remove_place(place) == ()
    assert not place.exists()
    assert images.remove_place(place) == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_full_place_in_memory_gets_room_for_a_log(tmp_path: Path) -> None:
    place = tmp_path / "m"
    images.make_place(place, memory=1 << 20)
    try:
        (place / "fill").write_bytes(bytes(1 << 20))
        with pytest.raises(OSError, match="No space"):
            (place / "log").write_bytes(bytes(1 << 16))
        images.spare_room(place)
        (place / "log").write_bytes(bytes(images.SPARE))
        plain = tmp_path / "plain"
        images.make_place(plain, memory=0)
        images.spare_room(plain)  # is the disk's, and stays as it is
    finally:
        assert images.remove_place(place) == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_place_in_memory(tmp_path: Path) -> None:
    place = tmp_path / "m"
    images.make_place(place, memory=1 << 20)
    try:
        assert place.is_mount()
        assert place.stat().st_mode & 0o7777 == 0o700
        with pytest.raises(OSError, match="No space left"):
            (place / "big").write_bytes(b"x" * (2 << 20))
        with (place / "open").open("w"):
            (left,) = images.remove_place(place)
            assert "busy" in left
    finally:
        assert images.remove_place(place) == ()
    assert not place.exists()


def test_no_place_in_memory_without_root() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        said = as_nobody(lambda: images.make_place(Path(place) / "m", memory=1 << 20))
        assert re.search("NoRoom.*mounting a tmpfs at .* failed: Operation not permitted", said)
        assert os.listdir(place) == []


def as_nobody(act: Callable[[], object]) -> str:
    """What it raises in a process that may do nothing."""
    coming, going = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            act()
        except BaseException as error:
            os.write(going, repr(error).encode())
        os._exit(0)
    os.close(going)
    with open(coming) as said:
        text = said.read()
    os.waitpid(pid, 0)
    return text


# --- rounds that came by themselves ----------------------------------------------------------------------------------


def test_a_round_is_what_was_listed_of_it(tmp_path: Path) -> None:
    for name, size in (("core-7.img", 3), ("pages-1.img", 4096), ("inventory.img", 0)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "stats-dump").write_bytes(b"x")
    (tmp_path / "parent").symlink_to("../1")
    listed = images.listed(tmp_path, durable=True)
    assert [(image.name, image.size) for image in listed] == [
        ("core-7.img", 3), ("inventory.img", 0), ("pages-1.img", 4096),
    ]  # fmt: skip
    images.verify(tmp_path, listed)
    (tmp_path / "pages-1.img").write_bytes(bytes(4095))
    with pytest.raises(images.NotWhole, match=r"pages-1\.img has 4095 bytes, not 4096"):
        images.verify(tmp_path, listed)
    with pytest.raises(images.NotWhole, match=r"pages-2\.img has not come"):
        images.verify(tmp_path, (*listed[:2], Image("pages-2.img", 1)))
    with pytest.raises(images.NotWhole, match=r"pages-1\.img is there, and nobody sent it"):
        images.verify(tmp_path, listed[:2])


def test_a_round_that_has_been_sent_takes_no_room(tmp_path: Path) -> None:
    pages = tmp_path / "pages-1.img"
    pages.write_bytes(b"x" * (1 << 20))
    (tmp_path / "pagemap-1.img").write_bytes(b"map")
    images.give_back(tmp_path)
    assert pages.stat().st_size == 1 << 20
    assert pages.stat().st_blocks == 0
    assert (tmp_path / "pagemap-1.img").read_bytes() == b"map"


@pytest.mark.parametrize("name", ["core-x.img", "core-².img", "core-99999999999.img", "core-.img"])
def test_core_images_of_nobody(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(fake_criu.core_image(1))
    with pytest.raises(ImageError, match="is no core image"):
        images.task_states(tmp_path)


def test_a_place_is_closed_to_others_and_so_is_where_it_lies(tmp_path: Path) -> None:
    images.make_place(tmp_path / "run" / "m", memory=0)
    assert [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("run", "run/m")] == ["0o700"] * 2
