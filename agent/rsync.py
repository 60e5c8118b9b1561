"""The rsync program on this host, its only door: whole files, while the process runs, over a stream of the migration.

The client on the source is given another remote shell, this very agent (`shell`), which carries rsync's own protocol on
the stream; the target's agent starts the server that the client asks for. So rsync needs no login of its own, `--sudo`,
`--bandwidth` and `--compress` hold for it as for everything else, and it ends when the stream does. `migrator/rsync.py`
is another way, for image directories, over the operator's own ssh.

Only content goes this way. Owners, modes, times and attributes follow with the first pass (`sending.py`): rsync reads
attributes of the link by which the source names a file, not of the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import agent.program
from agent import confined, wire
from agent.deltas import FilesError

_VANISHED = 24
_PARTIAL = 23
"""rsync(1), EXIT VALUES: some files went away, or could not be sent."""
_LINE = 64 * 1024
_CHUNK = 256 * 1024
_LAST_WORDS = 2000


def arguments(program: str, shell: str, farm: Path) -> list[str]:
    """The client's command; the names come on its input, each ended by a zero byte: links in `farm` (`--copy-links`).

    Where it goes is not for it to say: the server has a directory of its own.
    """
    return [
        program, "--inplace", "--sparse", "--whole-file", "--copy-links", "--no-implied-dirs", "--from0",
        "--files-from=-", f"--rsh={shell}", f"{farm}/", "target:.",
    ]  # fmt: skip


def shell(descriptor: int) -> str:
    """The remote shell's command, as --rsh takes it: words with spaces are quoted (rsync(1), no escapes)."""
    words = agent.program.command("shell", str(descriptor))
    return " ".join(f"'{word}'" if '"' in word else f'"{word}"' for word in words)


def send(program: str, farm: Path, names: Iterable[str], stream: socket.socket) -> None:
    """Run the client: every name is a link below `farm`. Raises FilesError where it could not send all of them.

    What went away meanwhile is no error: the pass that follows says what there is.
    """
    names = list(names)
    listed = b"".join(os.fsencode(name) + b"\0" for name in names)
    command = arguments(program, shell(stream.fileno()), farm)
    try:
        done = subprocess.run(
            command, input=listed, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(stream.fileno(),),
            env=_environment(), start_new_session=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise FilesError("rsync is not installed") from None
    if done.returncode in (0, _VANISHED):
        return
    if done.returncode == _PARTIAL and not all((farm / name).is_file() for name in names):
        return
    said = done.stderr[-_LAST_WORDS:].decode(errors="replace").strip().splitlines()
    raise FilesError(f"rsync failed: {said[0] if said else f'exit status {done.returncode}'}")


def _environment() -> dict[str, str]:
    """Ours, without what changes how rsync's two halves speak to each other (rsync(1), ENVIRONMENT VARIABLES)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RSYNC_")}
    return {**kept, "LC_ALL": "C"}


def serve(program: str, stream: socket.socket, room: Path, paths: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start the server that the far end asks for; leaving it as a context waits for it. What it says goes to `log`.

    It can write to the files at `paths` and to nothing else (`confined`), by their numbers; they are empty, and their
    paths settled (`anchor`). `room` is an empty directory, which is so again afterwards.

    Raises FilesError for another command, ConnectionError where nothing was asked.
    """
    words = _asked(stream)
    listed = os.memfd_create("migrate-files")
    try:
        with open(listed, "wb", closefd=False) as file:
            file.write(b"".join(os.fsencode(path) + b"\0" for path in paths))
        os.lseek(listed, 0, os.SEEK_SET)
        with log.open("ab") as said:
            return subprocess.Popen(
                agent.program.command("confined", str(room), str(listed), program, *words[1:]),
                stdin=stream.fileno(), stdout=stream.fileno(), stderr=said, pass_fds=(listed,), cwd="/",
                env=_environment(), umask=0o077, start_new_session=True,
            )  # fmt: skip
    finally:
        os.close(listed)


def started(server: subprocess.Popen[bytes], log: Path) -> None:
    """Of a server that has ended. Raises FilesError where it never began, because it could not be confined."""
    if server.returncode == confined.FAILED:
        said = log.read_text(errors="replace").strip().splitlines()
        raise FilesError(said[-1] if said else "rsync could not be started")


_SERVER = re.compile(r"-[LRSWv]*e[0-9]*\.[A-Za-z]*", re.ASCII)
"""What a client of ours asks for in letters, and what it can do: `-LWRSe.LsfxCIvu`."""
_MAY_BE = {"--inplace", "--no-implied-dirs"}


def _asked(stream: socket.socket) -> list[str]:
    """The command on the stream's first line, with the directory that it is to run in; nothing behind that line is
    taken. Options that our client does not use are refused: some name files."""
    line = b""
    while not line.endswith(b"\n"):
        byte = stream.recv(1)
        if not byte or len(line) > _LINE:
            raise ConnectionError("no rsync asked for its other half")
        line += byte
    try:
        command = wire.loads(line)
    except wire.WireError as error:
        raise FilesError(f"the stream of rsync is broken: {error}") from error
    words = command if isinstance(command, list) and all(isinstance(word, str) for word in command) else []
    options = words[2:-2]
    well = words[:2] == ["rsync", "--server"] and len(words) > 4 and words[-2] == "."
    if not well or not _SERVER.fullmatch(options[0]) or not _MAY_BE.issuperset(options[1:]):
        raise FilesError(f"the stream of rsync asks for another command: {str(words)[:200]}")
    return [*words[:-1], "."]


def remote_shell(descriptor: int, words: Sequence[str]) -> int:
    """What rsync starts in place of ssh: its words (a host, then a command) go on the stream, then its bytes.

    0 when the far end has ended, 1 when the stream broke.
    """
    with socket.socket(fileno=descriptor) as stream:
        program, *rest = words[1:]

        def outwards() -> None:
            with contextlib.suppress(OSError):  # the other direction ends as well, and is what counts
                while data := os.read(0, _CHUNK):
                    stream.sendall(data)
                stream.shutdown(socket.SHUT_WR)

        try:
            stream.sendall(json.dumps([os.path.basename(program), *rest]).encode("ascii") + b"\n")
            threading.Thread(target=outwards, daemon=True).start()
            while data := stream.recv(_CHUNK):
                _write(1, data)
        except OSError:
            return 1
        return 0


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
