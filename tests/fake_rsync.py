"""A stand-in for rsync, both halves, as far as the agents use it. For speed, for faults, and where there is no rsync.

What it does for real: it starts the remote shell that it is given, asks it for a server, and sends the content of what
its links lead to, whole; the server writes that over the files of its directory and says that it has. It sets nothing
else.

`behaviour.json` beside it: {"rsync": "torn"}: what it does, on the source ("fail", "no-space", "partial": that exit
status and its words) or on the target ("torn": part of what it writes is not what came; "hang": it does not end before
its stream does). Whatever is not named does well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import BinaryIO

_WRAPPER = """#!/bin/sh
exec {python} -IS -c 'import sys; sys.path.append("{root}"); from tests import fake_rsync as f; f.main("{here}")' "$@"
"""
_SAID = {
    "fail": (12, "rsync error: error in rsync protocol data stream (code 12)"),
    "no-space": (11, 'rsync: [receiver] write failed on "/x": No space left on device (28)'),
    "partial": (23, 'rsync: [sender] read errors mapping "/x": Input/output error (5)'),
}


def install(directory: str) -> str:
    """Make a fake host's rsync; its path."""
    path = os.path.join(directory, "rsync")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(path, "w") as file:
        file.write(_WRAPPER.format(here=directory, root=root, python=os.path.realpath(sys.executable)))
    os.chmod(path, 0o755)
    return path


def _behaviour(here: str) -> str:
    try:
        with open(os.path.join(here, "behaviour.json")) as file:
            return str(json.load(file).get("rsync", ""))
    except FileNotFoundError:
        return ""


def main(here: str) -> None:
    """The client, or the server, by the arguments."""
    behaviour = _behaviour(here)
    if sys.argv[1] == "--server":
        assert sys.argv[-2:] == [".", "."]
        _serve(sys.stdin.buffer, behaviour)
    else:
        sys.exit(_send(behaviour))


def _send(behaviour: str) -> int:
    options, (farm, there) = sys.argv[1:-2], sys.argv[-2:]
    assert {"--copy-links", "--from0", "--files-from=-", "--inplace", "--sparse"} <= set(options)
    (shell,) = (option[len("--rsh=") :] for option in options if option.startswith("--rsh="))
    import shlex

    host, _, path = there.partition(":")
    names = sys.stdin.buffer.read().split(b"\0")[:-1]
    if behaviour in _SAID:
        status, words = _SAID[behaviour]
        sys.stderr.write(words + "\n")
        return status
    command = [*shlex.split(shell), host, "rsync", "--server", "-WRSLe.x", ".", path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as remote:
        assert remote.stdin is not None
        assert remote.stdout is not None
        for name in names:
            try:
                with open(os.path.join(os.fsencode(farm), name), "rb") as file:
                    data = file.read()
            except FileNotFoundError:
                continue
            remote.stdin.write(json.dumps([os.fsdecode(name), len(data)]).encode() + b"\n" + data)
        remote.stdin.write(b"[]\n")
        remote.stdin.flush()
        well = remote.stdout.read(1) == b"k"
        remote.stdin.close()
    return 0 if well else 12


def _serve(source: BinaryIO, behaviour: str) -> None:
    while record := json.loads(source.readline() or b"null"):
        name, size = record
        data = source.read(size)
        if behaviour == "torn":
            data = data[: size // 2] + b"?" * (size - size // 2)
        with open(name, "r+b") as file:
            file.write(data)
    if behaviour == "hang":
        source.read()
    os.write(1, b"k")
