"""Options that the operator hands on to criu: which are taken, for which end, and which would break the commit. Pure.

criu has one table of options for all its commands (criu/config.c), takes any unambiguous beginning of a name, and
`--no-` before many. So what must not be given is refused by every beginning of its name, and with `no-` before it.
"""

from __future__ import annotations

import dataclasses
import re

_SECOND = "a second copy of the process would be left on the source"
_NEVER = "the process would not be left running on the target"
_HOOKS = "migrate decides at criu's one hook; another script could fail behind the decision"
_PUNCHED = "it destroys images while they are read, and they may have to be restored once more"
_OURS = "migrate sets it itself"
_READ = "migrate reads criu's log to know how far it came"
_BACK = "it brings in options that nobody has checked"
_ELSE = "criu would do something else than to dump or restore"
_NUMBERS = "a descriptor's number means nothing to criu on these hosts"

REFUSED = {
    "leave-running": _SECOND, "leave-stopped": f"{_SECOND}, or {_NEVER}", "exec-cmd": _NEVER,
    "action-script": _HOOKS, "auto-dedup": _PUNCHED, "config": _BACK, "no-default-config": _OURS,
    "tree": _OURS, "images-dir": _OURS, "work-dir": _OURS, "prev-images-dir": _OURS, "pidfile": _OURS,
    "restore-detached": _OURS, "restore-sibling": _OURS, "daemon": _OURS, "track-mem": _OURS, "lazy-pages": _OURS,
    "page-server": _OURS, "ps-socket": _OURS, "address": _OURS, "port": _OURS, "status-fd": _OURS, "stream": _OURS,
    "tls": _OURS, "tls-cacert": _OURS, "tls-cacrl": _OURS, "tls-cert": _OURS, "tls-key": _OURS,
    "tls-no-cn-verify": _OURS, "log-file": _READ, "log-pid": _READ, "verbosity": _READ,
    "close": _NUMBERS, "inherit-fd": _NUMBERS, "help": _ELSE, "version": _ELSE, "feature": _ELSE, "ms": _ELSE,
}  # fmt: skip
"""Name -> why it is not handed on."""

_SHORT = {
    "t": "tree", "s": "leave-stopped", "R": "leave-running", "d": "restore-detached", "S": "restore-sibling",
    "D": "images-dir", "W": "work-dir", "o": "log-file", "J": "join-ns", "r": "root", "x": "ext-unix-sk", "h": "help",
    "V": "version", "v": "verbosity", "j": "shell-job", "l": "file-locks", "L": "libdir", "M": "ext-mount-map",
}  # fmt: skip
_ENDS = ("dump", "restore")


@dataclasses.dataclass(frozen=True)
class CriuOption:
    """One argument for criu, and the end it is for."""

    argument: str  # --name or --name=value
    end: str = ""  # dump, restore; "" for both

    def __str__(self) -> str:
        return f"{self.end}:{self.argument}" if self.end else self.argument


def parse(word: str) -> CriuOption:
    """`[dump:|restore:]NAME[=VALUE]`, with or without the dashes before the name; one letter for criu's short names.

    Raises ValueError, with the reason in words, for what is no option or must not be given.
    """
    end, colon, rest = word.partition(":")
    if not colon or end not in _ENDS:
        end, rest = "", word
    found = re.fullmatch(r"(?:--?)?([A-Za-z][A-Za-z0-9-]*)(=.*)?", rest, re.DOTALL)
    if found is None or "\0" in rest:
        raise ValueError(f"{word!r} is no option of criu's: write NAME, or NAME=VALUE")
    name, value = found[1], found[2] or ""
    if len(name) == 1:
        if name not in _SHORT:
            raise ValueError(f"criu has no option -{name}")
        name = _SHORT[name]
    for refused, reason in REFUSED.items():
        if refused.startswith((name, name.removeprefix("no-"))):
            short = "" if refused == name else f" (for criu it can mean --{refused})"
            raise ValueError(f"--{name}{short} is not handed on: {reason}")
    return CriuOption(f"--{name}{value}", end)
