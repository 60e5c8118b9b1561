"""The agent as one file: built from the package, brought to a host that has none, and started there.

Owns the archive, its place on the target, the command lines that start an agent or a relay, and what it means when they
do not come up. Knows channels, not SSH.

Starting costs one exec, and one round trip when the archive is there already. The exec runs a few lines of Python that
look at the version and at `~/.cache/migrate/agent-BUILD.pyz`, ask for the archive on standard input if need be, and
then *become* the agent. They speak one word a line, `migrate-boot …`, so that whatever a login shell prints first is
skipped.

Root runs nothing from below a directory that somebody else could exchange: where the usual place is such a one, as
where sudo leaves HOME as it is, it is root's own home.

What is kept there is the archive compiled by the Python that is to run it, since compiling took most of an agent's
start; its first line names the archive, that Python, and a checksum of what follows.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.resources
import importlib.resources.abc
import io
import json
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.protocol import STREAM_HEADER
from migrator.channel import Channel
from migrator.errors import ConnectError, NoPython, NotRoot, WrongAgent

START_SECONDS = 60.0
"""From the exec to the agent's start, the archive's way included; an emulated machine takes several."""

NOISE_LIMIT = 64 * 1024
"""Bytes that a login shell may print before us."""

_WORD = b"migrate-boot"

# No quote, backslash, dollar or exclamation mark: the text goes through the login shell there, whichever that is.
# It must be understood by any python3, or an old one could not say that it is old.
_BOOT = """
import os, sys
def say(*words):
    os.write(1, (" ".join(("migrate-boot",) + words) + chr(10)).encode("utf-8", "surrogateescape"))
if sys.version_info < (3, 9):
    say("old", "%d.%d.%d" % sys.version_info[:3])
    sys.exit(1)
import binascii
digest = sys.argv[1]
cache = os.environ.get("XDG_CACHE_HOME", "")
if not os.path.isabs(cache):
    cache = os.path.join(os.path.expanduser("~"), ".cache")
def unsafe(path):
    path = os.path.realpath(path)
    while os.geteuid() == 0:
        if os.path.exists(path):
            about = os.stat(path)
            shared = about.st_mode & 0o2 or (about.st_mode & 0o20 and about.st_gid)
            if about.st_uid or (shared and not about.st_mode & 0o1000):
                return path
        if path == "/":
            break
        path = os.path.dirname(path)
    return ""
if unsafe(cache):
    import pwd
    cache = os.path.join(pwd.getpwuid(0).pw_dir, ".cache")
place = os.path.join(cache, "migrate")
path = os.path.join(place, "agent-" + digest[:16] + ".pyz")
def stamped(data):
    head = "#%s %s %08x%s" % (digest, sys.implementation.cache_tag, binascii.crc32(data), chr(10))
    return head.encode() + data
def there():
    try:
        with open(path, "rb") as file:
            found = file.read()
    except OSError:
        return False
    return found == stamped(found.partition(chr(10).encode())[2])
def receive():
    import hashlib, zlib
    say("want")
    data, unpacker = b"", zlib.decompressobj()
    while not unpacker.eof:
        more = os.read(0, 65536)
        if len(more) == 0:
            sys.exit(1)
        try:
            data += unpacker.decompress(more)
        except zlib.error:
            break
    if not hashlib.sha256(data).hexdigest() == digest:
        raise OSError("the agent arrived damaged")
    return data
def compiled(data):
    import importlib.util, io, marshal, zipfile
    there = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(there, "w") as new:
        for member in old.infolist():
            source = old.read(member)
            new.writestr(zipfile.ZipInfo(member.filename), source)
            code = marshal.dumps(compile(source, os.path.join(path, member.filename), "exec", 0, True))
            unchecked = importlib.util.MAGIC_NUMBER + bytes((1, 0, 0, 0)) + importlib.util.source_hash(source)
            new.writestr(zipfile.ZipInfo(member.filename + "c"), unchecked + code)
    return there.getvalue()
try:
    os.makedirs(place, 0o700, exist_ok=True)
    about = os.stat(place)
    if about.st_uid not in (0, os.geteuid()) or about.st_mode & 0o22:
        raise OSError(place + " is writable for others")
    if unsafe(place):
        raise OSError(unsafe(place) + " on the way to " + place + " is writable for others")
    if there():
        os.utime(path)
    else:
        import time
        data = stamped(compiled(receive()))
        temporary = "%s.%d" % (path, os.getpid())
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except OSError:
            os.path.exists(temporary) and os.unlink(temporary)
            raise
        for name in os.listdir(place):
            other = os.path.join(place, name)
            if name.startswith("agent-") and not other == path and os.stat(other).st_mtime < time.time() - 86400:
                os.unlink(other)
except OSError as error:
    say("failed", str(error))
    sys.exit(1)
say("have", path)
os.execv(sys.executable, [sys.executable, "-IS", "-Xutf8", path] + sys.argv[2:])
"""

# The local agent runs from where this package lies, without a file of its own: sudo drops PYTHONPATH, and appending
# (not inserting) the place leaves the standard library's modules the standard library's.
_LOCAL = """
import os, sys
sys.path.append(sys.argv.pop(1))
os.write(1, b"migrate-boot have" + bytes((32, 10)))
from agent.__main__ import main
sys.exit(main())
"""


@functools.cache
def archive() -> bytes:
    """The agent's package as a zipapp: the same bytes whenever the sources are the same."""
    main = "import sys\n\nfrom agent.__main__ import main\n\nsys.exit(main())\n"
    members = {"__main__.py": main.encode(), **dict(_sources(importlib.resources.files("agent"), "agent"))}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name in sorted(members):
            about = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            about.external_attr = 0o100644 << 16
            about.create_system = 3
            file.writestr(about, members[name])
    return data.getvalue()


