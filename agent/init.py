"""The first process of a PID namespace that a moved tree lives in: reaps, passes signals on, ends with the tree.

It stays for as long as the tree does, so it is small, and needs nothing of us: a Python that loads two modules of the
interpreter's own and runs this file's text, which comes on its standard input. A shell would be smaller still, but none
reaps for certain what it has not started, or can wait for that without asking again and again.

Every signal is blocked and waited for, so none is lost, and none ends it but SIGKILL; that one the kernel follows with
a SIGKILL to everything in the namespace.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import posix
import sys

MARK = "migrate-init"
"""By which it is known: its name, and a word of its command line."""
CRIU_LEFT = int(_signal.SIGRTMAX)
"""Comes from the kernel when the process that has made this namespace, and waited for criu, is gone. Until then a
namespace without a process is one that criu has not come to yet."""
AGAIN = 0.5
"""Seconds until the next look at processes that are not our children, which tell nobody when they end: those that
somebody has entered the namespace with, as criu does when the tree moves on."""


def exit_code(status: int) -> int:
    """What a shell would make of a status of wait(2)."""
    return 128 + posix.WTERMSIG(status) if posix.WIFSIGNALED(status) else posix.WEXITSTATUS(status)


def reap(root: int) -> tuple[bool, int]:
    """Whether there are children left, and the root's status if it was among the dead, else -1."""
    of_root = -1
    while True:
        try:
            pid, status = posix.waitpid(-1, posix.WNOHANG)
        except ChildProcessError:
            return False, of_root
        if pid == 0:
            return True, of_root
        if pid == root:
            of_root = status


def is_empty() -> bool:
    """Whether there is nobody in the namespace but its first process: to it, -1 means all the others."""
    try:
        posix.kill(-1, 0)
    except ProcessLookupError:
        return True
    return False


def pass_on(number: int, pids: list[int]) -> None:
    """A signal for each of these."""
    for pid in pids:
        try:
            posix.kill(pid, number)
        except ProcessLookupError:
            continue


def main(root: int) -> int:
    """Be PID 1 until the namespace is empty again; the exit status of its root."""
    every = _signal.valid_signals()
    _signal.pthread_sigmask(_signal.SIG_BLOCK, every)
    ended, criu_left = -1, False
    while True:
        has_children, status = reap(root)
        ended = status if status >= 0 else ended
        if criu_left and is_empty():
            return exit_code(max(ended, 0))
        caught = _signal.sigtimedwait(every, AGAIN if criu_left and not has_children else 3600)
        if caught is None or caught.si_signo == _signal.SIGCHLD:
            continue
        if caught.si_signo == CRIU_LEFT:
            criu_left = True
        elif ended < 0:
            pass_on(caught.si_signo, [root])
        else:
            pass_on(caught.si_signo, [int(name) for name in posix.listdir("/proc") if name.isdigit() and name != "1"])


if __name__ == "__main__":
    if posix.getpid() != 1:
        sys.exit(f"{MARK} is for the first process of a namespace")
    with open("/proc/self/comm", "w") as comm:
        comm.write(MARK)
    posix.dup2(1, 0)  # both are the null device from here on
    posix._exit(main(int(sys.argv[2])))
