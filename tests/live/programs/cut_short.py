"""A command that is cut short: at an instant of an agent (agent/instants.py) the agent and the command do not go on.

    cut_short.py INSTANT HARM COMMAND…

HARM is `kill`: both are killed at once; `criu`: the criu that waits, or works, is killed, and the agent goes on;
`stand`: /run/stands is made, and the agent stands there until everything loses power.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

PATH = "/run/cut-short"
STANDS = Path("/run/stands")


def main() -> int:
    instant, harm, *command = sys.argv[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        Path(PATH).unlink(missing_ok=True)
        listener.bind(PATH)
        os.chmod(PATH, 0o600)
        listener.listen(8)
        process = subprocess.Popen(command, env={**os.environ, "MIGRATE_INSTANT": PATH})
        end = os.pidfd_open(process.pid)
        while listener.fileno() in select.select([listener.fileno(), end], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                pid, _, name = connection.makefile().readline().strip().partition(" ")
                if name != instant:
                    connection.sendall(b"\n")
                    continue
                if harm == "kill":
                    os.kill(int(pid), signal.SIGKILL)
                    process.kill()
                elif harm == "criu":
                    subprocess.run(["pkill", "-KILL", "-x", "criu"], check=False)
                    subprocess.run(["pkill", "-KILL", "-f", "[r]ead -r images"], check=False)
                    connection.sendall(b"\n")
                else:
                    STANDS.touch()
                    signal.pause()
    Path(PATH).unlink(missing_ok=True)
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
