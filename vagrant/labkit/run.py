"""Runs other programs, and says what the lab is doing.

Every command is an argument list. One that fails is shown as a line that can be pasted into a shell,
with the end of what it printed, because a lab that only says "failed" has to be debugged by reading it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

TAIL_LINES = 25


class LabError(Exception):
    """Something the lab cannot do; `hint` says what may help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def tell(self) -> None:
        """Says it to the person at the terminal."""
        say(str(self))
        if self.hint:
            say(f"hint: {self.hint}")


class CommandFailed(LabError):
    """A program ended with another status than 0."""

    def __init__(self, args: Sequence[str], status: int, output: str) -> None:
        tail = "\n".join("    " + line for line in output.splitlines()[-TAIL_LINES:])
        super().__init__(f"exit status {status} from:\n    {shlex.join(args)}" + (f"\n{tail}" if tail else ""))
        self.status = status


def say(message: str) -> None:
    """Tells the person at the terminal what is going on; stderr, so that --json output stays clean."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(message: str) -> Iterator[None]:
    """Says that a slow step begins, and how long it took."""
    say(f"{message} …")
    began = time.monotonic()
    yield
    say(f"{message}: {time.monotonic() - began:.1f} s")


def run(
    args: Sequence[str | Path],
    *,
    stdin: bytes = b"",
    cwd: Path | None = None,
) -> str:
    """Runs a program to its end, and returns its standard output."""
    words = [str(arg) for arg in args]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, cwd=cwd, check=False)
    except FileNotFoundError as error:
        raise LabError(f"{words[0]}: no such program", hint="`vagrant/lab up` installs what it needs") from error
    stdout = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise CommandFailed(words, done.returncode, stdout + done.stderr.decode(errors="replace"))
    return stdout


def as_root(args: Sequence[str | Path]) -> list[str]:
    """The same command, through sudo if we are not root."""
    words = [str(arg) for arg in args]
    return words if os.geteuid() == 0 else ["sudo", "--", *words]
