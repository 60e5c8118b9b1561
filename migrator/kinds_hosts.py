"""Kinds of obstacles: what the hosts are, and what of them a tree needs."""

from __future__ import annotations

from migrator.kinds import Kind

ROWS = (
    Kind(
        "no-root", "not root on this host",
        "criu needs root", "run as root, or allow `sudo -n`",
        "Dumping and restoring take nearly every capability. migrate becomes root with `sudo -n` where it may: on the "
        "source by itself, on the target with --sudo.",
    ),
    Kind(
        "criu-missing", "criu is not installed",
        "is not installed", "install it, e.g. `apt install criu`",
        "All the work on each host is done by criu. --criu PATH names one that is not found by PATH.",
    ),
    Kind(
        "criu-old", "criu is too old",
        "is too old", "install criu {needed} or newer",
        "Before 3.17 criu knew nothing of restartable sequences (rseq), which glibc registers in every thread from "
        "2.35 on: programs that were moved with it crash now and then.",
    ),
    Kind(
        "criu-check", "`criu check` is not content with the kernel",
        "`criu check` says: {line}",
        "run `criu check` there; often the kernel lacks an option, or criu is too old for this kernel",
        "criu asks the kernel itself whether all that it needs is there. What fails in `criu check` fails in a dump or "
        "a restore.",
    ),
    Kind(
        "criu-kernel-sockets", "this criu cannot dump IP sockets on this kernel",
        "can't dump IP sockets on kernel {newest} and newer (here {kernel})", "install criu {needed} or newer",
        "Kernel 6.16 took away a socket option that criu before 4.2 asks for, and the dump fails for any tree with a "
        "TCP or UDP socket, even one that only listens.",
    ),
    Kind(
        "criu-older", "criu on the target is older than on the source",
        "criu is older than on {here} ({version})", "if the restore fails, install the same version there",
        "A newer criu reads the images of an older one; the other way round works mostly, and fails where the images "
        "hold something that the older one does not know. Then the restore fails, and the process goes on here.",
        stops=False,
    ),
    Kind(
        "architecture", "another CPU architecture",
        "{here} is {machine}", "choose a target of the same architecture",
        "A process's memory holds instructions and registers of its own kind of CPU.",
    ),
    Kind(
        "cpu", "the target's CPU lacks what the source's can do",
        "lacks what programs on {here} may use: {missing}",
        "choose a target with the same CPU or a newer one of its line; for virtual machines set the same CPU model",
        "Programs and the C library look once, at their start, what the CPU can do, and use it from then on: on one "
        "that lacks it they die of SIGILL. criu compares the features with `criu cpuinfo check`; registers that are "
        "saved with xsave must have the same size on both.",
    ),
    Kind(
        "page-size", "another page size",
        "{here} has pages of {size} B", "boot a kernel with the same page size",
        "Addresses of mappings are multiples of the page size; arm64 and ppc64 kernels come with more than one.",
    ),
    Kind(
        "no-dirty-tracking", "the source's kernel does not track dirty memory",
        "this kernel does not track dirty memory (soft-dirty): all memory will travel while the process is frozen",
        "boot a kernel with CONFIG_MEM_SOFT_DIRTY to shorten that",
        "Without soft-dirty bits nobody knows what was written since a round of pre-copy, so there is none: the whole "
        "memory moves within the freeze. It stops with --require-precopy.",
        stops=False,
    ),
    Kind(
        "no-throttle", "its processor time cannot be limited",
        "its time can't be limited: {why}", "use --on-no-converge freeze, or fail",
        "--on-no-converge throttle slows the process down by the cpu controller of its cgroup, which must be there, "
        "and writable.",
    ),
    Kind(
        "no-room", "too little memory or disk on the target",
        "{problem}", "free some there",
        "The images lie in memory on the target until the process runs, or on disk where memory is short, and the "
        "process itself needs its memory besides.",
    ),
    Kind(
        "pid-taken", "a PID, thread ID, process group or session of the tree is taken on the target",
        "is {what} {name} (pid {pid})",
        "a tree keeps its PIDs: end that process, or restart it so that it gets another one",
        "Programs remember their PIDs and those of their children, so the tree gets the same numbers on the target, "
        "and criu fails where one is in use. Hosts that give out PIDs from the same range meet often: a large "
        "kernel.pid_max on both makes that rare.",
    ),
    Kind(
        "pid-range", "a PID of the tree is too high for the target",
        "PIDs end at {last} there", "there: `sysctl kernel.pid_max={wanted}`",
        "The tree keeps its PIDs, and the target's kernel gives out no such number.",
    ),
)  # fmt: skip
