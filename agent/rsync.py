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
import socket
import subprocess
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import agent.program
from agent.deltas import FilesError

_VANISHED = 24
_PARTIAL = 23
"""rsync(1), EXIT VALUES: some files went away, or could not be sent."""
_LINE = 64 * 1024
_CHUNK = 256 * 1024
_LAST_WORDS = 2000


def arguments(program: str, shell: str, farm: Path) -> list[str]:
    """The client's command; the names come on its input, each ended by a zero byte, relative to `farm` and to /.

    `--copy-links`: `farm` has a link for each file, under the name that it gets. `--no-implied-dirs`: directories are
    there on both sides, and none of theirs is changed.
    """
    return [
        program, "--inplace", "--sparse", "--whole-file", "--copy-links", "--no-implied-dirs", "--from0",
        "--files-from=-", f"--rsh={shell}", f"{farm}/", "target:/",
    ]  # fmt: skip


def shell(descriptor: int) -> str:
    """The remote shell's command, as --rsh takes it: words with spaces are quoted (rsync(1), no escapes)."""
    words = agent.program.command("shell", str(descriptor))
    return " ".join(f"'{word}'" if '"' in word else f'"{word}"' for word in words)


def send(program: str, farm: Path, names: Iterable[str], stream: socket.socket) -> None:
    """Run the client: every name is a link below `farm`. Raises FilesError where it could not send all of them.

    What went away meanwhile is no error: the pass that follows says what there is.
    """
    listed = b"".join(os.fsencode(name.lstrip("/")) + b"\0" for name in names)
    command = arguments(program, shell(stream.fileno()), farm)
    try:
        done = subprocess.run(
            command, input=listed, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(stream.fileno(),),
            env={**os.environ, "LC_ALL": "C"}, start_new_session=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise FilesError("rsync is not installed") from None
    if done.returncode in (0, _VANISHED):
        return
    if done.returncode == _PARTIAL and not all((farm / name.lstrip("/")).is_file() for name in names):
        return
    said = done.stderr[-_LAST_WORDS:].decode(errors="replace").strip().splitlines()
    raise FilesError(f"rsync failed: {said[0] if said else f'exit status {done.returncode}'}")


def serve(program: str, stream: socket.socket, log: Path) -> subprocess.Popen[bytes]:
    """Start the server that the far end asks for; leaving it as a context waits for it. What it says goes to `log`.

    Raises FilesError for another command, ConnectionError where nothing was asked.
    """
    command = _asked(stream)
    with log.open("ab") as said:
        try:
            return subprocess.Popen(
                [program, *command[1:]], stdin=stream.fileno(), stdout=stream.fileno(), stderr=said, cwd="/",
                env={**os.environ, "LC_ALL": "C"}, umask=0o077, start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise FilesError("rsync is not installed") from None


def _asked(stream: socket.socket) -> list[str]:
    """The command on the stream's first line; nothing behind that line is taken."""
    line = b""
    while not line.endswith(b"\n"):
        byte = stream.recv(1)
        if not byte or len(line) > _LINE:
            raise ConnectionError("no rsync asked for its other half")
        line += byte
    try:
        command = json.loads(line)
    except ValueError as error:
        raise FilesError(f"the stream of rsync is broken: {error}") from error
    words = command if isinstance(command, list) and all(isinstance(word, str) for word in command) else []
    if words[:2] != ["rsync", "--server"] or "--sender" in words:
        raise FilesError(f"the stream of rsync asks for another command: {words[:2]}")
    return words


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
