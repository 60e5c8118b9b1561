"""`python -m tests.fuzz [--seconds S] [--runs N] [NAME…]`: the parsers against bytes that atheris makes up.

Each harness is a process of its own, one after the other, for so many seconds or inputs, whichever ends first. What is
found stays in a file, and the command that gives it to the parser again is printed. 0 if nothing was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import table
from tests.fuzz.limits import less_memory, less_time

ROOT = Path(__file__).resolve().parents[2]
_LAST = 40
"""Lines of a finding that are shown."""
_UNSEEN = 10_000_000
"""Inputs for whom only time is to count."""


def main() -> int:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(table.BY_NAME)}; default: all")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=0, help="inputs of all together, however long that takes")
    parser.add_argument("--input", type=Path, help="give this file to the one that is named, and show what comes of it")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.names) - set(table.BY_NAME)):
        parser.error(f"there is no {unknown[0]}")
    chosen = [table.BY_NAME[name] for name in asked.names] or list(table.HARNESSES)
    if asked.input:
        with less_memory(), less_time():
            chosen[0].run(asked.input.read_bytes())
        return 0
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write(
            "fuzz: there is no atheris for this Python: pip install -e .[dev] on one that it has wheels for\n"
        )
        return 1
    results = [_run(harness, asked.seconds, -(-asked.runs // len(chosen))) for harness in chosen]
    total = sum(count for _, count in results)
    bad = [harness.name for harness, (well, _) in zip(chosen, results, strict=True) if not well]
    print(f"fuzz: {len(chosen)} parsers, {total} inputs; " + (f"FAILED: {' '.join(bad)}" if bad else "nothing found"))
    return int(bool(bad))


def _run(harness: table.Harness, seconds: float, runs: int) -> tuple[bool, int]:
    """Whether nothing was found, and among how many inputs."""
    work = Path(tempfile.mkdtemp(prefix=f"fuzz-{harness.name}-"))
    limit = 0 if runs else max(1, round(seconds))
    words = [sys.executable, "-m", "tests.fuzz.guided", harness.name, str(limit), str(runs or _UNSEEN), str(work)]
    began = time.monotonic()
    done = subprocess.run(
        words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    said = done.stdout.decode(errors="replace")
    found = re.search(r"stat::number_of_executed_units: *(\d+)", said)
    count = int(found.group(1)) if found else 0
    well = done.returncode == 0 and count > 0
    print(
        f"{'ok    ' if well else 'FAILED'} {harness.name:16} {count:9} inputs  {time.monotonic() - began:6.1f} s",
        flush=True,
    )
    if not well:
        print("\n".join(said.splitlines()[-_LAST:]))
        for path in sorted(path for path in work.iterdir() if path.is_file()):
            print(f"again: {sys.executable} -m tests.fuzz --input {path} {harness.name}")
        return False, count
    subprocess.run(["rm", "-rf", str(work)], check=True)
    return True, count


if __name__ == "__main__":
    sys.exit(main())
