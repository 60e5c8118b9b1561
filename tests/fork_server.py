"""Starts agents fast: a process that has imported them forks one for each request, in 5 ms instead of 120.

An agent so started differs from the product's in nothing but its start: a session of its own, its three standard
streams, no other descriptor. It can be told to die at a decision: `{"die": ["after", "COMMIT"]}` kills it by SIGKILL
right after its journal has that record, "before" right before, at that instant and no other. "fails" lets it live, but
the disk of its journal is full then.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]


class ForkServer:
    """The client's end, and the server as its child."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
                cwd=_ROOT, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        self._socket = ours

    def start(
        self,
        arguments: Sequence[str],
        streams: Sequence[int],
        die: tuple[str, str] | None = None,
        constants: dict[str, float] | None = None,
    ) -> int:
        """An agent with these standard streams (the caller closes its own copies); its PID.

        `constants` are module constants that it shall have instead of its own: {"agent.server.SILENCE": 0.5}.
        """
        request = json.dumps({"arguments": list(arguments), "die": die, "constants": constants or {}}).encode()
        socket.send_fds(self._socket, [request], list(streams))
        return int(self._socket.recv(64))

    def close(self) -> None:
        """End it; agents go on."""
        self._socket.close()
        self._server.wait()


def _die_at(when: str, record: str) -> None:
    from agent.journal import Journal

    append = Journal._append

    def dying(journal: Journal, line: dict[str, Any], *, durable: bool = True) -> None:
        if line["record"] != record:
            append(journal, line, durable=durable)
            return
        if when == "fails":
            raise OSError(errno.ENOSPC, "No space left on device")
        if when == "after":
            append(journal, line, durable=durable)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Journal, "_append", dying)  # noqa: B010 - mypy is right that nobody should, elsewhere


def _become_agent(request: dict[str, Any], streams: Sequence[int]) -> None:
    from agent import __main__ as agent

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(3, 1024)
    for name, value in request["constants"].items():
        module, _, constant = name.rpartition(".")
        assert hasattr(sys.modules[module], constant)
        setattr(sys.modules[module], constant, value)
    if request["die"]:
        _die_at(*request["die"])
    sys.argv = ["migrate-agent", *request["arguments"]]
    status = 1
    try:
        status = agent.main()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _serve(descriptor: int) -> None:
    import agent.__main__
    import agent.server  # noqa: F401 - imported here once, so that it need not be imported in each child

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how an agent ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = socket.socket(fileno=descriptor)
    while True:
        data, streams, _, _ = socket.recv_fds(requests, 65536, 3)
        if not data:
            return
        # the children's standard streams are above 2 here, so that dup2 never overwrites one that is still needed
        pid = os.fork()
        if pid == 0:
            _become_agent(json.loads(data), streams)
        for stream in streams:
            os.close(stream)
        requests.send(str(pid).encode())


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
