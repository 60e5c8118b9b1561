"""What no process of ours may leave on a disk: the tree's memory, in a core dump of our own.

What is set here is kept by whatever is started from here, criu among it: a limit of nothing for core files, and, for a
host that pipes its core dumps into a program and so knows no limit, a filter that leaves all memory out (core(5)). A
tree that is restored gets its own of both back: the limit from criu, the filter from `traits`.

A relay imports this while somebody waits, so nothing heavy is imported here.
"""

from __future__ import annotations

import resource

_FILTER = "/proc/self/coredump_filter"


def no_core_dumps() -> None:
    """From now on.

    The hard limit stays: criu may have to give a task one as high (setrlimit(2)), and not be allowed to raise it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        with open(_FILTER, "w") as file:
            file.write("0")
    except OSError:
        return  # a kernel that writes no core dumps at all
