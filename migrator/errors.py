"""What can go wrong, and the exit code that says where the process is. This file owns the tree; nobody else exits.

    MigrateError
    ├── UsageError             2   nothing was tried; the process runs on the source
    ├── ConnectError          10   the target, or our own agent, could not be reached
    │   ├── UnknownHost       11   its name does not resolve
    │   ├── Refused           12   no answer, or connection refused
    │   ├── HostKeyError      13   unknown or changed host key
    │   ├── LoginError        14   no key or password was accepted
    │   ├── NoPython          15   no usable python3 there
    │   ├── WrongAgent        16   something else answered in the agent's place
    │   └── NotRoot           17   root is needed, and sudo -n did not give it
    ├── PreflightError        20   obstacles, all of them named
    │   ├── NoProcess         21   no such process
    │   ├── Locked            22   another migration holds the tree
    │   ├── StateError        23   what is kept of a drain can't be read or written
    │   └── IceError          24   what is on ice is not there, not whole, or not what was put there
    ├── CopyError             30   a round, a stream or a file failed; undone
    │   ├── NoSpace           31   no room for images or files; undone
    │   ├── DumpError         32   criu dump failed; undone
    │   ├── RestoreError      33   criu restore failed; undone
    │   ├── LinkLost          34   the connection or an agent was lost before COMMIT; undone
    │   ├── NotConverging     35   the downtime limit could not be met; undone
    │   ├── TreeChanged       36   the tree is not the one that was inspected; undone
    │   ├── BrokenRounds      37   the rounds do not fit together, also when dumped once more; undone
    │   └── OpenedMeanwhile   38   it has opened files since preflight that are not there, or differ; undone
    ├── NotResumed            70   past the point of no return, not resumed yet; images kept on the target
    ├── InDoubt               71   contact lost at COMMIT or RESUME; one copy at most
    ├── MemoryLost            72   moved, then both that filled its memory were killed at once; stopped on the target
    ├── TooLate               73   it was to be undone, after COMMIT; nothing was changed
    ├── Lost                  74   the target lost power with the only copy, in memory: it is nowhere
    └── Interrupted        128+N   a signal before COMMIT; undone

Exit 0 is a migration without leftovers, 3 one with leftovers (named), 1 a bug with its traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from migrator.obstacle import Obstacle

EXIT_MIGRATED = 0
EXIT_LEFTOVERS = 3


class MigrateError(Exception):
    """Root of the tree. `exit_code` says where the process is, `where` says it in words."""

    exit_code = 1
    where = "see the journal"

    def __init__(self, message: str, *, hint: str = "", log: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = log


class _Untouched(MigrateError):
    where = "the process runs on the source and was not touched"


class _Undone(MigrateError):
    where = "undone: the process runs on the source"


class UsageError(_Untouched):
    """The command line makes no sense."""

    exit_code = 2


class ConnectError(_Untouched):
    """The target, or our own agent, could not be reached."""

    exit_code = 10


class UnknownHost(ConnectError):
    """The target's name does not resolve."""

    exit_code = 11


class Refused(ConnectError):
    """No answer from the target's sshd."""

    exit_code = 12


class HostKeyError(ConnectError):
    """The target's host key is unknown or has changed."""

    exit_code = 13


class LoginError(ConnectError):
    """The target accepted none of our keys."""

    exit_code = 14


class NoPython(ConnectError):
    """The target has no usable python3."""

    exit_code = 15


class WrongAgent(ConnectError):
    """Something else than our agent answered."""

    exit_code = 16


class NotRoot(ConnectError):
    """An agent needs root and did not get it."""

    exit_code = 17


class PreflightError(_Untouched):
    """There are obstacles; all of them are in `obstacles`."""

    exit_code = 20

    def __init__(self, message: str, *, hint: str = "", log: str = "", obstacles: tuple[Obstacle, ...] = ()) -> None:
        super().__init__(message, hint=hint, log=log)
        self.obstacles = obstacles


class NoProcess(PreflightError):
    """There is no such process, or none any more."""

    exit_code = 21
    where = "nothing was moved"


class Locked(PreflightError):
    """Another migration holds a task of this tree."""

    exit_code = 22


class StateError(PreflightError):
    """What is kept of a drain can't be read or written."""

    exit_code = 23
    where = "nothing more is moved; those that were moved before are where they were moved to"


class IceError(PreflightError):
    """What is on ice is not there, not whole, or not what was put there."""

    exit_code = 24
    where = "nothing was restored"


class CopyError(_Undone):
    """A round, a stream or a file failed."""

    exit_code = 30


class NoSpace(CopyError):
    """No room for images or files."""

    exit_code = 31


class DumpError(CopyError):
    """criu could not dump the tree."""

    exit_code = 32


class RestoreError(CopyError):
    """criu could not restore the tree."""

    exit_code = 33


class LinkLost(CopyError):
    """The connection or an agent was lost before COMMIT."""

    exit_code = 34


class NotConverging(CopyError):
    """The limit on the downtime could not be met."""

    exit_code = 35


class TreeChanged(CopyError):
    """The tree is not the one that was inspected."""

    exit_code = 36


class BrokenRounds(CopyError):
    """The rounds do not fit together: a page is missing, or an image is damaged."""

    exit_code = 37


class OpenedMeanwhile(CopyError):
    """It has opened files since preflight which are not on the target, or differ there; `obstacles` has them."""

    exit_code = 38

    def __init__(self, message: str, *, hint: str = "", log: str = "", obstacles: tuple[Obstacle, ...] = ()) -> None:
        super().__init__(message, hint=hint, log=log)
        self.obstacles = obstacles


class NotResumed(MigrateError):
    """Past the point of no return and not resumed yet: the images are kept on the target."""

    exit_code = 70
    where = "the process runs nowhere; its images are kept on the target"


class InDoubt(MigrateError):
    """Contact was lost at COMMIT or RESUME: there is one copy at most, and the journals decide."""

    exit_code = 71
    where = "there is one copy at most, and the journals decide which"


class MemoryLost(MigrateError):
    """It runs nowhere else, and part of its memory is gone: both that filled it were killed at the same instant."""

    exit_code = 72
    where = "part of the process's memory is lost; it is stopped on the target, unless it has crashed already"

    @classmethod
    def on(cls, host: str, pid: int) -> MemoryLost:
        """For a tree on this host."""
        return cls(
            f"{host}: pager and warden were killed at once: what they had not filled in reads as zeros",
            hint=f"do not continue process {pid} there: end it (`kill -KILL {pid}`) and start it anew",
        )


class TooLate(MigrateError):
    """It was to be undone, and is past the point of no return: it goes forward only."""

    exit_code = 73
    where = "nothing was changed: the process belongs to the target"


class Lost(MigrateError):
    """The target has rebooted with the only copy, which was in memory."""

    exit_code = 74
    where = "the process is lost: it runs nowhere, and nothing is left to restore it from"


class Interrupted(MigrateError):
    """A signal came before COMMIT."""

    where = "undone: the process runs on the source"

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
