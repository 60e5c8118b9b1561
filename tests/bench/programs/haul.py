"""p.haul's way of moving a process, to be compared with. Runs on the source, with `migrate`'s interpreter.

    haul.py PID HOST LOG

As p.haul does it: connections that stand beforehand, a page server on the target for every round, the pages through
the connection, incremental pre-dumps, and its stopping rule (phaul/iters.py: at most 64 pages left, or over 10 % more
than the round before, or 8 rounds); then the final dump, its images and the log file as an archive, and an eager
restore. The connections are SSH here, since p.haul's own are open to anyone: page servers are behind a forwarded port.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from agent.criu import read_statistics

PLACE = Path("/run/haul")
PORT = 17777
FEW_PAGES = 64
MOST_GROWTH = 10
MOST_ROUNDS = 8


class Far:
    """A shell on the target that waits for commands, and brings a port along."""

    def __init__(self, host: str) -> None:
        words = ["ssh", "-c", "aes128-gcm@openssh.com", "-L", f"{PORT}:127.0.0.1:{PORT}", host, "sh"]
        self._shell = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.do("true")

    def do(self, command: str) -> None:
        """Run a command to its end."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{{ {command}; }} </dev/null >/dev/null 2>&1; echo $?\n")
        self._shell.stdin.flush()
        status = self._shell.stdout.readline().strip()
        if status != "0":
            raise SystemExit(f"haul: {command!r} ended with {status or 'the connection'}")


def page_server(far: Far, number: int) -> None:
    """On the target, for one round."""
    previous = f"--prev-images-dir ../{number - 1}" if number > 1 else ""
    where = f"--images-dir {PLACE}/{number} --address 127.0.0.1 --port {PORT} {previous}"
    far.do(f"mkdir {PLACE}/{number} && criu page-server --daemon {where} --log-file server.log")


def dump(kind: str, pid: int, number: int) -> int:
    """One round, its pages to the page server; how many there were."""
    images = PLACE / str(number)
    images.mkdir()
    words = ["criu", kind, "--tree", str(pid), "--images-dir", str(images), "--track-mem", "--log-file", "dump.log"]
    words += ["--page-server", "--address", "127.0.0.1", "--port", str(PORT)]
    if number > 1:
        words += ["--prev-images-dir", f"../{number - 1}"]
    subprocess.run(words, check=True)
    return read_statistics(images / "stats-dump").pages


def main() -> None:
    pid, host, log = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    far = Far(host)
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    far.do(f"rm -rf {PLACE}; mkdir {PLACE}")
    before = 0
    for number in range(1, MOST_ROUNDS + 1):
        page_server(far, number)
        pages = dump("pre-dump", pid, number)
        print(f"round {number}: {pages} pages", flush=True)
        growth = 100 * (pages - before) / before if before else 0
        if pages <= FEW_PAGES or growth > MOST_GROWTH:
            break
        before = pages
    last = number + 1
    page_server(far, last)
    unpack = ["ssh", "-c", "aes128-gcm@openssh.com", host, "echo; tar -xPf -"]
    unpacking = subprocess.Popen(unpack, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert unpacking.stdout is not None
    unpacking.stdout.readline()
    began = time.monotonic()
    dump("dump", pid, last)
    dumped = time.monotonic()
    archive = ["tar", "--create", "--absolute-names", "--file=-", str(PLACE / str(last)), log]
    subprocess.run(archive, stdout=unpacking.stdin, check=True)
    unpacking.communicate()
    if unpacking.returncode != 0:
        raise SystemExit("haul: the images did not arrive")
    sent = time.monotonic()
    far.do(f"criu restore --restore-detached --images-dir {PLACE}/{last} --log-file restore.log")
    done = time.monotonic()
    print(f"dump {dumped - began:.3f} images {sent - dumped:.3f} restore {done - sent:.3f}", flush=True)
    shutil.rmtree(PLACE)
    far.do(f"rm -rf {PLACE}")


if __name__ == "__main__":
    main()
