"""The rsync program, its only door: image directories from this host to the target's, over the operator's own ssh.

A transfer that is interrupted is taken up again where it stopped (`--partial`), some times, before it is given up.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import shlex
from collections.abc import Callable

from migrator import errors
from migrator.channel import Target

ATTEMPTS = 4
PAUSE = 1.0
"""Seconds between them."""

_AGAIN = (10, 12, 30, 35, 255)
"""rsync(1), EXIT VALUES: what a connection that was cut, or was not there, ends in. 255 is ssh's own."""
_SENT = re.compile(r"^Total bytes sent: ([\d,]+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Rsync:
    """How rsync reaches one target."""

    target: Target
    rsh: str = ""
    """The remote shell and its options, as rsync's --rsh takes them; "": ssh, which asks nothing."""
    sudo: bool = False
    """Become root there with sudo -n."""
    compress: bool = False

    def arguments(self, here: str, there: str, *, bandwidth: float = 0.0) -> list[str]:
        """The command that makes the directory `there` what `here` is; `bandwidth` in bytes a second, 0: no limit."""
        rsh = self.rsh or "ssh -o BatchMode=yes" + (f" -p {self.target.port}" if self.target.port else "")
        arguments = ["rsync", "--archive", "--secluded-args", "--partial", "--stats", "--no-human-readable"]
        arguments += ["--rsh", rsh]
        if self.sudo:
            arguments += ["--rsync-path", "sudo -n rsync"]
        if self.compress:
            arguments.append("--compress")
        if bandwidth:
            arguments.append(f"--bwlimit={max(1, round(bandwidth / 1024))}")  # KiB a second
        host = f"[{self.target.host}]" if ":" in self.target.host else self.target.host
        user = f"{self.target.user}@" if self.target.user else ""
        return [*arguments, f"{here}/", f"{user}{host}:{there}/"]

    async def send(
        self, here: str, there: str, *, bandwidth: float = 0.0, tell: Callable[[str], None] = lambda _: None
    ) -> int:
        """Send a directory; the bytes that went over the wire. `tell` gets the command, as it can be pasted.

        Raises CopyError or NoSpace when rsync can't do it, or not in so many attempts.
        """
        arguments = self.arguments(here, there, bandwidth=bandwidth)
        tell(f"$ {shlex.join(arguments)}")
        sent = 0
        for attempt in range(1, ATTEMPTS + 1):
            status, output, complaint = await _run(arguments)
            sent += sum(int(found.replace(",", "")) for found in _SENT.findall(output))
            if status == 0:
                return sent
            if status not in _AGAIN or attempt == ATTEMPTS:
                break
            tell(f"rsync was cut off (exit {status}): again")
            await asyncio.sleep(PAUSE)
        said = next((line for line in complaint.splitlines() if line.strip()), f"exit status {status}")
        if "No space left on device" in complaint:
            raise errors.NoSpace(f"{self.target.host}: rsync: {said}", hint="make room where the images go")
        by_hand = shlex.join([*arguments[:-2], "--dry-run", *arguments[-2:]])
        raise errors.CopyError(f"rsync to {self.target} failed: {said}", hint=f"try by hand: {by_hand}")


async def _run(arguments: list[str]) -> tuple[int, str, str]:
    """Status, output and errors. Ended, should we be cancelled, and waited for."""
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,  # Ctrl-C is ours to handle
        )
    except FileNotFoundError:
        raise errors.CopyError("rsync is not installed here", hint="install it, or use --transport stream") from None
    try:
        output, complaint = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.terminate()
            await process.wait()
        raise
    return process.returncode or 0, output.decode(errors="replace"), complaint.decode(errors="replace")
