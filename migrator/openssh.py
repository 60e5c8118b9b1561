"""Memory's own way to the target: a second connection, by OpenSSH's client.

Owns its arguments and its process as a channel. Only the stream of pages goes this way: it starts in 0.4 s, which is
worth it for memory alone, and the control channel stays where its errors are understood. Where it does not come up (no
`ssh` here, or a login that it can't do without asking) the stream goes over the connection that stands: `transport`.

It has to be as strict as `transport` is: no unknown host key, no forwarding, no questions, no compression.

512 MiB of incompressible memory from 256 KiB writes into a file of the target's tmpfs, AES-GCM, netns, 2 cores with
eleven others at work, medians of four: asyncssh 78 MiB/s and 2.5 s of processor time a GiB here, two asyncssh
connections 92 and 2.6, ssh 126 and 1.4, two of them 150 and 1.7 (between 107 and 190: no clear gain). On an idle
machine (DESIGN.md): asyncssh 181-422, ssh 436-549.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
from collections.abc import Sequence
from pathlib import Path

from migrator.channel import CHUNK, Target
from migrator.local import ProcessChannel

LEAVE_SECONDS = 2.0
"""For a client whose input has ended; then it is told to go."""

LOST = 255
"""ssh's exit status for an error of its own."""

_F_SETPIPE_SZ = 1031

_STRICT = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "ControlMaster": "no",
    "ControlPath": "none",
    "Compression": "no",
}


def arguments(
    target: Target, command: str, *, cipher: str, config: Sequence[Path] | None, alive: tuple[int, int]
) -> list[str]:
    """What starts it. `cipher`: what the connection that stands has; `alive`: seconds and count of keep-alives.

    `config` stands in for the usual files, None for these.
    """
    options = dict(_STRICT, ServerAliveInterval=str(alive[0]), ServerAliveCountMax=str(alive[1]), Ciphers=cipher)
    words = ["ssh", "-T"]
    for path in config or ([] if config is None else [Path("/dev/null")]):
        words += ["-F", str(path)]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    if target.port:
        words += ["-p", str(target.port)]
    if target.user:
        words += ["-l", target.user]
    return [*words, "--", target.host, command]


class OpenSshChannel(ProcessChannel):
    """Standard input and output of a command on the target, by way of `ssh`. A lost connection is an OSError."""

    @classmethod
    async def to(cls, name: str, words: Sequence[str]) -> OpenSshChannel:
        """Start it. Raises OSError where there is no ssh."""
        channel = await cls.start(name, words, patience=LEAVE_SECONDS)
        # the user's share of pipe memory is used up: it is only slower; or it has ended already, which will be seen
        with contextlib.suppress(OSError, ValueError):
            fcntl.fcntl(channel.input_fileno(), _F_SETPIPE_SZ, 4 * CHUNK)
        return channel

    async def _receive(self, size: int) -> bytes:
        data = await super()._receive(size)
        if not data and await self._lost():
            said = self.stderr_tail().strip().splitlines()
            raise ConnectionResetError(f"ssh lost the connection: {said[-1] if said else 'without a word'}")
        return data

    async def _lost(self) -> bool:
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                status = await self.wait()
        except TimeoutError:
            return False  # the far end has ended one direction only
        return status is None or status == LOST or status < 0

    async def close(self) -> None:
        """End its input; a client that does not leave then is ended: it holds nothing but a connection."""
        await super().close()
        if not self.ended:
            self.terminate()
