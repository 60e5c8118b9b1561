"""The agent as a file: built, brought and started through a real shell and python3; and what its refusals mean."""

from __future__ import annotations

import ast
import io
import os
import shlex
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from agent import protocol
from migrator import bundle, errors
from migrator.channel import Channel
from migrator.local import ProcessChannel

Start = Callable[[Sequence[str]], Awaitable[ProcessChannel]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path


@pytest.fixture
async def start(home: Path) -> AsyncIterator[Start]:
    """Start a command as sshd does: as one text, through the user's shell."""
    channels = []

    async def through_a_shell(command: Sequence[str]) -> ProcessChannel:
        channel = await ProcessChannel.start("db2", ["sh", "-c", f"exec {shlex.join(command)}"], patience=2)
        channels.append(channel)
        return channel

    yield through_a_shell
    for channel in channels:
        await channel.close()


def command(*arguments: str, sudo: bool = False) -> list[str]:
    return bundle.agent_command(arguments, sudo=sudo, python=sys.executable)


def counting(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is written to the channel from now on."""
    sizes: list[int] = []
    write = channel.write

    async def counted(data: bytes) -> None:
        sizes.append(len(data))
        await write(data)

    monkeypatch.setattr(channel, "write", counted)
    return sizes


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


async def banner(channel: Channel) -> protocol.Banner:
    line = await channel.readline(4096)
    found = protocol.Banner.parse(line.decode())
    assert found is not None, line
    return found


class TestArchive:
    def test_it_holds_the_package_and_nothing_else_in_order(self) -> None:
        with zipfile.ZipFile(io.BytesIO(bundle.archive())) as file:
            names = file.namelist()
            assert file.testzip() is None
            assert {about.date_time for about in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        root = Path(bundle.__file__).parent.parent
        assert names == sorted(["__main__.py", *(str(path.relative_to(root)) for path in root.glob("agent/**/*.py"))])

    def test_the_same_sources_give_the_same_bytes(self) -> None:
        first = bundle.archive()
        bundle.archive.cache_clear()
        assert bundle.archive() == first

    def test_the_build_names_the_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert len(bundle.build_id()) == 16
        before = bundle.build_id()
        monkeypatch.setattr(bundle, "archive", lambda: b"other bytes")
        assert bundle.build_id() != before

    def test_a_bare_python_runs_it(self, tmp_path: Path) -> None:
        path = tmp_path / "agent.pyz"
        path.write_bytes(bundle.archive())
        done = subprocess.run(
            [sys.executable, "-IS", str(path), "relay", str(tmp_path / "none"), "a"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "migrate relay a: cannot reach the agent at" in done.stderr


class TestBoot:
    def test_any_shell_and_any_python3_take_the_text(self) -> None:
        (text,) = [word for word in command("serve") if word.startswith("exec(")]
        assert not set("'!$`\n") & set(text)
        assert "\\\\" not in text, "fish would halve a double backslash"
        ast.parse(bundle._BOOT, feature_version=(3, 4))

    @pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "tcsh", "busybox"])
    def test_each_shell_passes_it_on_whole(self, shell: str, home: Path) -> None:
        path = shutil.which(shell)
        if path is None:
            pytest.skip(f"{shell} is not installed")
        words = [path, "sh", "-c"] if shell == "busybox" else [path, "-c"]
        done = subprocess.run(
            [*words, "exec " + shlex.join(command("serve"))], input=b"", capture_output=True, check=False
        )
        assert done.stdout == b"migrate-boot want\n", done.stderr

    async def test_sent_once_and_not_twice(self, start: Start, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for expected in ([len(bundle.packed())], []):
            channel = await start(command())
            sizes = counting(channel, monkeypatch)
            path = await bundle.greet(channel, "db2")
            assert sizes == expected
            assert path == str(home / f".cache/migrate/agent-{bundle.build_id()}.pyz")
            assert (await banner(channel)).build == bundle.build_id()
            await channel.close()
        about = Path(path).stat()
        assert stat.S_IMODE(about.st_mode) == 0o600
        assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
        assert [entry.name for entry in Path(path).parent.iterdir()] == [Path(path).name]

    async def test_a_cached_file_that_is_damaged_is_sent_again(self, start: Start, home: Path) -> None:
        place = home / ".cache/migrate"
        place.mkdir(parents=True)
        path = place / f"agent-{bundle.build_id()}.pyz"
        await bundle.greet(await start(command()), "db2")
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole[:100000] + b"?" + whole[100001:], whole.replace(b" ", b" x", 1), b""):
            path.write_bytes(damaged)
            assert await bundle.greet(await start(command()), "db2") == str(path)
            assert path.read_bytes() == whole

    async def test_what_is_kept_is_compiled_and_the_sources_are_there_too(self, start: Start, home: Path) -> None:
        path = await bundle.greet(await start(command()), "db2")
        bare = home / "bare.pyz"
        with zipfile.ZipFile(path) as kept, zipfile.ZipFile(bare, "w") as compiled:
            with zipfile.ZipFile(io.BytesIO(bundle.archive())) as sent:
                assert {name: sent.read(name) for name in sent.namelist()} == {
                    name: kept.read(name) for name in kept.namelist() if name.endswith(".py")
                }
            for name in kept.namelist():
                if name.endswith(".pyc"):
                    compiled.writestr(name, kept.read(name))
        relay = await start([sys.executable, "-IS", str(bare), "relay", str(home / "none"), "a"])
        assert await relay.wait() == 1
        assert "migrate relay a: cannot reach the agent at" in relay.stderr_tail()

    async def test_what_was_not_started_for_a_day_goes(self, start: Start, home: Path) -> None:
        place = home / ".cache/migrate"
        place.mkdir(parents=True)
        for name, age in (("agent-old.pyz", 90000), ("agent-used.pyz", 60), ("notes", 90000)):
            (place / name).touch()
            os.utime(place / name, (time.time() - age,) * 2)
        path = await bundle.greet(await start(command()), "db2")
        assert {entry.name for entry in place.iterdir()} == {Path(path).name, "agent-used.pyz", "notes"}

    async def test_xdg_cache_home_is_honoured(self, start: Start, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere ü'"))
        assert await bundle.greet(await start(command()), "db2") == str(
            home / "elsewhere ü'" / "migrate" / f"agent-{bundle.build_id()}.pyz"
        )
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
        assert (await bundle.greet(await start(command()), "db2")).startswith(str(home / ".cache"))

    async def test_no_place_is_said_and_nothing_is_left(
        self, start: Start, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (home / ".cache").write_text("a file where a directory should be")
        with pytest.raises(errors.ConnectError, match=r"db2: there is no place for the agent: .*/\.cache") as caught:
            await bundle.greet(await start(command()), "db2")
        assert "XDG_CACHE_HOME" in caught.value.hint

    async def test_a_full_disk_is_said_and_nothing_is_left(self, start: Start, home: Path) -> None:
        limit = ["sh", "-c", 'ulimit -f 8; trap "" XFSZ; exec "$@"', "sh", *command()]  # 8 blocks of 512 bytes or 1 KiB
        with pytest.raises(errors.ConnectError, match=r"no place for the agent: .*File too large"):
            await bundle.greet(await start(limit), "db2")
        assert list((home / ".cache/migrate").iterdir()) == []

    async def test_a_place_that_others_can_write_is_refused(self, start: Start, home: Path) -> None:
        place = home / ".cache/migrate"
        place.mkdir(parents=True)
        place.chmod(0o777)
        with pytest.raises(errors.ConnectError, match="writable for others"):
            await bundle.greet(await start(command()), "db2")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root runs as root")
    @pytest.mark.parametrize("whose", ["a user's", "anybody's", "a group's"])
    async def test_root_runs_nothing_from_where_somebody_else_could_put_it(
        self, start: Start, home: Path, tmp_path_factory: pytest.TempPathFactory, whose: str
    ) -> None:
        """As where sudo leaves HOME as it is: whoever owns a directory on the way could exchange what is in it."""
        own = tmp_path_factory.mktemp("own")
        for place in (home, own):
            os.chown(place, 1234 if whose == "a user's" else 0, 1234)
            place.chmod({"a user's": 0o755, "anybody's": 0o777, "a group's": 0o775}[whose])
        text = f"import pwd; pwd.getpwuid = lambda uid: type('', (), dict(pw_dir={str(own)!r})); exec({bundle._BOOT!r})"
        words = [sys.executable, "-IS", "-c", text, *command()[5:]]
        with pytest.raises(errors.ConnectError, match=f"{own} on the way to .* is writable for others"):
            await bundle.greet(await start(words), "db2")
        os.chown(own, 0, 0)
        own.chmod(0o755)
        assert await bundle.greet(await start(words), "db2") == f"{own}/.cache/migrate/agent-{bundle.build_id()}.pyz"
        assert list(home.iterdir()) == []

    async def test_damage_on_the_way_is_noticed(
        self, start: Start, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = command()
        whole = bundle.archive()
        monkeypatch.setattr(bundle, "archive", lambda: whole[:-1] + b"?")
        with pytest.raises(errors.ConnectError, match="arrived damaged"):
            await bundle.greet(await start(text), "db2")
        assert list((home / ".cache/migrate").iterdir()) == []

    async def test_an_old_python_is_named(self, start: Start) -> None:
        old = f"import sys; sys.version_info = (3, 6, 1); exec({bundle._BOOT!r})"
        with pytest.raises(errors.NoPython, match=r"its python3 is 3\.6\.1, the agent needs 3\.9"):
            await bundle.greet(await start([sys.executable, "-c", old]), "db2")

    async def test_a_shell_that_prints_is_no_hindrance(self, start: Start, home: Path) -> None:
        noisy = ["sh", "-c", 'echo "Welcome to db2"; echo; exec "$@"', "sh", *command()]
        channel = await start(noisy)
        await bundle.greet(channel, "db2")
        assert (await banner(channel)).product == protocol.AGENT_PRODUCT


class TestRefusals:
    """What does not come up is named by its cause, with what to do."""

    async def refusal(self, start: Start, words: Sequence[str]) -> errors.ConnectError:
        with pytest.raises(errors.ConnectError) as caught:
            await bundle.greet(await start(words), "db2")
        assert caught.value.message.startswith("db2: ")
        return caught.value

    async def test_no_python(self, start: Start) -> None:
        error = await self.refusal(start, bundle.agent_command([], sudo=False, python="python3-that-is-not-there"))
        assert type(error) is errors.NoPython
        assert "install python3" in error.hint

    @pytest.mark.parametrize(
        ("sudo", "kind"),
        [
            ("echo 'sudo: a password is required' >&2; exit 1", errors.NotRoot),
            ("echo 'sudo: Ein Passwort ist notwendig' >&2; exit 1", errors.NotRoot),
            ("echo 'we trust you have received the usual lecture' >&2; exit 1", errors.WrongAgent),
            ("echo 'sudo: python3: command not found' >&2; exit 1", errors.NoPython),
            ('test "$1" = -n && shift 2 && exec "$@"', None),
        ],
    )
    async def test_sudo(
        self,
        sudo: str,
        kind: type[errors.ConnectError] | None,
        start: Start,
        home: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        program(home, "sudo", sudo)
        monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
        words = command(sudo=True)
        if kind is None:
            assert await bundle.greet(await start(words), "db2")
        else:
            assert type(await self.refusal(start, words)) is kind

    async def test_no_sudo(self, start: Start, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program(home, "sh", f'exec {shutil.which("sh")} "$@"')
        monkeypatch.setenv("PATH", str(home))
        error = await self.refusal(start, command(sudo=True))
        assert type(error) is errors.NotRoot
        assert "as root" in error.hint

    async def test_another_program_in_its_place(self, start: Start) -> None:
        error = await self.refusal(start, ["sh", "-c", "while echo 220 ProFTPD ready; do :; done"])
        assert type(error) is errors.WrongAgent
        assert "220 ProFTPD" in error.message

    async def test_a_line_without_an_end(self, start: Start) -> None:
        error = await self.refusal(start, ["sh", "-c", "while printf xxxxxxxxxxxxxxxx; do :; done"])
        assert type(error) is errors.WrongAgent

    async def test_one_who_says_no(self, start: Start) -> None:
        error = await self.refusal(start, ["sh", "-c", "echo This account is currently not available.; exit 1"])
        assert type(error) is errors.WrongAgent
        assert "This account is currently not available. (exit status 1)" in error.message

    async def test_one_who_says_nothing(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bundle, "START_SECONDS", 0.1)
        error = await self.refusal(start, ["cat"])
        assert type(error) is errors.WrongAgent
        assert "did not start within" in error.message


class TestGreetRelay:
    @pytest.mark.parametrize(
        ("text", "ends"),
        [
            ("echo Welcome; echo STREAM pages; echo rest", None),
            ("echo STREAM other; exit 0", "the relay did not start"),
            ("echo 'migrate relay pages: cannot reach the agent' >&2; exit 1", "cannot reach the agent"),
            ("cat", "did not start within"),
        ],
    )
    async def test_only_its_own_header_counts(
        self, text: str, ends: str | None, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bundle, "START_SECONDS", 5.0 if ends != "did not start within" else 0.1)
        channel = await start(["sh", "-c", text])
        if ends is None:
            await bundle.greet_relay(channel, "pages")
            assert await channel.read() == b"rest\n"
        else:
            with pytest.raises(OSError, match=ends):
                await bundle.greet_relay(channel, "pages")
