"""The init of a namespace host: process 1, which reaps, and answers on the lab's control port.

A program by itself (standard library only), run by the host's own python. Its argument is a listening
socket that was opened on the machine's loopback: a socket belongs to the network namespace that it was
made in, so the machine reaches the host without an interface, route or proxy between them. Each connection
is handed to an `sshd -i`. Another sshd, started once, serves the private network.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
from pathlib import Path

SSHD = ["/usr/sbin/sshd", "-E", "/var/log/sshd.log"]
ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def reap() -> None:
    """Takes the status of every ended child, ours or inherited."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def spawn_sshd(arguments: list[str], descriptor: int) -> None:
    """Starts sshd with this descriptor as standard input and output, and none above 2."""
    log = os.open("/var/log/sshd.stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    actions = [(os.POSIX_SPAWN_DUP2, source, target) for source, target in ((descriptor, 0), (descriptor, 1), (log, 2))]
    os.posix_spawn(SSHD[0], [*SSHD, *arguments], ENVIRONMENT, file_actions=actions, setsid=True)
    os.close(log)


def main() -> None:
    """Serves until it is killed; the kernel then ends everything else on the host."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    control.setblocking(False)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)

    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    spawn_sshd(["-D"], null)

    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the wake-up descriptor is written
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is woken:
                woken.recv(4096)
                reap()
            else:
                try:
                    peer, _ = control.accept()
                except OSError:  # the client was gone before we looked
                    continue
                spawn_sshd(["-i"], peer.fileno())
                peer.close()


if __name__ == "__main__":
    main()
