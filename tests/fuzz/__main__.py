"""`python -m tests.fuzz [--seconds S] [--runs N] [NAME…]`: the parsers against bytes that atheris makes up.

Each harness is a process of its own, as many side by side as there are processors, for so many seconds or inputs,
whichever ends first. What is found stays in a file, and the command that gives it to the parser again is printed. 0 if
nothing was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import table
from tests.fuzz.limits import less_memory, less_time

ROOT = Path(__file__).resolve().parents[2]
_LAST = 40
"""Lines of a finding that are shown."""
_SAID = "said"
"""guided.py's."""
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
    bad, total = _fuzzed([harness.name for harness in chosen], asked.seconds, -(-asked.runs // len(chosen)))
    print(f"fuzz: {len(chosen)} parsers, {total} inputs; " + (f"FAILED: {' '.join(bad)}" if bad else "nothing found"))
    return int(bool(bad))


def _fuzzed(names: list[str], seconds: float, runs: int) -> tuple[list[str], int]:
    """Those in which something was found, or that did not run; and the inputs of all."""
    work = Path(tempfile.mkdtemp(prefix="fuzz-"))
    limit, abreast = 0 if runs else max(1, round(seconds)), len(os.sched_getaffinity(0))
    words = [str(limit), str(runs or _UNSEEN), str(abreast), str(work), *names]
    bad, total, started = list(names), 0, work / "started"
    with started.open("wb") as errors, subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.guided", *words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=errors, text=True,
    ) as guided:  # fmt: skip
        for line in guided.stdout or ():
            name, status, took = line.split()
            count, said = _told(work / name)
            well = status == "0" and count > 0
            print(f"{'ok    ' if well else 'FAILED'} {name:16} {count:9} inputs  {took:>6} s", flush=True)
            total += count
            if well:
                bad.remove(name)
                shutil.rmtree(work / name)
                continue
            print("\n".join(said.splitlines()[-_LAST:]))
            for path in sorted(path for path in (work / name).iterdir() if path.is_file() and path.name != _SAID):
                print(f"again: {sys.executable} -m tests.fuzz --input {path} {name}")
    if guided.returncode:  # it did not come to an end with all of them, and says why
        print("\n".join(started.read_text(errors="replace").splitlines()[-_LAST:]))
    if not bad:
        shutil.rmtree(work)
    return bad, total


def _told(place: Path) -> tuple[int, str]:
    """How many inputs a harness was given, and all that libFuzzer said of it."""
    said = (place / _SAID).read_text(errors="replace")
    found = re.search(r"stat::number_of_executed_units: *(\d+)", said)
    return int(found.group(1)) if found else 0, said


if __name__ == "__main__":
    sys.exit(main())
