"""A tree that moves on before its memory is there: the second migration waits for the first one's fill."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.live.conftest import Run, Started
from tests.live.lab_host import LOG, LabHost, until, wait_for_log, wait_for_sweeps

STOP_WHEN_RESUMED = """
newest() { ls -td /var/lib/migrate/*/ 2>/dev/null | head -n 1; }
resumed() { while read -r line; do case $line in *RESUMED*) return 0 ;; esac; done <"$new/journal"; return 1; }
old=$(newest)
echo ready
until new=$(newest); [ "$new" != "$old" ]; do sleep 0.01; done
until [ "$(pgrep -c -f "[p]ager /run/migrate")" = 2 ]; do sleep 0.01; done
pids=$(pgrep -f "[p]ager /run/migrate")
# from here on no process is started for a look: memory can be whole in a tenth of a second
until resumed; do :; done
kill -STOP $pids
"""


class Job(threading.Thread):
    """A call in the background."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self._act = act
        self.result: Run
        self.start()

    def run(self) -> None:
        self.result = self._act()


@pytest.mark.backends("netns")
def test_back_while_memory_is_still_being_filled(
    nothing_behind: None, both_ways: None, alpha: LabHost, beta: LabHost, started: Started, migrate: Any
) -> None:
    for host in (alpha, beta):
        host.run(f"rm -f {LOG} /run/back")
    pid = started.launch("python3", "/root/programs/witness.py", "--mib", "512", "--log", LOG)
    wait_for_log(alpha, lines=20)
    stopper = beta.start(f"timeout 300 sh -c '{STOP_WHEN_RESUMED}'")
    assert stopper.recv(64) == b"ready\n"
    there = Job(lambda: migrate("--copy-files", str(pid), "beta"))
    assert stopper.recv_exit_status() == 0, "the pager had left already"
    said = "/run/back"
    command = f"migrate --json --copy-files -v {pid} alpha >{said}; status=$?; cat {said}; exit $status"
    back = Job(lambda: Run(beta.run(command, check=False, seconds=600)))
    until(
        lambda: not back.is_alive() or "is still being filled" in beta.run(f"cat {said}", check=False).out,
        "it does not find that memory is still being filled",
    )
    time.sleep(1)  # both could go on, if anything let them
    assert there.is_alive(), "its memory can't be whole"
    assert back.is_alive(), f"it did not wait: {back.result.explain()}"
    assert not alpha.alive(pid)
    alpha.run(f"rm -f {LOG}")  # its copy there is out of date, and in the way
    beta.run("pkill -CONT -f '[p]ager /run/migrate'")
    there.join()
    back.join()
    assert there.result.status == 0, there.result.explain()
    assert back.result.status == 0, back.result.explain()
    assert "is still being filled" in back.result.out
    beta.run(f"rm {said}")
    assert alpha.alive(pid)
    assert not beta.alive(pid)
    lines = wait_for_sweeps(alpha, 2)
    assert [line[0] for line in lines] == list(range(len(lines)))
    assert {line[3] for line in lines} == {0}, "bad pages"