def packed() -> bytes:
    """The archive as it goes over the wire: packed as a whole, and only when it is asked for."""
    return zlib.compress(archive(), 9)


def _sources(folder: importlib.resources.abc.Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _sources(entry, f"{name}/{entry.name}")
        elif entry.name.endswith(".py"):
            yield f"{name}/{entry.name}", entry.read_bytes()


def _digest() -> str:
    return hashlib.sha256(archive()).hexdigest()


def build_id() -> str:
    """16 hexadecimal digits that name this agent: the start of its archive's SHA-256."""
    return _digest()[:16]


def _program(source: str, *arguments: str, python: str) -> list[str]:
    # as one line: some login shells take no newline between quotes
    # -Xutf8: file names are the same bytes on both hosts, whatever their locales are
    return [python, "-IS", "-Xutf8", "-c", f"exec({json.dumps(source)})", *arguments]


def _as_root(sudo: bool) -> list[str]:
    return ["sudo", "-n", "--"] if sudo else []


def agent_command(arguments: Sequence[str], *, sudo: bool, python: str) -> list[str]:
    """What starts the agent on a host that may have none; `greet` must follow."""
    serve = ("serve", "--build", build_id(), *arguments)
    return [*_as_root(sudo), *_program(_BOOT, _digest(), *serve, python=python)]


def relay_command(path: str, socket: str, name: str, form: str = "plain", *, sudo: bool, python: str) -> list[str]:
    """What carries a bulk stream there; `path` is what `greet` returned."""
    return [*_as_root(sudo), python, "-IS", "-Xutf8", path, "relay", socket, name, form]


def local_command(arguments: Sequence[str], *, sudo: bool) -> list[str]:
    """What runs the agent's own package on this host, with `serve …` or `relay …`; `greet` must follow."""
    place = str(Path(str(importlib.resources.files("agent"))).parent)
    return [*_as_root(sudo), *_program(_LOCAL, place, *arguments, python=sys.executable)]


async def greet(channel: Channel, host: str) -> str:
    """See the agent come up, sending it where it is not there yet; return its path on that host.

    Raises NoPython, NotRoot, WrongAgent or, where there is no place for it, ConnectError.
    """
    try:
        async with asyncio.timeout(START_SECONDS):
            return await _greet(channel, host)
    except TimeoutError:
        raise WrongAgent(
            f"{host}: the agent did not start within {START_SECONDS:.0f} s", hint=_last_words(channel, b"")
        ) from None
    except OSError as error:
        raise ConnectError(f"{host}: the connection was lost while the agent started: {error}") from error


async def _greet(channel: Channel, host: str) -> str:
    noise = b""
    while len(noise) < NOISE_LIMIT:
        try:
            line = await channel.readline(NOISE_LIMIT)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            raise not_started(host, await channel.wait(), _last_words(channel, noise + line))
        first, _, rest = line[:-1].partition(b" ")
        word, _, detail = rest.partition(b" ")
        text = detail.decode(errors="surrogateescape")
        if first != _WORD:
            noise += line
        elif word == b"have":
            return text
        elif word == b"want":
            await channel.write(packed())
        elif word == b"old":
            raise NoPython(
                f"{host}: its python3 is {text}, the agent needs 3.9 or newer", hint="install a newer python3 there"
            )
        else:
            raise ConnectError(
                f"{host}: there is no place for the agent: {text}",
                hint="it needs 1.1 MB in ~/.cache/migrate (or XDG_CACHE_HOME) of the user that it runs as",
            )
    raise WrongAgent(
        f"{host}: something else answered in the agent's place: {noise[:60]!r}",
        hint="what does the login shell there print? It should be silent for commands",
    )


async def greet_relay(channel: Channel, name: str) -> None:
    """See a relay come up, by the header that it repeats. Raises OSError when it does not."""
    header = f"{STREAM_HEADER} {name}\n".encode()
    skipped = 0
    try:
        async with asyncio.timeout(START_SECONDS):
            while skipped < NOISE_LIMIT:
                line = await channel.readline(NOISE_LIMIT)
                if line == header:
                    return
                if not line.endswith(b"\n"):
                    break
                skipped += len(line)
            raise ConnectionError(_last_words(channel, b"") or "the relay did not start")
    except TimeoutError:
        raise ConnectionError(f"the relay did not start within {START_SECONDS:.0f} s") from None
    except ValueError as error:
        raise ConnectionError(f"something else answered in the relay's place: {error}") from None


def _last_words(channel: Channel, output: bytes) -> str:
    """The last line on stderr, or else on stdout."""
    lines = channel.stderr_tail().strip().splitlines() or output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def not_started(host: str, status: int | None, said: str) -> ConnectError:
    """What it means that a start command ended with this exit status, saying this last."""
    words = f"{host}: the agent did not start" + (f": {said}" if said else "")
    sudo_spoke = said.startswith("sudo:")
    if "python" in said and (status == 127 or (sudo_spoke and "not found" in said)):
        return NoPython(
            words, hint="install python3 (3.9 or newer) there: `apt install python3`, `dnf install python3`"
        )
    if sudo_spoke or (status == 127 and "sudo" in said):
        return NotRoot(
            words, hint="log in as root, or allow it there without a password (sudoers: USER ALL=(root) NOPASSWD: ALL)"
        )
    if status in (126, 127):
        return NoPython(words, hint="install python3 (3.9 or newer) there")
    return WrongAgent(words + ("" if status is None else f" (exit status {status})"), hint="try `python3 -V` there")
