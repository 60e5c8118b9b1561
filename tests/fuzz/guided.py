"""Harnesses under atheris, each in a process of its own: `python -m tests.fuzz.guided SECONDS RUNS ABREAST WORK NAME…`.

The only door to atheris. What the parsers do is seen because they are imported here, instrumented: that takes as long
as fuzzing one of them, so it is done once, and each harness is a fork of that, so many of them side by side.

A line for each that has ended: its name, its exit status, and the seconds that it took. What it said stands in
WORK/NAME/said, what it found beside that.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["agent", "migrator"]):
    from tests.fuzz import table

from tests.fuzz.limits import ROOM, SECONDS, less_memory

SAID, CORPUS = "said", "corpus"
"""In a harness' directory: what libFuzzer writes, and the good inputs that it begins with. All else there it found."""


def main(seconds: str, runs: str, abreast: str, work: str, *names: str) -> None:
    """All of them, in this order."""
    waiting, running = list(names), dict[int, tuple[str, float]]()
    while waiting or running:
        while waiting and len(running) < int(abreast):
            name = waiting.pop(0)
            running[_forked(name, seconds, runs, Path(work) / name)] = (name, time.monotonic())
        pid, status = os.wait()
        name, began = running.pop(pid)
        print(name, os.waitstatus_to_exitcode(status), f"{time.monotonic() - began:.1f}", flush=True)


def _forked(name: str, seconds: str, runs: str, place: Path) -> int:
    """The PID of the process that runs this harness. In that one it does not return, and it ends as any program: an
    input that raises something is written down by libFuzzer at exit."""
    place.mkdir()
    if pid := os.fork():
        return pid
    said = os.open(place / SAID, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
    _fuzz(table.BY_NAME[name], _words(seconds, runs, place))
    raise AssertionError("libFuzzer has returned")


def _words(seconds: str, runs: str, place: Path) -> list[str]:
    return [
        sys.argv[0], f"-max_total_time={seconds}", f"-runs={runs}", f"-timeout={SECONDS:.0f}",
        f"-rss_limit_mb={2 * ROOM >> 20}", f"-artifact_prefix={place}/", "-print_final_stats=1", "-verbosity=1",
        str(place / CORPUS),
    ]  # fmt: skip


def _fuzz(harness: table.Harness, words: Sequence[str]) -> None:
    """Does not return: libFuzzer ends the process, with 0 where nothing was found."""
    corpus = Path(words[-1])
    corpus.mkdir()
    for seed in harness.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    with less_memory():
        atheris.Setup([*words[:-1], f"-max_len={harness.longest}", words[-1]], harness.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
