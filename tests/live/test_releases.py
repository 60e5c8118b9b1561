"""Between two releases of Debian: what moves, and what is refused at preflight with its reason.

`vagrant/lab releases` runs this on each pair, and keeps what was seen. It holds between two of the same release too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.conftest import Run, Started
from tests.live.lab_host import LabHost, until

pytestmark = [pytest.mark.long, pytest.mark.backends("vm")]

PLACE = "/root/static"
LOG = f"{PLACE}/numbers"
SCRIPT = f"exec 3>>{LOG}; i=0; while :; do i=$((i+1)); echo $i >&3; sleep 0.2; done\n"


def stops(run: Run) -> list[str]:
    """What stands in the way, in the order of being said."""
    return list(dict.fromkeys(found["id"] for found in run.of("obstacle") if found["stops"]))


def release(host: LabHost) -> str:
    return host.run(". /etc/os-release; echo $VERSION_CODENAME").out.strip()


@pytest.fixture
def static(nothing_behind: None, lab: tuple[LabHost, LabHost], started: Started) -> Iterator[int]:
    """A program that takes nothing from its release, the same file on both hosts."""
    alpha = lab[0]
    alpha.run(f"mkdir -p {PLACE} && cp /usr/bin/busybox {PLACE}")
    alpha.put(f"{PLACE}/count.sh", SCRIPT.encode())
    alpha.run(f"tar -C / -c {PLACE[1:]} | ssh beta tar -C / -x")
    pid = started.launch(f"{PLACE}/busybox", "ash", f"{PLACE}/count.sh")
    until(lambda: alpha.run(f"test -s {LOG}", check=False).status == 0, "it does not count")
    yield pid
    started.end()
    for host in lab:
        host.run(f"rm -rf {PLACE}")


def counts_on(host: LabHost) -> None:
    """No number is missing, none is there twice, and there come more."""
    before = len(host.read(LOG).split())
    until(lambda: len(host.read(LOG).split()) > before + 1, "it does not count on")
    numbers = list(map(int, host.read(LOG).split()))
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_program_of_the_release(
    nothing_behind: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any, observed: dict[str, Any]
) -> None:
    """It maps the release's own libraries: another release's are others, and that is said of each."""
    pid = started.launch("python3", "-c", "import time\nwhile True: time.sleep(0.1)")
    run = migrate(str(pid), "beta")
    observed["debian"] = stops(run)
    if release(alpha) == release(beta):
        assert run.status == 0, run.explain()
        return
    assert run.status == 20, run.explain()
    assert {"library-build", "file-missing", "file-size"} & set(stops(run)), run.explain()
    assert all(found["remedy"] for found in run.of("obstacle")), run.explain()
    assert alpha.alive(pid)
    assert not beta.alive(pid)


@pytest.mark.parametrize("transport", ["stream", "rsync"])
def test_a_program_that_brings_all_it_needs(
    static: int, alpha: LabHost, beta: LabHost, migrate: Any, observed: dict[str, Any], transport: str
) -> None:
    """It moves, memory and file, or preflight names what forbids it for any program, and it stays untouched."""
    run = migrate("--copy-files", "--transport", transport, str(static), "beta")
    observed[transport] = stops(run)
    if stops(run):
        assert run.status == 20, run.explain()
        assert set(stops(run)) <= {"criu-older", "criu-stream", "kernel-older"}, run.explain()
        counts_on(alpha)
        assert not beta.alive(static)
    else:
        assert run.status == 0, run.explain()
        counts_on(beta)
        assert not alpha.alive(static)
