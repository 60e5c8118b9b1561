"""`python -m tests.bench`: two steps of `vagrant/lab bench`, which brings the labs up in between.

measure --lab NAME --backend netns|vm [--quick] [--rows ROW…] RESULTS     on a lab that is up; adds to RESULTS
show [--json] [--picture FILE] [--markdown] RESULTS                       all that is in RESULTS
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench import picture, rows, table
from tests.bench.rows import Result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m tests.bench")
    commands = top.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure")
    measure.add_argument("--lab", required=True)
    measure.add_argument("--backend", choices=rows.BACKENDS, required=True)
    measure.add_argument("--quick", action="store_true")
    show = commands.add_parser("show")
    show.add_argument("--json", action="store_true")
    show.add_argument("--markdown", action="store_true")
    show.add_argument("--picture", type=Path)
    show.add_argument("--backends", nargs="+", choices=rows.BACKENDS, default=rows.BACKENDS)
    for command in (measure, show):
        command.add_argument("--rows", nargs="+", choices=list(rows.ROWS), default=list(rows.ROWS))
        command.add_argument("results", type=Path)
    return top


def machine() -> str:
    """What the figures were measured on."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} cores of a {model}, kernel {os.uname().release.split('-')[0]}"


def measure(lab: str, backend: str, quick: bool, chosen: Sequence[str], kept: Path) -> int:
    """Every chosen row that this backend measures; a row that fails says so, and the others go on. 1 if one did."""
    from tests.bench import measures, moves  # needs paramiko, which `show` must do without

    sizes = (measures.QUICK if quick else measures.FULL)[backend]
    results: list[Result] = []
    failed = 0
    with moves.Bench.on(lab, backend) as bench:
        for row in (row for row in rows.ROWS if row in chosen and backend in rows.ROWS[row]):
            began = time.monotonic()
            try:
                for result in measures.MEASURES[row](bench, sizes):
                    results.append(result)
            except measures.Unavailable as reason:
                results.append(rows.not_measured(row, backend, str(reason)))
            except (moves.BenchError, AssertionError, TimeoutError, KeyError, ValueError, OSError) as error:
                failed = 1
                print(f"bench: {row} on {backend} failed: {error}", file=sys.stderr)
                first = (str(error).splitlines() or [type(error).__name__])[0]
                results.append(rows.not_measured(row, backend, f"failed: {first[:200]}"))
            said = "; ".join(" ".join(table.cells(each)[2:3]) for each in results if each.row == row)
            print(f"bench: {row} on {backend}: {said} ({time.monotonic() - began:.0f} s)", file=sys.stderr)
            _keep(kept, measures.judged(results))
    return failed


def _keep(kept: Path, results: Sequence[Result]) -> None:
    """This backend's lines anew, those of others as they are."""
    backend = results[0].backend
    others = [line for line in read(kept) if line.backend != backend]
    kept.write_text("".join(result.to_json() + "\n" for result in [*others, *results]))


def read(kept: Path) -> list[Result]:
    """What was measured so far."""
    return [Result.from_json(line) for line in kept.read_text().splitlines()] if kept.exists() else []


def main() -> int:
    """1 when a row failed to be measured; how good the figures are fails nothing."""
    options = parser().parse_args()
    if options.command == "measure":
        return measure(options.lab, options.backend, options.quick, options.rows, options.results)
    missing = rows.elsewhere(options.rows, options.backends)
    results = rows.in_order([*read(options.results), *missing])
    if options.picture:
        options.picture.write_text(picture.svg(results, machine()))
    if options.json:
        sys.stdout.write("".join(result.to_json() + "\n" for result in results))
    elif options.markdown:
        sys.stdout.write(table.markdown(results))
    else:
        sys.stdout.write(table.text(results, machine()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
