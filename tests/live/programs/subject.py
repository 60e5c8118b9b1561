"""A process with things of certain kinds, which says when asked whether it still has them. Standard library only.

    subject.py VERDICT KIND…

Each kind is a generator of `probes_*.py`: its first step makes what it is about, every step yields what there is, as
{name: (found, expected)}. On SIGUSR1 all of them take a step, and what is not as expected goes to the file VERDICT, a
line each; an empty file says that all is well. Between two steps no file is open but those that a kind is about.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path

MODULES = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("probes_*.py"))]
KINDS = {name: make for module in MODULES for name, make in vars(module).items() if not name.startswith("_")}


def main() -> None:
    """Make everything, then answer for ever."""
    verdict, *names = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    kinds = {name: KINDS[name]() for name in names}
    while True:
        wrong = []
        for kind, steps in kinds.items():
            try:
                found = next(steps)
            except Exception as error:
                found = {"raised": (repr(error), "")}
            wrong += [f"{kind}: {name}: {is_!r}, not {was!r}\n" for name, (is_, was) in found.items() if is_ != was]
        with open(f"{verdict}.new", "w") as out:
            out.writelines(wrong)
        os.rename(f"{verdict}.new", verdict)
        signal.sigwait([signal.SIGUSR1])


if __name__ == "__main__":
    main()
