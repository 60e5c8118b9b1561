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
        "rsync-missing", "rsync is not installed",
        "is not installed, and it is to carry the rounds",
        "install it, e.g. `apt install rsync`, or use --transport stream",
        "With --transport rsync the image directories are sent by rsync, and with --copy-files it copies the files "
        "while the process runs: it has to be on both hosts.",
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
        "criu-newer", "criu on the target is newer by a major version",
        "criu is much newer than on {here} ({version})", "if the restore fails, install the same version there",
        "A newer criu reads the images of an older one. Between major versions that is hardly ever tried: where the "
        "restore fails, the process goes on here.",
        stops=False,
    ),
    Kind(
        "criu-stream", "criu 4.2 on one host, an older one on the other",
        "criu {version} on {here} speaks another page server's protocol",
        "install the same version on both hosts",
        "With 4.2 criu changed what it says to a page server (32 bytes a command, where there were 24): neither "
        "version understands the other. It also writes the number of pages into another field of its images, which "
        "older ones do not know: they would take all memory for empty. 4.2 reads the images of older ones, so from an "
        "older source --transport rsync or --shared is let pass.",
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
        "ice-volatile", "a process goes on ice in a directory that is in memory",
        "is on a {kind}, which is gone when this host goes down", "name a directory on a disk",
        "The process ends once its images are on the disk of that directory, and they are its only copy then. What is "
        "in memory does not outlive a reboot.",
    ),
    Kind(
        "not-durable", "--durable, and the target keeps its state in memory",
        "is on a {kind} there, and --durable wants a disk", "mount a disk there, or leave --durable",
        "With --durable everything that a restore needs is on a disk of the target before the process is ended on the "
        "source, in /var/lib/migrate. What is in memory is gone with a power cut.",
    ),
    Kind(
        "pid-taken", "a PID, thread ID, process group or session of the tree is taken on the target",
        "is {what} {name} (pid {pid})",
        "use -n: it keeps its PIDs in a PID namespace of its own there; or end that process",
        "Programs remember their PIDs and those of their children, so the tree gets the same numbers on the target, "
        "and criu fails where one is in use. Hosts that give out PIDs from the same range meet often: a large "
        "kernel.pid_max on both makes that rare. With -n the tree gets a PID namespace of its own, in which every "
        "number is free; --namespaces=auto does that only where it has to be.",
    ),
    Kind(
        "no-namespaces", "the target's kernel gives out no PID namespaces",
        "has no PID namespaces, or user.max_pid_namespaces is 0 there",
        "there: `sysctl user.max_pid_namespaces=1000`, or leave -n",
        "With -n, and when it already lives in one, a tree is restored into a PID namespace of its own, which takes a "
        "kernel with CONFIG_PID_NS and root's right to make one more.",
    ),
    Kind(
        "pid-range", "a PID of the tree is too high for the target",
        "PIDs end at {last} there", "there: `sysctl kernel.pid_max={wanted}`",
        "The tree keeps its PIDs, and the target's kernel gives out no such number.",
    ),
    Kind(
        "address-missing", "an address that a socket of the tree is bound to is not on the target",
        "this address is not on this host", "there: ip address add {address}/{bits} dev INTERFACE",
        "criu binds every socket anew, and the kernel refuses an IPv4 address that the host does not have (with IPv6 "
        "the socket is bound all the same, and nobody reaches it: a warning). A service that "
        "shall move listens on a wildcard (0.0.0.0 or ::), or on an address that moves with it: take it off here and "
        "put it on the target right before. With net.ipv4.ip_nonlocal_bind the kernel lets any address be bound.",
    ),
    Kind(
        "address-taken", "an address and port of the tree is in use on the target",
        "{holder} has it", "end that service there, or let one of the two use another port",
        "Two programs can't listen on the same port of the same address, and a wildcard takes all addresses. criu "
        "fails to bind the socket. A connection whose near end has that port by chance is a warning: it may be gone "
        "by then.",
    ),
    Kind(
        "user-missing", "a user that the tree runs as is not on the target",
        "nobody has this number", "there: useradd --uid {number} {name}",
        "The kernel knows users by number only, and the process keeps its number, so that it runs. But it has no name "
        "there, programs that look it up fail, and files that it may read or write are somebody else's, or nobody's.",
        stops=False,
    ),
    Kind(
        "user-differs", "a user that the tree runs as has another name on the target",
        "is {name} there, on {here} {was}", "give that user the same {label} on both hosts",
        "The kernel knows users by number only. On the target this number is another user, who may then signal the "
        "process, trace it, and read its files.",
        stops=False,
    ),
    Kind(
        "group-missing", "a group that the tree belongs to is not on the target",
        "nobody has this number", "there: groupadd --gid {number} {name}",
        "The process keeps the numbers of its group and of its supplementary groups. There this one has no name, and "
        "gives no access to anything.",
        stops=False,
    ),
    Kind(
        "group-differs", "a group that the tree belongs to has another name on the target",
        "is {name} there, on {here} {was}", "give that group the same {label} on both hosts",
        "The process keeps the numbers of its group and of its supplementary groups. On the target this number is "
        "another group, whose files the process may then read or write.",
        stops=False,
    ),
    Kind(
        "limit-files", "the tree may open more files than the target's kernel allows",
        "a process may have {most} descriptors at most there", "there: sysctl fs.nr_open={wanted}",
        "criu gives every process its limits back. The kernel refuses an RLIMIT_NOFILE above fs.nr_open, even to root, "
        "and criu lets the process go on with a lower one, without a word.",
        stops=False,
    ),
    Kind(
        "limit-lower", "the target cannot give the tree a resource limit as high as it has",
        "is {most} at most there, and {now} here: the tree goes on with what it can have",
        "raise the hard limit of the login there (limits.conf(5), or where the container is set up)",
        "criu gives every process its limits back. In a container whose root has no CAP_SYS_RESOURCE nobody may have a "
        "higher hard limit than the login that restores it, and criu then leaves it at that without a word.",
        stops=False,
    ),
    Kind(
        "limit-threads", "the target's kernel has no room for so many more threads",
        "there are {now} threads already, and {most} are the most", "there: sysctl kernel.threads-max=NUMBER",
        "kernel.threads-max bounds all threads of a host together. criu fails to make the last ones of the tree.",
    ),
    Kind(
        "lsm", "the tree is confined by a security module that the target does not have",
        "{here} confines it with {module}, which is not there", "boot the target with security={module}",
        "criu writes down the AppArmor profile or SELinux context of each process, and refuses to restore one where "
        "the target's kernel runs without that module: the process would be free of what holds it here.",
    ),
    Kind(
        "lsm-profile", "the tree's AppArmor profile is not loaded on the target",
        "this AppArmor profile is not loaded", "copy its file to /etc/apparmor.d there: apparmor_parser -r FILE",
        "criu puts each process back under its profile, and the restore fails where the kernel has none of that name.",
    ),
    Kind(
        "seccomp", "the tree has a filter of system calls, which the target's kernel does not know",
        "has no seccomp filters, and the tree has one", "boot a kernel with CONFIG_SECCOMP_FILTER",
        "Browsers, OpenSSH, systemd units and many others forbid themselves system calls with seccomp(2). criu gives "
        "each thread its filter back, and the restore fails where the kernel has none.",
    ),
    Kind(
        "clocks", "the target's kernel has no time namespaces, so that clocks jump",
        "has no time namespaces: the process's monotonic clock jumps", "boot a kernel with CONFIG_TIME_NS (5.6 on)",
        "CLOCK_MONOTONIC and CLOCK_BOOTTIME count from the boot of a host. criu lets them go on from what they were in "
        "a time namespace; without, they may jump back, and timeouts come late, or at once.",
        stops=False,
    ),
    Kind(
        "cgroup-limits", "the limits of its cgroup do not travel",
        "limits it here ({limits}), and nothing does on {there}",
        "there, afterwards: systemctl set-property --runtime SCOPE MemoryMax=… CPUQuota=…",
        "migrate runs criu with --manage-cgroups=ignore: the tree runs on in a scope of its own on the target, which "
        "has no limits. What the cgroup here had (memory, processor time, processors) must be set there.",
        stops=False,
    ),
    Kind(
        "cgroup-version", "the hosts have different versions of cgroups",
        "on {here} they are {version}", "boot both with the same systemd.unified_cgroup_hierarchy",
        "criu leaves cgroups alone here (--manage-cgroups=ignore), so the tree moves. But a program that reads its own "
        "cgroup, as the JVM and Go programs do to size themselves, looks for files that are elsewhere there.",
        stops=False,
    ),
    Kind(
        "no-huge-pages", "too few free huge pages on the target",
        "{free} are free there",
        "there: echo {count} >/sys/kernel/mm/hugepages/hugepages-{kilobytes}kB/nr_hugepages",
        "Memory of hugetlbfs and MAP_HUGETLB comes from a pool that is set aside. criu maps it anew on the target, and "
        "the restore fails, or the process dies of SIGBUS, where the pool is too small.",
    ),
    Kind(
        "overcommit", "the target's kernel promises no more memory than it has",
        "is 2 there, and {was} on {here}", "there: sysctl vm.overcommit_memory={was}",
        "With vm.overcommit_memory=2 mappings that were never touched count as well. A process that has mapped much "
        "more than it uses, as Go, Java and sanitizers do, may not be restored.",
        stops=False,
    ),
    Kind(
        "thp", "transparent huge pages are set otherwise on the target",
        "on {here} they are: {was}", "there: echo {was} >/sys/kernel/mm/transparent_hugepage/enabled",
        "The process runs all the same, but may need more memory there, or more processor time.",
        stops=False,
    ),
    Kind(
        "cpus", "the target lacks processors that the tree is bound to",
        "has the processors {here}, and pid {pid} is bound to others too", "there, afterwards: taskset -ap LIST PID",
        "A thread that sched_setaffinity(2) or taskset(1) has bound to some processors is bound to the same numbers "
        "on the target, as far as they are there; where none of them are, it may run on all.",
        stops=False,
    ),
    Kind(
        "terminal-taken", "a pseudo-terminal of the tree has a number that is in use on the target",
        "is in use, and the tree has one of this number", "end the session that has it there: ps -t pts/{number}",
        "A program that holds both ends of a pseudo-terminal, as tmux, screen, script and expect do, gets it back with "
        "its number, since programs remember its name. criu fails where another terminal has that number: the first "
        "login on a host takes pts/0.",
    ),
)  # fmt: skip
