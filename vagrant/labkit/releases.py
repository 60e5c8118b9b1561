"""`vagrant/lab releases`: hosts of several Debian releases, each with itself and with the others.

With itself the core of the live tests has to pass; between two, tests/live/test_releases.py says what moves and what
preflight refuses. What was seen is kept, a file for all pairs, and README's matrix is made from it.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from labkit import cache, checks, record, ssh, tree
from labkit.run import LabError, as_root, say, step

KEPT = cache.REPOSITORY / "tests" / "live" / "releases.json"
README = cache.REPOSITORY / "README.md"
BEGIN, END = "<!-- releases -->", "<!-- /releases -->"
RELEASES = ("bookworm", "trixie", "forky")
"""From old to new."""
BETWEEN = "tests/live/test_releases.py"
OLD_PYTHON = tree.Recipe("bullseye", "", ("python3",))
"""The oldest python3 that an agent runs on, 3.9."""
_OF_PYTHON = ("usr/bin/python3.9", "usr/lib/python3.9", "usr/lib/x86_64-linux-gnu/libffi.so.7*")

Up = Callable[..., record.Lab]


def pairs(words: Iterable[str]) -> list[tuple[str, str]]:
    """(source, target) of each SOURCE:TARGET; all there are for none. Raises LabError for what is no pair."""
    found = [tuple(word.split(":")) for word in words]
    for pair in found:
        if len(pair) != 2 or not set(pair) <= set(RELEASES):
            raise LabError(f"no pair of releases: {':'.join(pair)!r}", hint=f"SOURCE:TARGET, of {', '.join(RELEASES)}")
    return [(pair[0], pair[1]) for pair in found] or [(here, there) for here in RELEASES for there in RELEASES]


def play(python: Path, name: str, wanted: list[tuple[str, str]], up: Up, down: Callable[[str], None]) -> int:
    """Each pair on a lab of its own; what was seen goes into the file. 1 if tests failed."""
    worst = 0
    for here, there in wanted:
        try:
            up(name, "vm", releases={"alpha": here, "beta": there})
            arguments = ["-m", "core", checks.LIVE] if here == there else [BETWEEN]
            status, seen = _observed(python, name, "vm", arguments)
        finally:
            down(name)
        worst = max(worst, int(status != 0))
        keep(f"{here}:{there}", {"passed": status == 0, **seen})
    return worst


def play_old_python(python: Path, name: str, up: Up, down: Callable[[str], None]) -> int:
    """The core of the live tests with bullseye's python3 on the target."""
    with cache.lock("build"):
        root = tree.built(OLD_PYTHON)
    try:
        lab = up(name, "netns")
        with step("bringing Debian bullseye's python3 to beta"):
            files = subprocess.run(
                as_root(["sh", "-c", f"cd {root} && tar -c {' '.join(_OF_PYTHON)}"]), stdout=subprocess.PIPE, check=True
            ).stdout
            ssh.run_on(lab, "beta", ["tar -C / -x && ln -s /usr/bin/python3.9 /usr/local/bin/python3"], stdin=files)
        status, seen = _observed(python, name, "netns", ["-m", "core", checks.LIVE])
    finally:
        down(name)
    keep("python3.9", {"passed": status == 0, **seen})
    return int(status != 0)


def _observed(python: Path, lab: str, backend: str, arguments: list[str]) -> tuple[int, dict[str, Any]]:
    """pytest's exit code, and what the tests wrote down."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        options = [*checks.lab_arguments(backend, lab), "--observed", file.name]
        done = subprocess.run(
            checks.pytest_command(python, [*options, *arguments]), cwd=cache.REPOSITORY, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
        return done.returncode, json.loads(Path(file.name).read_text() or "{}")


def keep(name: str, seen: Mapping[str, Any]) -> None:
    """Beside what is there of other pairs."""
    known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    known[name] = {"date": datetime.date.today().isoformat(), **seen}
    KEPT.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    README.write_text(in_readme(README.read_text(), known))
    say(f"{name}: {'passed' if seen['passed'] else 'FAILED'}; kept in {KEPT.relative_to(cache.REPOSITORY)}")


def in_readme(text: str, known: Mapping[str, Any]) -> str:
    """README's text with the matrix of today."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + table(known) + END + rest.partition(END)[2]


def table(known: Mapping[str, Any]) -> str:
    """README's matrix: a row for each source, a column for each target."""
    heads = {release: _host(known, release) for release in RELEASES}
    lines = [
        "| from, to | " + " | ".join(heads.values()) + " |",
        "|---|" + "---|" * len(RELEASES),
    ]
    for here in RELEASES:
        cells = [_cell(known.get(f"{here}:{there}")) for there in RELEASES]
        lines.append(f"| {heads[here]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _host(known: Mapping[str, Any], release: str) -> str:
    """With the versions of whichever pair it was in."""
    for pair, seen in sorted(known.items()):
        for host, name in zip(record.HOSTS, pair.split(":"), strict=False):
            if name == release and host in seen:
                return f"{release}: criu {seen[host]['criu']}, kernel {seen[host]['kernel'].partition('-')[0]}"
    return release


def _cell(seen: Mapping[str, Any] | None) -> str:
    if seen is None:
        return "not run"
    if not seen["passed"]:
        return "**failed**"
    if "stream" not in seen:
        return f"moves ({seen['tests']} tests)"
    return f"Debian's: {_ids(seen['debian'])}; static: {_ids(seen['stream'])}" + (
        f", with rsync: {_ids(seen['rsync'])}" if seen["stream"] != seen["rsync"] else ""
    )


def _ids(found: Iterable[str]) -> str:
    return ", ".join(f"`{each}`" for each in found) or "moves"
