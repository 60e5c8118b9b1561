"""The action script that blocks CRIU in its hook until a verdict, and the agent's end of it. It decides nothing itself.

The script is sh, not Python: it starts inside the freeze, and a Python takes 30 ms to start (ten times that on an
emulated machine) where dash takes one. Its parent is criu; it talks to the agent through two FIFOs:

- `held`: the script says that the hook is reached. Opened for reading and writing, so that it never blocks.
- `verdict`: the agent says `go` or `veto`. The agent holds its only lasting write end, so that the agent's death, at
  whatever instant, is an end of input; then **the journal is the verdict** (DESIGN: the commit, rule 2): `go` if it
  holds the record that releases this hook, a veto if not. Such a veto is an ABORT on the source, and recorded.

On the source the script also takes back the SIGSTOP that the agent queued to every task (rule 7) before it vetoes:
after the veto the tasks' parent would see a stop and a continue.

criu execs the script itself (criu/util.c), so it must not lie on a file system mounted noexec, as /run often is.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from agent.journal import TORN

STOPPED = "stopped"
"""File beside the journal: the tasks that got a SIGSTOP, a line each: PID, start time, PID where criu runs."""
_DIGITS = 20
"""Fewer has every number of 64 bits."""
_SCRIPT = """#!/bin/sh
# Holds criu in its {hook} hook until the agent, or after its death the journal, says how it ends.
[ "$CRTOOLS_SCRIPT_ACTION" = {hook} ] || exit 0
cd {directory} || exit 1
exec 3<>verdict 4<verdict 3>&-
echo "{hook} $PPID" 1<>held
if ! read -r answer <&4; then
    answer=veto aborted={aborts}
    while IFS= read -r line; do
        case $line in
            '{{"record":"{release}"'*'}}') answer=go ;;
            '{{"record":"ABORT"'*'}}') aborted=aborted ;;
        esac
    done <journal
    # the tree will run on: written, so that nobody takes what the target holds for the only copy after a reboot.
    if [ "$answer$aborted" = veto ]; then
        # what the agent's death has left of a line is ended first, marked as no record, in the same write
        printf '%s{{"record":"ABORT","reason":"the agent died"}}\\n' "${{line:+{torn}
}}" >>journal
    fi
    sync journal 2>/dev/null
fi
end() {{
    [ -f stopped ] || return 0
    while read -r pid start inside; do kill "$1" "$inside"; done <stopped
}}
thaw() {{
    [ -f frozen ] && IFS= read -r cgroup <frozen && echo 0 >"$cgroup/cgroup.freeze"
}}
if [ "$answer" = go ]; then
    # criu kills the tree, unless it is dead itself: then nobody else is left to do it
    kill -0 "$PPID" 2>/dev/null || end -KILL
    thaw
    exit 0
fi
# a dead criu has left sockets in repair mode: the tasks stay stopped until somebody has them out of it
kill -0 "$PPID" 2>/dev/null || [ ! -f locked ] || exit 1
thaw
end -CONT
exit 1
"""


def script_text(directory: Path, hook: str, release: str) -> str:
    """The script for one hook; `release` is the journal's record that lets it succeed without the agent.

    On the target a veto decides nothing: the images stay, so there it writes no ABORT.
    """
    aborts = "" if hook == "post-dump" else "never"
    return _SCRIPT.format(hook=hook, directory=shlex.quote(str(directory)), release=release, aborts=aborts, torn=TORN)


def stopped(directory: Path) -> list[tuple[int, int]]:
    """(PID, start time) of each task that the word of a hold in this directory names.

    Of a line that is not whole none: the disk was full over it, and nobody was stopped then.
    """
    try:
        lines = (directory / STOPPED).read_text(errors="replace").splitlines()
    except OSError:
        return []
    fields = (line.split() for line in lines)
    return [(int(one[0]), int(one[1])) for one in fields if len(one) == 3 and all(map(_is_number, one))]


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < _DIGITS


class Hold:
    """The agent's end. One hold serves one run of criu; `directory` is the migration's, with its journal in it."""

    def __init__(self, directory: Path, hook: str, release: str) -> None:
        self.script = directory / "hold"
        self._directory = directory
        self._stopped = directory / STOPPED
        self._release = release
        self._reached = asyncio.Event()
        self._held = self._verdict = -1
        try:
            for name in ("held", "verdict"):
                fifo = directory / name
                fifo.unlink(missing_ok=True)
                os.mkfifo(fifo, 0o600)
            self._stopped.unlink(missing_ok=True)
            self.script.write_text(script_text(directory, hook, release))
            self.script.chmod(0o700)
            self._held = os.open(directory / "held", os.O_RDWR | os.O_NONBLOCK)
            # both ends open: a verdict given before the script comes waits in the pipe
            self._verdict = os.open(directory / "verdict", os.O_RDWR | os.O_NONBLOCK)
        except BaseException:
            self._remove()  # on a full disk: there is no hold then that an undo could close
            raise
        asyncio.get_running_loop().add_reader(self._held, self._on_held)

    def _on_held(self) -> None:
        try:
            if os.read(self._held, 4096):
                self._reached.set()
        except BlockingIOError:
            return

    @property
    def held(self) -> bool:
        """Whether criu is, or was, in the hook."""
        return self._reached.is_set()

    async def reached(self) -> None:
        """Wait until criu is in the hook."""
        await self._reached.wait()

    async def reached_before(self, end: Awaitable[object]) -> bool:
        """Wait until criu is in the hook, or this end has come: whether it got there. The other one is cancelled."""
        reached, ended = asyncio.ensure_future(self.reached()), asyncio.ensure_future(end)
        try:
            await asyncio.wait({reached, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reached.cancel()
            ended.cancel()
        return self.held

    def will_continue(self, tasks: Iterable[Sequence[int]], inside: Callable[[int], int] = int) -> None:
        """Leave word of the tasks, (PID, start time), that are about to get a SIGSTOP, for the script (or recovery) to
        take it back. The script runs where criu does: `inside` gives a task's PID there."""
        self._stopped.write_text("".join(f"{pid} {start} {inside(pid)}\n" for pid, start in tasks))

    def go(self) -> None:
        """The hook succeeds. The record that releases it must be in the journal already."""
        os.write(self._verdict, b"go\n")

    def veto(self) -> None:
        """The hook fails: criu undoes its work."""
        os.write(self._verdict, b"veto\n")

    def close(self) -> None:
        """Remove the script and the FIFOs. A script still waiting sees the end of input and asks the journal."""
        if self._held < 0:
            return
        asyncio.get_running_loop().remove_reader(self._held)
        self._remove()

    def _remove(self) -> None:
        for end in (self._held, self._verdict):
            if end >= 0:
                os.close(end)
        self._held = self._verdict = -1
        for path in (self.script, self._stopped, self._directory / "held", self._directory / "verdict"):
            path.unlink(missing_ok=True)
